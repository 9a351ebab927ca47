// The operations of a decoder over whole batches, each with its gradient beside it. Threads split
// rows or heads; every output is written by one task, so results do not depend on their number.
//
// Tensors are fp32, row-major. `t` counts rows (tokens of all sequences of a batch).
#ifndef FEDGE_COMMON_MODEL_OPS_H_
#define FEDGE_COMMON_MODEL_OPS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "common/base/thread_pool.h"
#include "common/model/family.h"
#include "common/model/rope_frequencies.h"
#include "common/model/tokenizer.h"
#include "common/tensor/dtype.h"

namespace fedge {

// Uninitialized floats, aligned to a cache line, that grow on demand and are reused.
class FloatBuffer {
 public:
  float* Get(int64_t count);  // at least `count`; the old content is lost when it grows
  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* p) const;
  };
  std::unique_ptr<float[], Free> data_;
  int64_t capacity_ = 0;
};

// --- RMSNorm -------------------------------------------------------------------------------------

// inv [t] is kept for the gradient.
void RmsNormForward(const float* x, const float* weight, int64_t t, int64_t channels, float epsilon,
                    float* y, float* inv, ThreadPool& pool);
// dx += the input's gradient; dweight += the weight's, unless null.
void RmsNormBackward(const float* x, const float* weight, const float* inv, const float* dy,
                     int64_t t, int64_t channels, float* dx, float* dweight, ThreadPool& pool);

// Rows of heads: head h of row i begins at data[i * stride + h * head_dim]. Several may interleave
// (q, k and v out of one fused linear).
struct HeadShape {
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t stride = 0;
};

// Each head normed by itself, the same weight [head_dim] for all. y [rows, heads * head_dim] is
// contiguous; inv [rows * heads].
void HeadNormForward(const HeadShape& shape, const float* x, const float* weight, float epsilon,
                     float* y, float* inv, ThreadPool& pool);
// dy, which lies as x does, becomes dx; dweight += the weight's gradient, unless null.
void HeadNormBackward(const HeadShape& shape, const float* x, const float* weight, const float* inv,
                      float* dy, float* dweight, ThreadPool& pool);

// --- RoPE ----------------------------------------------------------------------------------------

class RopeTable {
 public:
  RopeTable(RopeFrequencies frequencies, RopePairs pairs)
      : frequencies_(std::move(frequencies)), pairs_(pairs) {}
  void EnsurePositions(int64_t count);
  RopePairs pairs() const { return pairs_; }
  int64_t rope_dim() const { return 2 * static_cast<int64_t>(frequencies_.theta.size()); }
  const float* cosine(int64_t position) const { return cosine_.data() + position * width(); }
  const float* sine(int64_t position) const { return sine_.data() + position * width(); }

 private:
  // Values a position: each pair's twice when the pairs are adjacent, as RopeRow wants them.
  int64_t width() const { return pairs_ == RopePairs::kAdjacent ? rope_dim() : rope_dim() / 2; }

  RopeFrequencies frequencies_;
  RopePairs pairs_;
  int64_t positions_ = 0;
  std::vector<float> cosine_, sine_;  // [positions, width]
};

struct RopePositions {
  int64_t length = 0;  // T: row i is at position past + i % T
  int64_t past = 0;
};
// The first rope_dim values of each head of x, in place; the table must cover past + T positions.
void RopeForward(const RopeTable& table, const RopePositions& positions, const HeadShape& shape,
                 float* x, ThreadPool& pool);
void RopeBackward(const RopeTable& table, const RopePositions& positions, const HeadShape& shape,
                  float* dx, ThreadPool& pool);

// --- causal attention, grouped queries (Ainslie et al. 2023) -------------------------------------

struct AttentionShape {
  int64_t batch = 0;   // B
  int64_t length = 0;  // T: queries a sequence
  int64_t past = 0;    // keys before the first query (B is 1 then); query i sees past + i + 1 keys
  int64_t heads = 0;   // H
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 0;     // of the scores
  int64_t window = 0;  // a query sees no more than its last `window` keys, itself included; 0: all
};

