#include "common/model/linear.h"

#include <algorithm>

#include "common/base/status.h"
#include "common/tensor/row_ops.h"

namespace fedge {
namespace {

void CheckRows(const Linear& layer, const LinearRows& rows) {
  if (layer.rank == 0) return;
  FEDGE_CHECK(layer.lora.size() == rows.ends.size() && rows.ends.back() == rows.t, "layer with ",
              layer.lora.size(), " branches for ", rows.ends.size(), " parts of the rows");
}

// Runs body(branch, first row, rows) for each branch that has rows.
template <typename Body>
void ForEachBranch(const Linear& layer, const LinearRows& rows, const Body& body) {
  if (layer.rank == 0) return;
  int64_t begin = 0;
  for (size_t i = 0; i < rows.ends.size(); ++i) {
    if (rows.ends[i] > begin) body(i, begin, rows.ends[i] - begin);
    begin = rows.ends[i];
  }
}

void AddBias(const float* bias, int64_t t, int64_t out, float* y) {
  for (int64_t i = 0; i < t; ++i) RowAdd(bias, out, y + i * out);
}

void ForwardOne(const LinearForwardCall& call, const float* x, const LinearRows& rows,
                ThreadPool& pool) {
  const Linear& layer = *call.layer;
  const int64_t in = layer.weight.cols;
  const int64_t out = layer.weight.rows;
  const int64_t rank = layer.rank;
  CheckRows(layer, rows);
  ForEachBranch(layer, rows, [&](size_t i, int64_t begin, int64_t count) {
    MatMulForward(DenseView(layer.lora[i].a, rank, in), x + begin * in, count, 1, Accumulate::kNo,
                  call.u + begin * rank, pool);
  });
  if (call.y == nullptr) return;
  MatMulForward(layer.weight, x, rows.t, 1, Accumulate::kNo, call.y, pool);
  if (layer.bias != nullptr) AddBias(layer.bias, rows.t, out, call.y);
  ForEachBranch(layer, rows, [&](size_t i, int64_t begin, int64_t count) {
    MatMulBackward(DenseView(layer.lora[i].bt, rank, out), call.u + begin * rank, count,
                   layer.scale, Accumulate::kYes, call.y + begin * out, pool);
  });
}

void BackwardOne(const LinearBackwardCall& call, const float* x, const LinearRows& rows, float* du,
                 Accumulate accumulate, float* dx, ThreadPool& pool) {
  const Linear& layer = *call.layer;
  const LinearGradient& gradient = *call.gradient;
  const int64_t in = layer.weight.cols;
  const int64_t out = layer.weight.rows;
  const int64_t rank = layer.rank;
  CheckRows(layer, rows);
  if (gradient.weight != nullptr) {
    MatMulWeightGradient(call.dy, x, rows.t, out, in, 1, Accumulate::kYes, gradient.weight, pool);
  }
  if (gradient.bias != nullptr) {
    for (int64_t i = 0; i < rows.t; ++i) RowAdd(call.dy + i * out, out, gradient.bias);
  }
  if (dx != nullptr) MatMulBackward(layer.weight, call.dy, rows.t, 1, accumulate, dx, pool);
  ForEachBranch(layer, rows, [&](size_t i, int64_t begin, int64_t count) {
    const float* const dy = call.dy + begin * out;
    const LoraFactors& factors = layer.lora[i];
    const LoraFactorsGradient wanted =
        gradient.lora.empty() ? LoraFactorsGradient() : gradient.lora[i];
    if (wanted.bt != nullptr) {
      MatMulWeightGradient(call.u + begin * rank, dy, count, rank, out, layer.scale,
                           Accumulate::kYes, wanted.bt, pool);
    }
    if (wanted.a == nullptr && dx == nullptr) return;
    MatMulForward(DenseView(factors.bt, rank, out), dy, count, layer.scale, Accumulate::kNo, du,
                  pool);
    if (wanted.a != nullptr) {
      MatMulWeightGradient(du, x + begin * in, count, rank, in, 1, Accumulate::kYes, wanted.a,
                           pool);
    }
    if (dx != nullptr) {
      MatMulBackward(DenseView(factors.a, rank, in), du, count, 1, Accumulate::kYes,
                     dx + begin * in, pool);
    }
  });
}

}  // namespace

void LinearForward(absl::Span<const LinearForwardCall> calls, const float* x,
                   const LinearRows& rows, ThreadPool& pool) {
  for (const LinearForwardCall& call : calls) ForwardOne(call, x, rows, pool);
}

void LinearBackward(absl::Span<const LinearBackwardCall> calls, const float* x,
                    const LinearRows& rows, float* du, Accumulate accumulate, float* dx,
                    ThreadPool& pool) {
  for (const LinearBackwardCall& call : calls) {
    BackwardOne(call, x, rows, du, accumulate, dx, pool);
    accumulate = Accumulate::kYes;
  }
}

int64_t LinearScratch(absl::Span<const LinearBackwardCall> calls, int64_t t) {
  int64_t rank = 0;
  for (const LinearBackwardCall& call : calls) rank = std::max(rank, call.layer->rank);
  return t * rank;
}

}  // namespace fedge
