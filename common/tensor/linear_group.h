// Products of linear layers that read the same input (q, k, v; gate, up), with their low-rank
// branches (LoRA, Hu et al. 2021) inside the same passes over memory:
//
//   forward    [y_1 | y_2 | ..] = x [W_1^T | W_2^T | ..] + s u_i B_i^T,    u_i = x A_i^T
//   backward   dx = sum_i dy_i W_i + du_i A_i,  du_i = s dy_i B_i,  dA_i += du_i^T x,
//              dB_i += s dy_i^T u_i
//
// x is packed once for the group; the packing tasks also compute u, while the tile is in cache. The
// branch is added to a tile of y or dx as a few more steps of the depth of its sum, before the tile
// leaves the cache.
//
// All products follow `Precision`, those of the branches too; sums and results are fp32. Each sum
// has one order and one owner: the same bits for any number of threads.
#ifndef FEDGE_COMMON_TENSOR_LINEAR_GROUP_H_
#define FEDGE_COMMON_TENSOR_LINEAR_GROUP_H_

#include <cstdint>

#include "absl/types/span.h"
#include "common/base/thread_pool.h"
#include "common/tensor/dtype.h"
#include "common/tensor/matmul.h"

namespace fedge {

// One adapter's factors of a layer.
struct LoraFactors {
  const float* a = nullptr;   // [rank, in]
  const float* bt = nullptr;  // B transposed, [rank, out]
};
// Where their gradients are added; null: not wanted.
struct LoraFactorsGradient {
  float* a = nullptr;   // [rank, in]
  float* bt = nullptr;  // [rank, out]
};

// Rows of a call and whose they are: branch i owns the rows [ends[i-1], ends[i]), ends.back() == t.
struct LinearRows {
  int64_t t = 0;
  absl::Span<const int64_t> ends;
};

// The low-rank branches of one layer, one for each part of the rows; none when rank is 0.
struct LowRank {
  int64_t rank = 0;
  float scale = 0;
  absl::Span<const LoraFactors> factors;
};

struct ForwardLayer {
  WeightMatrix w;
  float scale = 1;              // of x W^T
  const float* bias = nullptr;  // [out], or none
  LowRank lora;
  float* u = nullptr;  // [t, rank]; unused when the rank is 0
  float* y = nullptr;  // [t, out]; null: only u is computed
};
// x [t, in], the same width for all layers. y (+)= ...
void ForwardGroup(absl::Span<const ForwardLayer> layers, const float* x, const LinearRows& rows,
                  Precision precision, Accumulate accumulate, ThreadPool& pool);

struct BackwardLayer {
  WeightMatrix w;
  float scale = 1;  // of dy W
  LowRank lora;
  absl::Span<const LoraFactorsGradient> gradient;  // as lora.factors, or empty: none wanted
  const float* u = nullptr;                        // from the forward call
  const float* dy = nullptr;                       // [t, out]
};
// dx [t, in] (+)= the sum over the layers, unless null.
void BackwardGroup(absl::Span<const BackwardLayer> layers, const float* x, const LinearRows& rows,
                   Precision precision, Accumulate accumulate, float* dx, ThreadPool& pool);

}  // namespace fedge

#endif  // FEDGE_COMMON_TENSOR_LINEAR_GROUP_H_