// Rows of a query, key or value matrix `stride` floats apart.
struct ConstRows {
  const float* data = nullptr;
  int64_t stride = 0;
};
struct Rows {
  float* data = nullptr;
  int64_t stride = 0;
};

// q [B*T, H*hd]; k, v [B*(past+T), KV*hd]; out [B*T, H*hd] contiguous; lse [B*T, H]: each row's log
// of the softmax's sum, kept for the gradient. Scores exist for a block of queries at a time only;
// of a window's, only for keys that some query of the block sees.
void AttentionForward(const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v,
                      float* out, float* lse, FloatBuffer& scratch, ThreadPool& pool);
// dq, dk, dv are overwritten. past must be 0. The softmax is recomputed from lse, as in
// FlashAttention-2 (Dao 2023).
struct AttentionForwardValues {
  ConstRows q, k, v;
  const float *out, *lse;
};
struct AttentionGradients {
  Rows dq, dk, dv;
};
void AttentionBackward(const AttentionShape& shape, const AttentionForwardValues& forward,
                       const float* dout, const AttentionGradients& gradients, FloatBuffer& scratch,
                       ThreadPool& pool);
// Floats of scratch that a thread's part of AttentionBackward over `length` tokens takes, the
// larger of the two directions.
int64_t AttentionScratch(int64_t head_dim, int64_t length);

// --- the gate of the feed-forward part (Shazeer 2020) --------------------------------------------

// gate and up [t, n] with rows `stride` floats apart.
struct GateShape {
  GateFunction function = GateFunction::kSilu;
  int64_t t = 0;
  int64_t n = 0;
  int64_t stride = 0;
};
// y [t, n], contiguous, = function(gate) * up
void GateForward(const GateShape& shape, const float* gate, const float* up, float* y,
                 ThreadPool& pool);
// Overwrites gate with dgate and up with dup; dy [t, n] contiguous.
void GateBackward(const GateShape& shape, float* gate, float* up, const float* dy,
                  ThreadPool& pool);

// --- cross-entropy -------------------------------------------------------------------------------

// nats[i] = -log softmax(logits[i])[targets[i]]; logits [t, vocabulary], targets valid ids.
void CrossEntropyForward(const float* logits, const TokenId* targets, int64_t t, int64_t vocabulary,
                         double* nats, ThreadPool& pool);
// The same nats, and row i of the logits becomes grad_scale[i] * d(nats[i])/d(logits[i]).
void CrossEntropyForwardBackward(float* logits, const TokenId* targets, int64_t t,
                                 int64_t vocabulary, const float* grad_scale, double* nats,
                                 ThreadPool& pool);

// x [t, n] = cap * tanh(x / cap), in place.
void SoftCapForward(float cap, int64_t t, int64_t n, float* x, ThreadPool& pool);
// dx *= the slope, from the capped values y.
void SoftCapBackward(float cap, const float* y, int64_t t, int64_t n, float* dx, ThreadPool& pool);

// --- embedding and residual ----------------------------------------------------------------------

// y [t, C] = scale * rows of the table, decoded.
void EmbeddingForward(const WeightMatrix& table, absl::Span<const TokenId> tokens, float scale,
                      float* y, ThreadPool& pool);
// dtable [V, C] += scale * dy's rows, in the order of the tokens.
void EmbeddingBackward(absl::Span<const TokenId> tokens, int64_t channels, float scale,
                       const float* dy, float* dtable, ThreadPool& pool);
// y += x, n values.
void AddForward(const float* x, int64_t n, float* y, ThreadPool& pool);

// Runs body(first row, end row) over blocks of rows of about `row_cost` values each.
void ForEachRows(int64_t rows, int64_t row_cost, ThreadPool& pool,
                 const std::function<void(int64_t, int64_t)>& body);
// Runs task(slot, i) for i in [0, count); `slot` < min(count, pool.threads()) is used by one task
// at a time and may own a piece of scratch memory.
void ForEachSlot(int64_t count, ThreadPool& pool,
                 const std::function<void(int64_t, int64_t)>& task);

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_OPS_H_
