// How a call of BackwardGroup is cut into tasks, and what they share.
#ifndef FEDGE_COMMON_TENSOR_BACKWARD_PLAN_H_
#define FEDGE_COMMON_TENSOR_BACKWARD_PLAN_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/tensor/linear_group.h"

namespace fedge {

// A layer's operands in bf16. Rows are padded with zeros to whole vectors.
struct RoundedLayer {
  uint16_t* dy = nullptr;  // blocks of kMaxDepth columns, each [t][dy_stride]
  int64_t dy_stride = 0;
  uint16_t* bt = nullptr;  // [branches][rank][bt_stride]
  int64_t bt_stride = 0;
  uint16_t* du = nullptr;  // [t][du_stride]
  int64_t du_stride = 0;
  // [rank][t_stride]: row t of branch i in column t + i. The column after a branch is zero, so that
  // an odd number of rows makes whole pairs.
  uint16_t* du_t = nullptr;
  uint16_t* u_t = nullptr;
  int64_t t_stride = 0;
};

struct BackwardPlan {
  absl::Span<const BackwardLayer> layers;
  const float* x = nullptr;
  LinearRows rows;
  int64_t in = 0;
  bool bf16 = false;
  bool accumulate = false;
  float* dx = nullptr;
  std::vector<RoundedLayer> rounded;  // of each layer, when bf16
};

// Before anything else, when bf16.
struct FactorTask {
  size_t layer;
  size_t branch;
};

// Step 1.
struct RowsTask {
  size_t layer;
  int64_t begin, end;
};

// Step 2.
struct ColumnsTask {
  enum Kind { kInput, kFactorA, kFactorB } kind;
  size_t layer;  // of kFactorB
  int64_t column_begin, column_end;
  int64_t row_begin, row_end;  // of kInput
};

}  // namespace fedge

#endif  // FEDGE_COMMON_TENSOR_BACKWARD_PLAN_H_
