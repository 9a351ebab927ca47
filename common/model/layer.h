// One decoder block, forward and backward. The transformer decides whose activations are kept and
// which blocks are computed again before they are differentiated.
#ifndef FEDGE_COMMON_MODEL_LAYER_H_
#define FEDGE_COMMON_MODEL_LAYER_H_

#include <array>
#include <cstdint>

#include "absl/types/span.h"
#include "common/model/base_model.h"
#include "common/model/kv_cache.h"
#include "common/model/linear.h"
#include "common/model/ops.h"

namespace fedge {

// Views on a block's weights, with the adapter bound to them.
struct Layer {
  std::array<Linear, kLinearsPerLayer> linear;  // weight.rows is 0 where the block has none
  std::array<const float*, kNormsPerLayer> norm = {};
  int64_t window = 0;

  bool Has(LinearIndex index) const { return linear[index].weight.rows > 0; }
};

// Where a block's gradients are added; null: not wanted.
struct LayerGradient {
  std::array<LinearGradient, kLinearsPerLayer> linear;
  std::array<float*, kNormsPerLayer> norm = {};
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
  absl::Span<const Dropout> dropout;      // of what each branch reads; empty: none

  int64_t rows() const { return batch * length; }
  LinearRows linear_rows() const { return {rows(), branch_ends}; }
};

// What Backward needs of a block's Forward.
class LayerActivations {
 public:
  // Bytes kept for `rows` tokens, LoRA factors of up to `rank` included.
  static int64_t Bytes(const ModelConfig& config, int64_t rows, int64_t rank);

 private:
  friend class LayerWorkspace;
  void Reserve(const Layer& layer, const LayerInput& input);

  FloatBuffer normed1, inv1;
  FloatBuffer qkv;           // of the projections, rotated unless the heads are normed
  FloatBuffer q, k;          // normed and rotated; empty without such norms
  FloatBuffer inv_q, inv_k;  // of their heads
  FloatBuffer attended, lse;
  FloatBuffer o_out, inv_o;  // before post_attention_norm; empty without
  FloatBuffer h, normed2, inv2;
  FloatBuffer gate_up, activated;
  FloatBuffer down_out, inv_down;  // before post_ffw_norm; empty without
  std::array<FloatBuffer, kLinearsPerLayer> u;
};

// Runs one block at a time in scratch memory that all blocks share.
class LayerWorkspace {
 public:
  // `between`: memory that holds nothing between calls; may be shared with what works then.
  LayerWorkspace(ThreadPool* pool, FloatBuffer* between) : pool_(pool), between_(*between) {}

  // Bytes of `between` for gradients over `rows` tokens.
  static int64_t Bytes(const ModelConfig& config, int64_t rows);

  // Fills `kept` and, unless y is null, computes the block's output y [rows, C]. With a cache,
  // attends to its input.past tokens too and adds the new ones; false when a key or value of these
  // is not finite.
  bool Forward(const Layer& layer, const LayerInput& input, KvLayer* cache, LayerActivations& kept,
               float* y);
  // dy [rows, C] becomes dx when `want_dx`, else it is left undefined. `kept` is from Forward of
  // the same layer and input; it is used up.
  void Backward(const Layer& layer, const LayerInput& input, const LayerGradient& gradient,
                bool want_dx, LayerActivations& kept, float* dy);

 private:
  struct ForwardCall;      // the arguments of Forward
  struct Differentiation;  // the arguments of Backward
  struct Output;           // a linear and where its output or the output's gradient is
  struct QkvRows;          // where q, k and v are
  struct GateRows;         // where gate and up are

  static QkvRows SplitQkv(const Layer& layer, const LayerInput& input, float* data);
  static GateRows SplitGate(const Layer& layer, const LayerInput& input, float* data);
  BranchDropout DropoutOf(const LayerInput& input);
  void Apply(const ForwardCall& call, absl::Span<const Output> outputs, const FloatBuffer& x);
  bool AttentionPartForward(const ForwardCall& call, KvLayer* cache);
  void FeedForward(const ForwardCall& call, float* y);
  void Differentiate(const Differentiation& call, absl::Span<const Output> outputs, const float* x,
                     float* dx);
  float* PostNormBackward(const Differentiation& call, NormIndex norm, const FloatBuffer& x,
                          const FloatBuffer& inv, float* dy);
  void FeedForwardBackward(const Differentiation& call, float* dy);
  void AttentionPartBackward(const Differentiation& call, bool want_dx, float* dh);

  // Pieces of between_ in a backward call.
  struct Scratch {
    float *d_hidden, *d_normed, *d_attended, *d_qkv, *d_branch;
  };
  // The floats of each, in the order of the members.
  static std::array<int64_t, 5> ScratchSizes(const ModelConfig& config, int64_t rows);

  ThreadPool* pool_;
  FloatBuffer& between_;
  Scratch scratch_ = {};
  FloatBuffer attention_scratch_;
  FloatBuffer dropped_, dropped_gradient_, dropped_du_;  // with dropout only
};

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_LAYER_H_
