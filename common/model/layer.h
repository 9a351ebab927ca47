// One decoder block, forward and backward. The transformer decides whose activations are kept and
// which blocks are computed again before they are differentiated.
#ifndef FEDGE_COMMON_MODEL_LAYER_H_
#define FEDGE_COMMON_MODEL_LAYER_H_

#include <array>
#include <cstdint>
#include <string>

#include "absl/types/span.h"
#include "common/model/base_model.h"
#include "common/model/linear.h"
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

// The rows a call works on: `batch` sequences of `length` tokens, the first at position `past`.
struct LayerInput {
  const ModelConfig* config = nullptr;
  const RopeTable* rope = nullptr;
  int64_t batch = 0;
  int64_t length = 0;
  int64_t past = 0;
  absl::Span<const int64_t> branch_ends;  // rows of each adapter, as LinearRows
  const float* x = nullptr;               // [rows, C]

  int64_t rows() const { return batch * length; }
  LinearRows linear_rows() const { return {rows(), branch_ends}; }
};

// A generation cache's rows of this block: [capacity, KV*hd].
struct LayerCache {
  float* keys = nullptr;
  float* values = nullptr;
};

// What Backward needs of a block's Forward.
class LayerActivations {
 public:
  // Bytes kept for `rows` tokens, LoRA factors of up to `rank` included.
  static int64_t Bytes(const ModelConfig& config, int64_t rows, int64_t rank);

 private:
  friend class LayerWorkspace;
  void Reserve(const Layer& layer, const LayerInput& input);

  FloatBuffer normed1, inv1, q, k, v, attended, lse;
  FloatBuffer h, normed2, inv2, gate, up, activated;
  std::array<FloatBuffer, kLinearsPerLayer> u;
};

// Runs one block at a time and owns the scratch memory that all blocks can share.
class LayerWorkspace {
 public:
  explicit LayerWorkspace(ThreadPool* pool) : pool_(pool) {}

  // Fills `kept` and, unless y is null, computes the block's output y [rows, C]. With a cache,
  // appends keys and values at row `input.past` and attends to all of them.
  void Forward(const Layer& layer, const LayerInput& input, const LayerCache* cache,
               LayerActivations& kept, float* y);
  // dy [rows, C] becomes dx when `want_dx`, else it is left undefined. `kept` is from Forward of
  // the same layer and input; it is used up.
  void Backward(const Layer& layer, const LayerInput& input, const LayerGradient& gradient,
                bool want_dx, LayerActivations& kept, float* dy);

 private:
  struct Differentiation;  // the arguments of Backward
  struct OutputGradient {
    LinearIndex index;
    const float* dy;
  };
  void Differentiate(const Differentiation& call, absl::Span<const OutputGradient> outputs,
                     const float* x, float* dx);
  void FeedForwardBackward(const Differentiation& call, float* dy);
  void AttentionPartBackward(const Differentiation& call, bool want_dx, float* dh);

  ThreadPool* pool_;
  FloatBuffer d_hidden_, d_normed_, d_attended_, dq_, dk_, dv_, du_;
  FloatBuffer attention_scratch_;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_LAYER_H_
