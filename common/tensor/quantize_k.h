// Encoders of the K types, for Quantize(). Not for others: use quantize.h.
#ifndef FEDGE_COMMON_TENSOR_QUANTIZE_K_H_
#define FEDGE_COMMON_TENSOR_QUANTIZE_K_H_

#include <cstdint>

#include "common/tensor/dtype.h"

namespace fedge {

inline constexpr int kSuperBlock = 256;  // elements

// Encodes `count` finite values (a multiple of kSuperBlock) as Q4_K, Q5_K or Q6_K. Magnitudes are
// at most 60 (Q6_K: 4000) times f16's largest value, so that every scale fits.
void EncodeSuperBlocks(DType type, const float* values, int64_t count, uint8_t* out);

}  // namespace fedge

#endif  // FEDGE_COMMON_TENSOR_QUANTIZE_K_H_
