// The forward product for a few rows (decoding token by token): the weight is read once and decoded
// straight into dot products, without panels. fp32. See ForwardGroup, which calls it.
#ifndef FEDGE_COMMON_TENSOR_VECTOR_PRODUCT_H_
#define FEDGE_COMMON_TENSOR_VECTOR_PRODUCT_H_

#include "absl/types/span.h"
#include "common/base/thread_pool.h"
#include "common/tensor/linear_group.h"

namespace fedge {

// At most kMaxVectorRows rows.
void ForwardVectors(absl::Span<const ForwardLayer> layers, const float* x, const LinearRows& rows,
                    Accumulate accumulate, ThreadPool& pool);

}  // namespace fedge

#endif  // FEDGE_COMMON_TENSOR_VECTOR_PRODUCT_H_
