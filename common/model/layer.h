// One decoder block, forward and backward, with the values the backward pass needs kept in memory
// that all blocks share (the transformer recomputes a block before it differentiates it).
#ifndef FEDGE_COMMON_MODEL_LAYER_H_
#define FEDGE_COMMON_MODEL_LAYER_H_

#include <array>
#include <cstdint>

#include "common/model/base_model.h"
#include "common/model/ops.h"

namespace fedge {

enum LinearIndex { kQ, kK, kV, kO, kGate, kUp, kDown, kLinearsPerLayer };

// GGUF's name of a linear of block `layer`: "blk.0.attn_q.weight".
std::string LinearTensorName(int64_t layer, LinearIndex index);

struct Layer {
  const float* attn_norm = nullptr;
  const float* ffn_norm = nullptr;
  std::array<Linear, kLinearsPerLayer> linear;
};

// Where a block's gradients are added; null: not wanted.
struct LayerGradient {
  float* attn_norm = nullptr;
  float* ffn_norm = nullptr;
  std::array<LinearGradient, kLinearsPerLayer> linear;
};

// The rows a call works on: `batch` sequences of `length` tokens at positions `past`...
struct LayerInput {
  const ModelConfig* config = nullptr;
  const RopeTable* rope = nullptr;
  int64_t batch = 0;
  int64_t length = 0;
  int64_t past = 0;
  const float* x = nullptr;  // [rows, C]

  int64_t rows() const { return batch * length; }
};

// A generation cache's rows of this block: [capacity, KV*hd].
struct LayerCache {
  float* keys = nullptr;
  float* values = nullptr;
};

// Scratch of one block's forward and backward pass. Reused from block to block.
class LayerWorkspace {
 public:
  explicit LayerWorkspace(ThreadPool* pool) : pool_(pool) {}

  // Computes all that Backward needs and, unless y is null, the block's output y [rows, C]. With a
  // cache, appends keys and values at row `input.past` and attends to all of them.
  void Forward(const Layer& layer, const LayerInput& input, const LayerCache* cache, float* y);
  // After Forward of the same layer and input. dy [rows, C] becomes dx when `want_dx`, else it is
  // left undefined.
  void Backward(const Layer& layer, const LayerInput& input, const LayerGradient& gradient,
                bool want_dx, float* dy);

 private:
  void Reserve(const Layer& layer, const LayerInput& input);
  void ReserveGradients(const LayerInput& input);
  void Apply(const Layer& layer, LinearIndex index, const float* x, float* y);
  void Differentiate(const Layer& layer, const LayerGradient& gradient, LinearIndex index,
                     const float* x, const float* dy, Accumulate accumulate, float* dx);
  void FeedForwardBackward(const Layer& layer, const LayerInput& input,
                           const LayerGradient& gradient, float* dy);
  void AttentionPartBackward(const Layer& layer, const LayerInput& input,
                             const LayerGradient& gradient, bool want_dx, float* dh);
  RopeShape Rope(const LayerInput& input, int64_t heads) const;
  AttentionShape Attention(const LayerInput& input) const;

  ThreadPool* pool_;
  int64_t rows_ = 0;
  FloatBuffer normed1_, inv1_, q_, k_, v_, attended_, lse_;  // kept by Forward
  FloatBuffer h_, normed2_, inv2_, gate_, up_, activated_;
  std::array<FloatBuffer, kLinearsPerLayer> u_;
  FloatBuffer d_hidden_, d_normed_, d_attended_, dq_, dk_, dv_, du_;  // Backward's
  FloatBuffer attention_scratch_;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_LAYER_H_
