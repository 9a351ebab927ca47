#include "common/model/linear.h"

#include <algorithm>

#include "absl/container/inlined_vector.h"
#include "common/tensor/row_ops.h"

namespace fedge {
namespace {

// Groups are small: q, k and v at most.
constexpr size_t kGroup = 3;

LowRank BranchesOf(const Linear& layer) {
  if (layer.rank == 0) return {};
  return {layer.rank, layer.scale, layer.lora};
}

// Gradients of full fine-tuning, which adapters do not need.
void AddDenseGradients(const LinearBackwardCall& call, const float* x, int64_t t,
                       ThreadPool& pool) {
  const LinearGradient& gradient = *call.gradient;
  const int64_t in = call.layer->weight.cols;
  const int64_t out = call.layer->weight.rows;
  if (gradient.weight != nullptr) {
    MatMulWeightGradient(call.dy, x, t, out, in, 1, Accumulate::kYes, gradient.weight, pool);
  }
  if (gradient.bias == nullptr) return;
  for (int64_t i = 0; i < t; ++i) RowAdd(call.dy + i * out, out, gradient.bias);
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

// u = drop(x) A^T, y += scale u B^T
void AddDroppedBranch(const LinearForwardCall& call, const float* x, const LinearRows& rows,
                      const BranchDropout& dropout, ThreadPool& pool) {
  const Linear& layer = *call.layer;
  const int64_t in = layer.weight.cols;
  const int64_t out = layer.weight.rows;
  const int64_t rank = layer.rank;
  if (rank == 0) return;
  float* const dropped = dropout.dropped->Get(rows.t * in);
  ForEachBranch(layer, rows, [&](size_t i, int64_t begin, int64_t count) {
    DropValues(dropout.branches[i], layer.stream, x + begin * in, count, in, dropped + begin * in,
               pool);
    MatMulForward(DenseView(layer.lora[i].a, rank, in), dropped + begin * in, count, 1,
                  Accumulate::kNo, call.u + begin * rank, pool);
    if (call.y == nullptr) return;
    MatMulBackward(DenseView(layer.lora[i].bt, rank, out), call.u + begin * rank, count,
                   layer.scale, Accumulate::kYes, call.y + begin * out, pool);
  });
}

// The gradients of AddDroppedBranch; dx += its input's, unless null.
void AddDroppedGradients(const LinearBackwardCall& call, const float* x, const LinearRows& rows,
                         const BranchDropout& dropout, float* dx, ThreadPool& pool) {
  const Linear& layer = *call.layer;
  const int64_t in = layer.weight.cols;
  const int64_t out = layer.weight.rows;
  const int64_t rank = layer.rank;
  if (rank == 0) return;
  float* const dropped = dropout.dropped->Get(rows.t * in);
  float* const gradient = dropout.gradient->Get(rows.t * in);
  float* const du = dropout.du->Get(rows.t * rank);
  ForEachBranch(layer, rows, [&](size_t i, int64_t begin, int64_t count) {
    DropValues(dropout.branches[i], layer.stream, x + begin * in, count, in, dropped + begin * in,
               pool);
    const float* const dy = call.dy + begin * out;
    const LoraFactorsGradient wanted =
        call.gradient->lora.empty() ? LoraFactorsGradient() : call.gradient->lora[i];
    MatMulForward(DenseView(layer.lora[i].bt, rank, out), dy, count, layer.scale, Accumulate::kNo,
                  du, pool);
    if (wanted.bt != nullptr) {
      MatMulWeightGradient(call.u + begin * rank, dy, count, rank, out, layer.scale,
                           Accumulate::kYes, wanted.bt, pool);
    }
    if (wanted.a != nullptr) {
      MatMulWeightGradient(du, dropped + begin * in, count, rank, in, 1, Accumulate::kYes, wanted.a,
                           pool);
    }
    if (dx == nullptr) return;
    MatMulBackward(DenseView(layer.lora[i].a, rank, in), du, count, 1, Accumulate::kNo,
                   gradient + begin * in, pool);
    AddDroppedGradient(dropout.branches[i], layer.stream, gradient + begin * in, count, in,
                       dx + begin * in, pool);
  });
}

}  // namespace

void LinearForward(absl::Span<const LinearForwardCall> calls, const float* x,
                   const LinearRows& rows, ThreadPool& pool, const BranchDropout* dropout) {
  if (calls.empty()) return;
  absl::InlinedVector<ForwardLayer, kGroup> layers;
  for (const LinearForwardCall& call : calls) {
    ForwardLayer layer;
    layer.w = call.layer->weight;
    layer.bias = call.layer->bias;
    if (dropout == nullptr) layer.lora = BranchesOf(*call.layer);
    layer.u = call.u;
    layer.y = call.y;
    layers.push_back(layer);
  }
  ForwardGroup(layers, x, rows, calls[0].layer->precision, Accumulate::kNo, pool);
  if (dropout == nullptr) return;
  for (const LinearForwardCall& call : calls) AddDroppedBranch(call, x, rows, *dropout, pool);
}

void LinearBackward(absl::Span<const LinearBackwardCall> calls, const float* x,
                    const LinearRows& rows, Accumulate accumulate, float* dx, ThreadPool& pool,
                    const BranchDropout* dropout) {
  if (calls.empty()) return;
  absl::InlinedVector<BackwardLayer, kGroup> layers;
  for (const LinearBackwardCall& call : calls) {
    AddDenseGradients(call, x, rows.t, pool);
    BackwardLayer layer;
    layer.w = call.layer->weight;
    if (dropout == nullptr) layer.lora = BranchesOf(*call.layer);
    if (dropout == nullptr) layer.gradient = call.gradient->lora;
    layer.u = call.u;
    layer.dy = call.dy;
    layers.push_back(layer);
  }
  BackwardGroup(layers, x, rows, calls[0].layer->precision, accumulate, dx, pool);
  if (dropout == nullptr) return;
  for (const LinearBackwardCall& call : calls) {
    AddDroppedGradients(call, x, rows, *dropout, dx, pool);
  }
}

}  // namespace fedge
