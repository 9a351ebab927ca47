// Encoders: exact layouts of small blocks, error bounds, and the same bytes on every target.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/base/rng.h"
#include "common/tensor/quantize.h"
#include "hwy/highway.h"

namespace fedge {
namespace {

constexpr DType kBlockTypes[] = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                                 DType::kQ8_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

std::vector<uint8_t> Encode(DType type, const std::vector<float>& values) {
  std::vector<uint8_t> out(
      static_cast<size_t>(RowBytes(type, static_cast<int64_t>(values.size()))));
  EXPECT_TRUE(Quantize(type, values, out.data()).ok());
  return out;
}

std::vector<float> RoundTrip(DType type, const std::vector<float>& values) {
  const std::vector<uint8_t> blocks = Encode(type, values);
  std::vector<float> back(values.size());
  Dequantize(type, blocks.data(), static_cast<int64_t>(back.size()), back.data());
  return back;
}

std::vector<float> NormalValues(size_t count, uint64_t seed, double deviation = 1) {
  Rng rng(seed);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(deviation * rng.Normal());
  return values;
}

double RelativeRmse(const std::vector<float>& values, const std::vector<float>& back) {
  double error = 0;
  double power = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double x = static_cast<double>(values[i]);
    error += (static_cast<double>(back[i]) - x) * (static_cast<double>(back[i]) - x);
    power += x * x;
  }
  return std::sqrt(error / power);
}

// Of normally distributed values; bounds on both sides, a surprisingly small error is a bug too.
TEST(QuantizeEncodeTest, ErrorOfNormalValuesIsWhatTheBitsAllow) {
  const std::vector<float> values = NormalValues(256 * 200, 21);
  const std::vector<std::pair<DType, double>> expected = {
      {DType::kQ4_0, 0.0860}, {DType::kQ4_1, 0.0783},  {DType::kQ5_0, 0.0427},
      {DType::kQ5_1, 0.0379}, {DType::kQ8_0, 0.00535}, {DType::kQ4_K, 0.0708},
      {DType::kQ5_K, 0.0349}, {DType::kQ6_K, 0.01745}};
  for (const auto& [type, error] : expected) {
    EXPECT_NEAR(RelativeRmse(values, RoundTrip(type, values)), error, 0.02 * error)
        << DTypeName(type);
  }
}

TEST(QuantizeEncodeTest, IsTheSameOnEveryTarget) {
  std::vector<float> values = NormalValues(256 * 12, 5, 0.03);
  for (size_t i = 0; i < values.size(); i += 37) values[i] *= 20;  // outliers
  std::fill(values.begin() + 512, values.begin() + 560, 0.25f);
  for (const DType type : kBlockTypes) {
    const std::vector<uint8_t> expected = Encode(type, values);
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      hwy::SetSupportedTargetsForTest(target);
      EXPECT_EQ(Encode(type, values), expected) << DTypeName(type) << hwy::TargetName(target);
    }
    hwy::SetSupportedTargetsForTest(0);
  }
}

TEST(QuantizeEncodeTest, ZerosAndTinyValuesBecomeZeros) {
  for (const DType type : kBlockTypes) {
    for (const float magnitude : {0.0f, 1e-44f, 1e-38f, 1e-20f}) {
      const std::vector<float> back = RoundTrip(type, std::vector<float>(256, magnitude));
      EXPECT_THAT(back, ::testing::Each(0.0f)) << DTypeName(type) << " " << magnitude;
    }
  }
}

TEST(QuantizeEncodeTest, RejectsWhatABlockCannotHold) {
  uint8_t out[34 * 8];
  for (const DType type : kBlockTypes) {
    for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf(""), -1e30f}) {
      std::vector<float> values(256, 0.5f);
      values[200] = bad;
      EXPECT_EQ(Quantize(type, values, out).code(), absl::StatusCode::kInvalidArgument)
          << DTypeName(type) << " " << bad;
    }
  }
}

