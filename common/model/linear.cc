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

}  // namespace

void LinearForward(absl::Span<const LinearForwardCall> calls, const float* x,
                   const LinearRows& rows, ThreadPool& pool) {
  if (calls.empty()) return;
  absl::InlinedVector<ForwardLayer, kGroup> layers;
  for (const LinearForwardCall& call : calls) {
    ForwardLayer layer;
    layer.w = call.layer->weight;
    layer.bias = call.layer->bias;
    layer.lora = BranchesOf(*call.layer);
    layer.u = call.u;
    layer.y = call.y;
    layers.push_back(layer);
  }
  ForwardGroup(layers, x, rows, calls[0].layer->precision, Accumulate::kNo, pool);
}

void LinearBackward(absl::Span<const LinearBackwardCall> calls, const float* x,
                    const LinearRows& rows, float* /*du*/, Accumulate accumulate, float* dx,
                    ThreadPool& pool) {
  if (calls.empty()) return;
  absl::InlinedVector<BackwardLayer, kGroup> layers;
  for (const LinearBackwardCall& call : calls) {
    AddDenseGradients(call, x, rows.t, pool);
    BackwardLayer layer;
    layer.w = call.layer->weight;
    layer.lora = BranchesOf(*call.layer);
    layer.gradient = call.gradient->lora;
    layer.u = call.u;
    layer.dy = call.dy;
    layers.push_back(layer);
  }
  BackwardGroup(layers, x, rows, calls[0].layer->precision, accumulate, dx, pool);
}

int64_t LinearScratch(absl::Span<const LinearBackwardCall> /*calls*/, int64_t /*t*/) { return 0; }

}  // namespace fedge
