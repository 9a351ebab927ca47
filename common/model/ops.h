// The operations of a decoder over whole batches, each with its gradient beside it. Threads split
// rows or heads; every output is written by one task, so results do not depend on their number.
//
// Tensors are fp32, row-major. `t` counts rows (tokens of all sequences of a batch).
#ifndef FEDGE_COMMON_MODEL_OPS_H_
#define FEDGE_COMMON_MODEL_OPS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "common/base/thread_pool.h"
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

// --- RoPE, pairs (2i, 2i+1) ----------------------------------------------------------------------

class RopeTable {
 public:
  // `frequencies` [rope_dim / 2]: radians a position.
  explicit RopeTable(std::vector<float> frequencies) : frequencies_(std::move(frequencies)) {}
  void EnsurePositions(int64_t count);
  int64_t rope_dim() const { return 2 * static_cast<int64_t>(frequencies_.size()); }
  const float* cosine(int64_t position) const { return cosine_.data() + position * rope_dim(); }
  const float* sine(int64_t position) const { return sine_.data() + position * rope_dim(); }

 private:
  std::vector<float> frequencies_;
  int64_t positions_ = 0;
  std::vector<float> cosine_, sine_;  // [positions, rope_dim], as RopeRow wants them
};

struct RopeShape {
  int64_t batch = 0;   // B
  int64_t length = 0;  // T
  int64_t past = 0;    // position of each sequence's first row
  int64_t heads = 0;
  int64_t head_dim = 0;
};
// x [B*T, heads * head_dim] in place; the table must cover past + T positions.
void RopeForward(const RopeTable& table, const RopeShape& shape, float* x, ThreadPool& pool);
void RopeBackward(const RopeTable& table, const RopeShape& shape, float* dx, ThreadPool& pool);

// --- causal attention, grouped queries (Ainslie et al. 2023) -------------------------------------

struct AttentionShape {
  int64_t batch = 0;   // B
  int64_t length = 0;  // T: queries a sequence
  int64_t past = 0;    // keys before the first query (B is 1 then); query i sees past + i + 1 keys
  int64_t heads = 0;   // H
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 0;  // of the scores
};

// q, out [B*T, H*hd]; k, v [B*(past+T), KV*hd]; lse [B*T, H]: each row's log of the softmax's sum,
// kept for the gradient. Scores exist for a block of queries at a time only.
void AttentionForward(const AttentionShape& shape, const float* q, const float* k, const float* v,
                      float* out, float* lse, FloatBuffer& scratch, ThreadPool& pool);
// dq, dk, dv are overwritten. past must be 0. The softmax is recomputed from lse, as in
// FlashAttention-2 (Dao 2023).
struct AttentionForwardValues {
  const float *q, *k, *v, *out, *lse;
};
void AttentionBackward(const AttentionShape& shape, const AttentionForwardValues& forward,
                       const float* dout, float* dq, float* dk, float* dv, FloatBuffer& scratch,
                       ThreadPool& pool);

// --- SwiGLU --------------------------------------------------------------------------------------

// y [t, n] = silu(gate) * up
void SwiGluForward(const float* gate, const float* up, int64_t t, int64_t n, float* y,
                   ThreadPool& pool);
// Overwrites gate with dgate and dy with dup.
void SwiGluBackward(float* gate, const float* up, int64_t t, int64_t n, float* dy,
                    ThreadPool& pool);

// --- cross-entropy -------------------------------------------------------------------------------

// nats[i] = -log softmax(logits[i])[targets[i]]; logits [t, vocabulary], targets valid ids.
void CrossEntropyForward(const float* logits, const TokenId* targets, int64_t t, int64_t vocabulary,
                         double* nats, ThreadPool& pool);
// The same nats, and row i of the logits becomes grad_scale[i] * d(nats[i])/d(logits[i]).
void CrossEntropyForwardBackward(float* logits, const TokenId* targets, int64_t t,
                                 int64_t vocabulary, const float* grad_scale, double* nats,
                                 ThreadPool& pool);

// --- embedding and residual ----------------------------------------------------------------------

// y [t, C] = rows of the table, decoded.
void EmbeddingForward(const WeightMatrix& table, absl::Span<const TokenId> tokens, float* y,
                      ThreadPool& pool);
// dtable [V, C] += dy's rows, in the order of the tokens.
void EmbeddingBackward(absl::Span<const TokenId> tokens, int64_t channels, const float* dy,
                       float* dtable, ThreadPool& pool);
// y += x, n values.
void AddForward(const float* x, int64_t n, float* y, ThreadPool& pool);

// Runs body(first row, end row) over blocks of rows of about `row_cost` values each.
void ForEachRows(int64_t rows, int64_t row_cost, ThreadPool& pool,
                 const std::function<void(int64_t, int64_t)>& body);

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_OPS_H_
