// Linear layers with LoRA, y = W x + bias + scale * B (A x), several that read the same input at
// once (q, k, v; gate, up), forward and backward.
//
// The rows of a call may belong to several adapters (a batch of virtual nodes over one frozen
// base): the base product is shared, each adapter's branch sees its own rows only.
#ifndef FEDGE_COMMON_MODEL_LINEAR_H_
#define FEDGE_COMMON_MODEL_LINEAR_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/base/thread_pool.h"
#include "common/model/dropout.h"
#include "common/model/ops.h"
#include "common/tensor/dtype.h"
#include "common/tensor/linear_group.h"
#include "common/tensor/matmul.h"

namespace fedge {

struct Linear {
  WeightMatrix weight;            // [out, in]
  const float* bias = nullptr;    // [out], or none
  int64_t rank = 0;               // of every branch; 0: no adapter
  float scale = 0;                // alpha / rank
  std::vector<LoraFactors> lora;  // one for each branch of rows; empty when rank is 0
  uint64_t stream = 0;            // of its dropout mask
  // Of the products with `weight`; in a group the first layer's counts for all.
  Precision precision = Precision::kFloat32;
};

// Where gradients are added; null: not wanted.
struct LinearGradient {
  float* weight = nullptr;                // [out, in]
  float* bias = nullptr;                  // [out]
  std::vector<LoraFactorsGradient> lora;  // as Linear::lora, or empty: none wanted
};

// What one layer of a group reads and writes.
struct LinearForwardCall {
  const Linear* layer = nullptr;
  float* u = nullptr;  // [t, rank] = x A^T, kept for the gradient; unused when rank is 0
  float* y = nullptr;  // [t, out]; null: only u is computed
};
struct LinearBackwardCall {
  const Linear* layer = nullptr;
  const LinearGradient* gradient = nullptr;
  const float* u = nullptr;   // from the forward call
  const float* dy = nullptr;  // [t, out]
};

// Dropout of what each branch reads, one entry for each. It takes the branches out of the group's
// shared passes (the group packs its input once, and under dropout every layer reads another), and
// two buffers of [t, in].
struct BranchDropout {
  absl::Span<const Dropout> branches;
  FloatBuffer* dropped = nullptr;
  FloatBuffer* gradient = nullptr;
  FloatBuffer* du = nullptr;  // [t, rank]
};

// All layers of `calls` have the same input width; x [t, in]. `dropout`: null for none; the same in
// both directions.
void LinearForward(absl::Span<const LinearForwardCall> calls, const float* x,
                   const LinearRows& rows, ThreadPool& pool,
                   const BranchDropout* dropout = nullptr);
// dx [t, in] (+)= the sum of the layers' input gradients, unless null.
void LinearBackward(absl::Span<const LinearBackwardCall> calls, const float* x,
                    const LinearRows& rows, Accumulate accumulate, float* dx, ThreadPool& pool,
                    const BranchDropout* dropout = nullptr);

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_LINEAR_H_
