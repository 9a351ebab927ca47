// Quantize(), and the encoders of the 32-element blocks. The build forbids contraction of a * b +
// c, so every machine writes the same bytes.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/tensor/quantize.h"
#include "common/tensor/quantize_k.h"

namespace fedge {
namespace {

constexpr int64_t kBlock = 32;
constexpr float kMaxHalf = 65504.0f;

void StoreHalf(float value, uint8_t* out) {
  const uint16_t half = FloatToHalf(value);
  std::memcpy(out, &half, sizeof(half));
}

// 1 / d, or 0 where the quotient is no number: a scale that small is stored as 0 anyway.
float InverseScale(float d) {
  const float inverse = d == 0 ? 0.0f : 1.0f / d;
  return std::isfinite(inverse) ? inverse : 0.0f;
}

// What the scale of a block is computed from.
struct Extremes {
  float largest = 0;  // the value of largest magnitude, the first of equals
  float min = 0;
  float max = 0;
};

Extremes ExtremesOf(const float* x, int64_t count) {
  Extremes result;
  result.min = result.max = x[0];
  for (int64_t j = 0; j < count; ++j) {
    if (std::fabs(x[j]) > std::fabs(result.largest)) result.largest = x[j];
    result.min = std::min(result.min, x[j]);
    result.max = std::max(result.max, x[j]);
  }
  return result;
}

void EncodeQ8_0(const float* x, const Extremes& extremes, uint8_t* out) {
  const float d = std::fabs(extremes.largest) / 127.0f;
  const float inverse = InverseScale(d);
  StoreHalf(d, out);
  for (int64_t j = 0; j < kBlock; ++j) {
    out[2 + j] = static_cast<uint8_t>(static_cast<int8_t>(std::round(x[j] * inverse)));
  }
}

// Codes of 4 bits: low nibbles are the first half of the block.
template <typename Code>
void StoreNibbles(Code code, uint8_t* qs) {
  for (int64_t j = 0; j < kBlock / 2; ++j) {
    qs[j] = static_cast<uint8_t>((code(j) & 15) | (code(j + kBlock / 2) & 15) << 4);
  }
}

// The fifth bits, one a value.
template <typename Code>
void StoreFifthBits(Code code, uint8_t* qh) {
  uint32_t bits = 0;
  for (int64_t j = 0; j < kBlock; ++j) bits |= static_cast<uint32_t>(code(j) >> 4 & 1) << j;
  std::memcpy(qh, &bits, sizeof(bits));
}

// Q4_0 and Q5_0: the value of largest magnitude becomes code 0, so the scale has the other sign.
void EncodeSymmetric(bool five_bits, const float* x, const Extremes& extremes, uint8_t* out) {
  const int zero = five_bits ? 16 : 8;
  const float d = extremes.largest / static_cast<float>(-zero);
  const float inverse = InverseScale(d);
  const float middle = static_cast<float>(zero) + 0.5f;
  const auto code = [&](int64_t j) {
    return std::clamp(static_cast<int>(x[j] * inverse + middle), 0, 2 * zero - 1);
  };
  StoreHalf(d, out);
  if (five_bits) StoreFifthBits(code, out + 2);
  StoreNibbles(code, out + (five_bits ? 6 : 2));
}

// Q4_1 and Q5_1: codes count from the smallest value.
void EncodeWithMin(bool five_bits, const float* x, const Extremes& extremes, uint8_t* out) {
  const int top = five_bits ? 31 : 15;
  const float d = (extremes.max - extremes.min) / static_cast<float>(top);
  const float inverse = InverseScale(d);
  const auto code = [&](int64_t j) {
    return std::min(static_cast<int>((x[j] - extremes.min) * inverse + 0.5f), top);
  };
  StoreHalf(d, out);
  StoreHalf(extremes.min, out + 2);
  if (five_bits) StoreFifthBits(code, out + 4);
  StoreNibbles(code, out + (five_bits ? 8 : 4));
}

// The largest magnitude whose scale (or minimum) fits f16.
float MagnitudeLimit(DType type) {
  switch (type) {
    case DType::kQ8_0:
      return 127 * kMaxHalf;
    case DType::kQ4_0:
      return 8 * kMaxHalf;
    case DType::kQ5_0:
      return 16 * kMaxHalf;
    case DType::kQ4_K:
    case DType::kQ5_K:
      return 60 * kMaxHalf;
    case DType::kQ6_K:
      return 4000 * kMaxHalf;
    default:  // Q4_1 and Q5_1 store the minimum itself
      return kMaxHalf;
  }
}

absl::Status CheckBlock(DType type, const float* x, size_t first, int64_t count,
                        float largest_magnitude) {
  // Infinities show in the extremes, NaNs only in the values.
  const bool finite = std::all_of(x, x + count, [](float value) { return std::isfinite(value); });
  if (finite && largest_magnitude <= MagnitudeLimit(type)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "values ", first, " to ", first + static_cast<size_t>(count) - 1, ": ",
      finite ? absl::StrCat("magnitude ", largest_magnitude, " is too large") : "not all finite",
      " for ", DTypeName(type)));
}

absl::Status EncodeBlocks(DType type, absl::Span<const float> values, uint8_t* out) {
  const int64_t elements = BlockElements(type);
  for (size_t first = 0; first < values.size();
       first += static_cast<size_t>(elements), out += BlockBytes(type)) {
    const float* const x = values.data() + first;
    const Extremes extremes = ExtremesOf(x, elements);
    RETURN_IF_ERROR(CheckBlock(type, x, first, elements, std::fabs(extremes.largest)));
    switch (type) {
      case DType::kQ8_0:
        EncodeQ8_0(x, extremes, out);
        break;
      case DType::kQ4_0:
      case DType::kQ5_0:
        EncodeSymmetric(type == DType::kQ5_0, x, extremes, out);
        break;
      case DType::kQ4_1:
      case DType::kQ5_1:
        EncodeWithMin(type == DType::kQ5_1, x, extremes, out);
        break;
      default:
        EncodeSuperBlocks(type, x, elements, out);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Quantize(DType type, absl::Span<const float> values, uint8_t* out) {
  FEDGE_CHECK(static_cast<int64_t>(values.size()) % BlockElements(type) == 0, values.size(),
              " values of ", DTypeName(type));
  switch (type) {
    case DType::kF32:
      if (!values.empty()) std::memcpy(out, values.data(), values.size() * sizeof(float));
      return absl::OkStatus();
    case DType::kF16:
      for (size_t i = 0; i < values.size(); ++i) StoreHalf(values[i], out + 2 * i);
      return absl::OkStatus();
    case DType::kBF16:
      for (size_t i = 0; i < values.size(); ++i) {
        const uint16_t bits = FloatToBfloat16(values[i]);
        std::memcpy(out + 2 * i, &bits, sizeof(bits));
      }
      return absl::OkStatus();
    default:
      return EncodeBlocks(type, values, out);
  }
}

}  // namespace fedge
