// Block quantization: exact decoding and encoding of every supported type.
//
// Layouts are those of ggml-common.h (llama.cpp): 32-element blocks for Q4_0..Q8_0, 256-element
// super-blocks for the K types, f16 scales.
#ifndef FEDGE_COMMON_TENSOR_QUANTIZE_H_
#define FEDGE_COMMON_TENSOR_QUANTIZE_H_

#include <bit>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/tensor/dtype.h"

namespace fedge {

// IEEE binary16, exact. Without branches, so that loops over it vectorize.
inline float HalfToFloat(uint16_t half) {
  const uint32_t magnitude = half & 0x7fffu;
  const uint32_t exponent = magnitude & 0x7c00u;
  // Masks by arithmetic: of conditions the compiler makes branches, and loops stay scalar.
  const uint32_t is_special = 0u - ((exponent + 0x400u) >> 15);  // infinity and NaN
  const uint32_t is_subnormal = static_cast<uint32_t>(static_cast<int32_t>(exponent - 1u) >> 31);
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  const uint32_t normal = (magnitude << 13) + (112u << 23) + ((112u << 23) & is_special);
  const uint32_t bits =
      (normal & ~is_subnormal) | (std::bit_cast<uint32_t>(subnormal) & is_subnormal);
  return std::bit_cast<float>(bits | (half & 0x8000u) << 16);
}

// Round to nearest even; overflow becomes infinity, NaN stays NaN.
inline uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude >= 0x47800000u) {  // 65536 and more
    half = magnitude > 0x7f800000u ? 0x7e00u | ((magnitude >> 13) & 0x3ffu) : 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds at 2^-24
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<uint16_t>(half | (bits >> 16 & 0x8000u));
}

inline float Bfloat16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Round to nearest even; NaN stays NaN.
inline uint16_t FloatToBfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 64u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Decodes `count` values (a multiple of BlockElements) from `blocks` to `out`. `blocks` need not be
// aligned. Compiled for each SIMD target and chosen at run time; all targets give the same bits.
void Dequantize(DType type, const uint8_t* blocks, int64_t count, float* out);

// Encodes `values` (size a multiple of BlockElements) to `out` (RowBytes bytes); a pure function of
// the values, the same bytes on every SIMD target.
//
// F16 and BF16 round to nearest even. Q4_0..Q8_0 take the scale from the extreme values, with the
// rounding of llama.cpp's reference quantizers. The K types search scale and minimum of each
// sub-block by weighted least squares (quantize_k.cc): some 25 million values a second and thread.
//
// InvalidArgument when a block holds a NaN, an infinity or a value whose scale does not fit f16.
absl::Status Quantize(DType type, absl::Span<const float> values, uint8_t* out);

}  // namespace fedge

#endif  // FEDGE_COMMON_TENSOR_QUANTIZE_H_