TEST(QuantizeEncodeTest, HoldsTheLargestMagnitudeItAccepts) {
  const std::vector<std::pair<DType, float>> limits = {
      {DType::kQ4_0, 8 * 65504.0f},  {DType::kQ4_1, 65504.0f},       {DType::kQ5_0, 16 * 65504.0f},
      {DType::kQ5_1, 65504.0f},      {DType::kQ8_0, 127 * 65504.0f}, {DType::kQ4_K, 60 * 65504.0f},
      {DType::kQ5_K, 60 * 65504.0f}, {DType::kQ6_K, 4000 * 65504.0f}};
  for (const auto& [type, limit] : limits) {
    std::vector<float> values(256, -limit);
    for (size_t i = 0; i < values.size(); i += 3) values[i] = limit / 2;
    const std::vector<float> back = RoundTrip(type, values);
    for (size_t i = 0; i < back.size(); ++i) {
      ASSERT_NEAR(back[i], values[i], 0.1f * limit) << DTypeName(type) << " " << i;
    }
    values[7] = -limit * 1.01f;
    std::vector<uint8_t> out(34 * 8);
    EXPECT_FALSE(Quantize(type, values, out.data()).ok()) << DTypeName(type);
  }
}

TEST(QuantizeEncodeTest, EncodesQ4WithMinFromTheSmallest) {
  std::vector<float> values(32, -1.0f);
  values[1] = 14.0f;  // code 15
  values[16] = 2.4f;  // 3.4
  values[31] = 2.6f;  // 3.6
  const std::vector<uint8_t> block = Encode(DType::kQ4_1, values);
  EXPECT_EQ(block[0] | block[1] << 8, FloatToHalf(1.0f));
  EXPECT_EQ(block[2] | block[3] << 8, FloatToHalf(-1.0f));
  EXPECT_EQ(block[4], 0 | 3 << 4);
  EXPECT_EQ(block[5], 15);
  EXPECT_EQ(block[19], 0 | 4 << 4);
}

TEST(QuantizeEncodeTest, EncodesFifthBitsApart) {
  std::vector<float> values(32, 0.0f);
  values[0] = -16.0f;  // scale 1: code 0
  values[1] = 15.0f;   // code 31
  values[17] = 3.0f;   // code 19
  const std::vector<uint8_t> q5 = Encode(DType::kQ5_0, values);
  EXPECT_EQ(q5[0] | q5[1] << 8, FloatToHalf(1.0f));
  EXPECT_EQ(q5[2], 0xfe);  // all but value 0 have 16 in their code
  EXPECT_EQ(q5[3] & q5[4] & q5[5], 0xff);
  EXPECT_EQ(q5[6], 0);
  EXPECT_EQ(q5[7], 15 | 3 << 4);

  values[0] = 0;
  values[1] = 31.0f;
  const std::vector<uint8_t> q51 = Encode(DType::kQ5_1, values);
  EXPECT_EQ(q51[4], 2);
  EXPECT_EQ(q51[5] | q51[6] | q51[7], 0);
  EXPECT_EQ(q51[9], 15 | 3 << 4);
}

// Values that the format can hold exactly come back exactly.
TEST(QuantizeEncodeTest, FindsTheCodesOfExactSuperBlocks) {
  for (const DType type : {DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    const int top = type == DType::kQ4_K ? 15 : 31;
    Rng rng(8);
    std::vector<float> values(256);
    for (size_t i = 0; i < values.size(); ++i) {
      // Every sub-block reaches both ends of its codes.
      const int code = i % 16 == 0 ? 0 : i % 16 == 1 ? top : static_cast<int>(rng.Below(16));
      const int scale = i < 32 ? 63 : 20 + static_cast<int>(i / 32);
      values[i] = type == DType::kQ6_K ? 0.5f * static_cast<float>(i < 32 ? -128 : 64) *
                                             static_cast<float>(code == 0 ? -32 : code)
                                       : 0.5f * static_cast<float>(scale * code) -
                                             0.25f * static_cast<float>(i < 32 ? 63 : 40);
    }
    const std::vector<float> back = RoundTrip(type, values);
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_NEAR(back[i], values[i], 1e-3f * std::fabs(values[i])) << DTypeName(type) << " " << i;
    }
  }
}

// A sub-block of one value, and values on one side of zero only.
TEST(QuantizeEncodeTest, HoldsConstantsAndOneSidedValues) {
  std::vector<float> values(256);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = i < 32 ? -0.7f : i < 64 ? 0.7f : 0.5f + 0.001f * static_cast<float>(i);
  }
  for (const DType type : {DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    const std::vector<float> back = RoundTrip(type, values);
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_NEAR(back[i], values[i], 0.032f) << DTypeName(type) << " " << i;
    }
  }
}

}  // namespace
}  // namespace fedge
