#include "common/tensor/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "common/base/rng.h"
#include "hwy/highway.h"

namespace fedge {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Binary16 by its definition.
double HalfValue(uint16_t half) {
  const int exponent = half >> 10 & 31;
  const double sign = half & 0x8000 ? -1 : 1;
  if (exponent == 0) return sign * std::ldexp(half & 1023, -24);
  return sign * std::ldexp(1024 + (half & 1023), exponent - 25);
}

uint16_t U16(const uint8_t* bytes) { return static_cast<uint16_t>(bytes[0] | bytes[1] << 8); }
float F16(const uint8_t* bytes) { return static_cast<float>(HalfValue(U16(bytes))); }

// The value of element `i` of a block, one element at a time after the table of the format.
float ReferenceNibbles(DType type, const uint8_t* b, int i) {
  const bool has_min = type == DType::kQ4_1 || type == DType::kQ5_1;
  const bool is_5_bit = type == DType::kQ5_0 || type == DType::kQ5_1;
  const uint8_t* const high = b + (has_min ? 4 : 2);
  const uint8_t* const qs = high + (is_5_bit ? 4 : 0);
  int q = i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
  if (is_5_bit && (high[i / 8] >> (i % 8) & 1) != 0) q += 16;
  if (has_min) return static_cast<float>(q) * F16(b) + F16(b + 2);
  return static_cast<float>(q - (is_5_bit ? 16 : 8)) * F16(b);
}

float ReferenceK45(DType type, const uint8_t* b, int i) {
  const uint8_t* const scales = b + 4;
  const int sub = i / 32;
  int scale = scales[sub] & 63;
  int min = scales[sub + 4] & 63;
  if (sub >= 4) {
    scale = (scales[sub + 4] & 15) + 16 * (scales[sub - 4] >> 6);
    min = (scales[sub + 4] >> 4) + 16 * (scales[sub] >> 6);
  }
  const uint8_t byte = b[(type == DType::kQ4_K ? 16 : 48) + 32 * (sub / 2) + i % 32];
  int q = sub % 2 == 0 ? byte & 15 : byte >> 4;
  if (type == DType::kQ5_K && (b[16 + i % 32] >> sub & 1) != 0) q += 16;
  return F16(b) * static_cast<float>(scale) * static_cast<float>(q) -
         F16(b + 2) * static_cast<float>(min);
}

float ReferenceQ6(const uint8_t* b, int i) {
  const int half = i / 128, quarter = i % 128 / 32, j = i % 32;
  const uint8_t low = b[64 * half + 32 * (quarter % 2) + j];
  const int high = b[128 + 32 * half + j] >> (2 * quarter) & 3;
  const int q = (quarter < 2 ? low & 15 : low >> 4) + 16 * high - 32;
  const auto scale = static_cast<int8_t>(b[192 + i / 16]);
  return F16(b + 208) * static_cast<float>(scale) * static_cast<float>(q);
}

float Reference(DType type, const uint8_t* blocks, int64_t i) {
  const uint8_t* const b = blocks + i / BlockElements(type) * BlockBytes(type);
  const int j = static_cast<int>(i % BlockElements(type));
  switch (type) {
    case DType::kF32: {
      float value;
      std::memcpy(&value, b, 4);
      return value;
    }
    case DType::kF16:
      return F16(b);
    case DType::kBF16:
      return std::bit_cast<float>(static_cast<uint32_t>(U16(b)) << 16);
    case DType::kQ8_0:
      return static_cast<float>(static_cast<int8_t>(b[2 + j])) * F16(b);
    case DType::kQ4_K:
    case DType::kQ5_K:
      return ReferenceK45(type, b, j);
    case DType::kQ6_K:
      return ReferenceQ6(b, j);
    default:
      return ReferenceNibbles(type, b, j);
  }
}

// Random blocks whose scales are finite.
std::vector<uint8_t> RandomBlocks(DType type, int64_t blocks, uint64_t seed) {
  Rng rng(seed);
  std::vector<uint8_t> bytes(static_cast<size_t>(blocks * BlockBytes(type)));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(rng.Next());
  for (int64_t block = 0; block < blocks; ++block) {
    uint8_t* const b = bytes.data() + block * BlockBytes(type);
    // The top bit of the exponent of every f16 (or f32, bf16) cleared: below infinity.
    for (const int at : {1, 3}) {
      if (at < BlockBytes(type)) b[at] = static_cast<uint8_t>(b[at] & 0xbf);
    }
    if (type == DType::kQ6_K) b[209] = static_cast<uint8_t>(b[209] & 0xbf);
  }
  return bytes;
}

constexpr DType kAll[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ4_0,
                          DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0,
                          DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

void ExpectDecodesExactly() {
  for (const DType type : kAll) {
    for (const int64_t blocks : {int64_t{1}, int64_t{7}, int64_t{40}}) {
      const std::vector<uint8_t> bytes = RandomBlocks(type, blocks, 17);
      std::vector<float> values(static_cast<size_t>(blocks * BlockElements(type)));
      Dequantize(type, bytes.data(), static_cast<int64_t>(values.size()), values.data());
      for (size_t i = 0; i < values.size(); ++i) {
        ASSERT_EQ(std::bit_cast<uint32_t>(values[i]),
                  std::bit_cast<uint32_t>(Reference(type, bytes.data(), static_cast<int64_t>(i))))
            << DTypeName(type) << " element " << i;
      }
    }
  }
}

TEST(DequantizeTest, IsExactForEveryTypeOnEveryTarget) {
  for (const int64_t simd_target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(simd_target));
    hwy::SetSupportedTargetsForTest(simd_target);
    ExpectDecodesExactly();
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(DequantizeTest, ReadsUnalignedBlocks) {
  for (const DType type : kAll) {
    std::vector<uint8_t> bytes = RandomBlocks(type, 4, 3);
    const int64_t count = 4 * BlockElements(type);
    std::vector<float> aligned(static_cast<size_t>(count)), shifted(static_cast<size_t>(count));
    Dequantize(type, bytes.data(), count, aligned.data());
    bytes.insert(bytes.begin(), 0);
    Dequantize(type, bytes.data() + 1, count, shifted.data());
    EXPECT_EQ(aligned, shifted) << DTypeName(type);
  }
}

TEST(DequantizeTest, AcceptsNothing) { Dequantize(DType::kQ4_0, nullptr, 0, nullptr); }

TEST(HalfTest, DecodesAllValues) {
  for (uint32_t half = 0; half < 65536; ++half) {
    const float value = HalfToFloat(static_cast<uint16_t>(half));
    if ((half >> 10 & 31) != 31) {
      ASSERT_EQ(value, HalfValue(static_cast<uint16_t>(half))) << half;
      ASSERT_EQ(std::signbit(value), half >= 0x8000) << half;
    } else if ((half & 1023) == 0) {
      ASSERT_EQ(value, half >= 0x8000 ? -kInfinity : kInfinity);
    } else {
      ASSERT_TRUE(std::isnan(value)) << half;
    }
  }
}

TEST(HalfTest, AllValuesComeBack) {
  for (uint32_t half = 0; half < 65536; ++half) {
    const uint16_t back = FloatToHalf(HalfToFloat(static_cast<uint16_t>(half)));
    const bool is_nan = (half & 0x7fff) > 0x7c00;
    ASSERT_EQ(back, is_nan ? half | 0x200u : half);  // NaNs become quiet
  }
}

TEST(HalfTest, RoundsToNearestEven) {
  EXPECT_EQ(FloatToHalf(1.0f + 0x1p-11f), 0x3c00);      // tie, down to even
  EXPECT_EQ(FloatToHalf(1.0f + 3 * 0x1p-11f), 0x3c02);  // tie, up to even
  EXPECT_EQ(FloatToHalf(1.0f + 0x1p-11f + 0x1p-20f), 0x3c01);
  EXPECT_EQ(FloatToHalf(0x1p-25f), 0);  // tie below the smallest
  EXPECT_EQ(FloatToHalf(0x1p-25f + 0x1p-40f), 1);
  EXPECT_EQ(FloatToHalf(3 * 0x1p-25f), 2);
  EXPECT_EQ(FloatToHalf(-0x1p-30f), 0x8000);
  EXPECT_EQ(FloatToHalf(0x1p-14f - 0x1p-26f), 0x0400);  // carries into the normal numbers
  EXPECT_EQ(FloatToHalf(65519.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-1e30f), 0xfc00);
  EXPECT_EQ(FloatToHalf(std::numeric_limits<float>::quiet_NaN()) & 0x7e00, 0x7e00);
}

TEST(HalfTest, IsTheNearestOfItsNeighbours) {
  Rng rng(5);
  for (int i = 0; i < 200000; ++i) {
    const double magnitude = std::exp((rng.Uniform() * 2 - 1) * 18);
    const auto value = static_cast<float>(std::min(magnitude, 65000.0));
    const uint16_t half = FloatToHalf(value);
    const double error = std::fabs(HalfValue(half) - static_cast<double>(value));
    for (const int step : {-1, 1}) {
      if (half + step < 0 || half + step > 0x7bff) continue;
      const auto neighbour = static_cast<uint16_t>(half + step);
      const double other = std::fabs(HalfValue(neighbour) - static_cast<double>(value));
      ASSERT_TRUE(error < other || (error == other && half % 2 == 0)) << value;
    }
  }
}

TEST(Bfloat16Test, RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(FloatToBfloat16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBfloat16(1.0f + 0x1p-8f), 0x3f80);
  EXPECT_EQ(FloatToBfloat16(1.0f + 3 * 0x1p-8f), 0x3f82);
  EXPECT_EQ(FloatToBfloat16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(FloatToBfloat16(-kInfinity), 0xff80);
  const float nan = std::bit_cast<float>(0x7f800001u);  // would round to infinity
  EXPECT_TRUE(std::isnan(Bfloat16ToFloat(FloatToBfloat16(nan))));
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    if ((bits & 0x7fff) > 0x7f80) continue;
    ASSERT_EQ(FloatToBfloat16(Bfloat16ToFloat(half)), half);
  }
}

std::vector<uint8_t> Encode(DType type, const std::vector<float>& values) {
  std::vector<uint8_t> out(
      static_cast<size_t>(RowBytes(type, static_cast<int64_t>(values.size()))));
  EXPECT_TRUE(Quantize(type, values, out.data()).ok());
  return out;
}

TEST(QuantizeTest, EncodesQ8ByTheUnroundedScale) {
  std::vector<float> values(32, 0.0f);
  values[0] = -2.54f;
  values[1] = 0.03f;  // 1.5 steps: half goes away from zero
  values[2] = -0.03f;
  values[31] = 1.0f;
  const std::vector<uint8_t> block = Encode(DType::kQ8_0, values);
  EXPECT_EQ(U16(block.data()), FloatToHalf(2.54f / 127.0f));
  const float inverse = 1.0f / (2.54f / 127.0f);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(static_cast<int8_t>(block[2 + i]), std::lround(values[i] * inverse)) << i;
  }
  EXPECT_EQ(static_cast<int8_t>(block[2]), -127);
}

TEST(QuantizeTest, EncodesQ4ByTheSignedLargest) {
  std::vector<float> values(32, 0.0f);
  values[0] = 8.0f;  // the largest: becomes code 0 with a negative scale
  values[1] = -7.0f;
  values[16] = 1.0f;
  values[17] = -8.0f;  // as large, but later; its code would be 16 and is cut to 15
  const std::vector<uint8_t> block = Encode(DType::kQ4_0, values);
  EXPECT_EQ(U16(block.data()), FloatToHalf(-1.0f));
  EXPECT_EQ(block[2], 0 | 7 << 4);
  EXPECT_EQ(block[3], 15 | 15 << 4);
  EXPECT_EQ(block[4], 0x88);
}

TEST(QuantizeTest, EncodesZerosAndTinyValuesAsZeros) {
  for (const DType type : {DType::kQ8_0, DType::kQ4_0}) {
    for (const float magnitude : {0.0f, 1e-44f, 1e-38f}) {
      const std::vector<uint8_t> block = Encode(type, std::vector<float>(32, magnitude));
      std::vector<float> back(32, 1.0f);
      Dequantize(type, block.data(), 32, back.data());
      EXPECT_THAT(back, ::testing::Each(0.0f)) << DTypeName(type) << " " << magnitude;
    }
  }
}

TEST(QuantizeTest, ErrorIsWithinHalfAStep) {
  Rng rng(11);
  std::vector<float> values(32 * 200);
  for (float& value : values) value = static_cast<float>(rng.Normal());
  for (const DType type : {DType::kQ8_0, DType::kQ4_0}) {
    const std::vector<uint8_t> blocks = Encode(type, values);
    std::vector<float> back(values.size());
    Dequantize(type, blocks.data(), static_cast<int64_t>(back.size()), back.data());
    for (size_t i = 0; i < values.size(); ++i) {
      float largest = 0;
      for (size_t j = i / 32 * 32; j < i / 32 * 32 + 32; ++j) {
        largest = std::max(largest, std::fabs(values[j]));
      }
      // The f16 scale adds up to 127 * 2^-11 steps. Q4_0 has no code for +8 steps: the value
      // opposite to the largest is cut by one step.
      const float step = type == DType::kQ8_0 ? largest / 127 * 0.57f : largest / 8 * 1.01f;
      ASSERT_LE(std::fabs(values[i] - back[i]), step);
    }
  }
}

TEST(QuantizeTest, CopiesFloatsAndRoundsHalves) {
  const std::vector<float> values = {1.5f, -0.1f, kInfinity};
  EXPECT_EQ(std::memcmp(Encode(DType::kF32, values).data(), values.data(), 12), 0);
  EXPECT_EQ(U16(Encode(DType::kF16, values).data() + 2), FloatToHalf(-0.1f));
  EXPECT_EQ(U16(Encode(DType::kBF16, values).data() + 2), FloatToBfloat16(-0.1f));
}

TEST(QuantizeTest, RejectsWhatABlockCannotHold) {
  uint8_t out[36];
  for (const DType type : {DType::kQ8_0, DType::kQ4_0}) {
    for (const float bad : {kInfinity, -kInfinity, std::nanf(""), 1e30f}) {
      std::vector<float> values(32, 0.0f);
      values[9] = bad;
      EXPECT_EQ(Quantize(type, values, out).code(), absl::StatusCode::kInvalidArgument) << bad;
    }
  }
}

}  // namespace
}  // namespace fedge
