// Block quantization: exact decoding of every supported type, encoding of F16, BF16, Q8_0, Q4_0.
//
// Layouts are those of ggml-common.h (llama.cpp): 32-element blocks for Q4_0..Q8_0, 256-element
// super-blocks for the K types, f16 scales.
#ifndef FEDGE_COMMON_TENSOR_QUANTIZE_H_
#define FEDGE_COMMON_TENSOR_QUANTIZE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/tensor/dtype.h"

namespace fedge {

float HalfToFloat(uint16_t half);   // IEEE binary16
uint16_t FloatToHalf(float value);  // round to nearest even; overflow becomes infinity
float Bfloat16ToFloat(uint16_t bits);
uint16_t FloatToBfloat16(float value);  // round to nearest even; NaN stays NaN

// Decodes `count` values (a multiple of BlockElements) from `blocks` to `out`.
void Dequantize(DType type, const uint8_t* blocks, int64_t count, float* out);

// Encodes `values` (size a multiple of BlockElements) to `out` (RowBytes bytes). Unimplemented for
// a type that has no encoder yet. Same rounding as llama.cpp's reference quantizers.
absl::Status Quantize(DType type, absl::Span<const float> values, uint8_t* out);

}  // namespace fedge

#endif  // FEDGE_COMMON_TENSOR_QUANTIZE_H_
