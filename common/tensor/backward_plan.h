// How a call of BackwardGroup is cut into tasks, and what they share.
#ifndef FEDGE_COMMON_TENSOR_BACKWARD_PLAN_H_
#define FEDGE_COMMON_TENSOR_BACKWARD_PLAN_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/tensor/linear_group.h"

namespace fedge {

// What is prepared of a layer. Rows of bf16 are padded with zeros to a multiple of 32.
struct PreparedLayer {
  int64_t column = 0;  // where the layer's ranks begin in a row of du; even
  // B of each branch as the operand that is read in vectors, [out][lanes] with the ranks rounded up
  // to vectors; fp32 or pairs of bf16.
  void* factor = nullptr;
  int64_t factor_size = 0;   // elements of one branch
  int64_t factor_lanes = 0;  // rank, rounded up to vectors
  // In bf16 only. dy: blocks of kMaxDepth columns, each [t][dy_stride].
  uint16_t* dy = nullptr;
  int64_t dy_stride = 0;
  uint16_t* u_pairs = nullptr;  // [pairs of rows][u_stride][2]
  int64_t u_stride = 0;
};

struct BackwardPlan {
  absl::Span<const BackwardLayer> layers;
  const float* x = nullptr;
  LinearRows rows;
  int64_t in = 0;
  bool bf16 = false;
  bool accumulate = false;
  float* dx = nullptr;
  float* du = nullptr;  // [t][du_columns], the layers side by side
  int64_t du_columns = 0;
  uint16_t* du_rounded = nullptr;  // [t][du_stride]
  uint16_t* du_pairs = nullptr;    // [pairs of rows][du_stride][2]
  int64_t du_stride = 0;
  std::vector<PreparedLayer> prepared;
};

// Pairs of rows of a branch that begins at row `begin`: no branch shares one with another.
inline int64_t FirstPair(size_t branch, int64_t begin) {
  return (begin + static_cast<int64_t>(branch)) / 2;
}

// Before anything else: one branch's B.
struct FactorTask {
  size_t layer;
  size_t branch;
};

// Step 1: rows of one branch.
struct RowsTask {
  size_t branch;
  int64_t branch_begin;
  int64_t begin, end;  // begin - branch_begin is even
};
inline constexpr int64_t kMaxPreparedRows = 48;

// Step 2.
struct ColumnsTask {
  enum Kind { kInput, kFactorA, kFactorB } kind;
  size_t layer;  // of kFactorB
  int64_t column_begin, column_end;
  int64_t row_begin, row_end;  // of kInput
};

}  // namespace fedge

#endif  // FEDGE_COMMON_TENSOR_BACKWARD_PLAN_H_
