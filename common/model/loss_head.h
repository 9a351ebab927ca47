// The end of the decoder: final norm, head, soft cap and cross-entropy of the positions that have a
// target, a chunk at a time, so that [T, V] logits never exist.
#ifndef FEDGE_COMMON_MODEL_LOSS_HEAD_H_
#define FEDGE_COMMON_MODEL_LOSS_HEAD_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/base/thread_pool.h"
#include "common/model/bound_model.h"
#include "common/model/ops.h"
#include "common/model/tokenizer.h"

namespace fedge {

// Rows of the last layer's output that have a target, those of one adapter after those of another.
struct ScoredRows {
  std::vector<int64_t> where;    // row in the batch
  std::vector<TokenId> targets;  // of each
  std::vector<float> weights;    // of each in the gradient
  std::vector<int64_t> ends;     // of each adapter's rows; without adapters one end

  int64_t size() const { return static_cast<int64_t>(where.size()); }
};

class LossHead {
 public:
  // `chunk_rows`: positions whose logits exist at once; 0: DefaultChunkRows. `between`: memory for
  // these that holds nothing between calls; may be shared with what works then.
  LossHead(const BoundModel* model, ThreadPool* pool, int64_t chunk_rows, FloatBuffer* between);
  static int64_t DefaultChunkRows(int64_t vocabulary);
  // Of `between`, and of the other buffers with adapters of `rank` on the head, for chunks of
  // `rows`.
  static int64_t LogitBytes(const ModelConfig& config, int64_t rows);
  static int64_t OtherBytes(const ModelConfig& config, int64_t rows, int64_t rank);

  // Sum of each adapter's rows' nats; `token_nats` (may be empty) gets each row's at its place.
  // x [B*T, C]. No chunk has rows of two adapters: each one's sums are what they are without the
  // others.
  std::vector<double> Forward(const float* x, const ScoredRows& rows, absl::Span<float> token_nats);
  // The same, adds the head's gradients to `sink` and sets the scored rows of dx [B*T, C]; others
  // stay as they are.
  std::vector<double> ForwardBackward(const float* x, const ScoredRows& rows,
                                      const GradientSink& sink, absl::Span<float> token_nats,
                                      float* dx);
  // logits [V] of the single row x [C].
  void Logits(const float* x, float* logits);

 private:
  struct Chunk {
    const int64_t* where;
    const TokenId* targets;
    const float* weights;
    int64_t rows;
    size_t part;  // whose
  };
  // With a null sink the loss only.
  std::vector<double> Run(const float* x, const ScoredRows& rows, const GradientSink* sink,
                          absl::Span<float> token_nats, float* dx);
  void RunChunk(const float* x, const Chunk& chunk, const GradientSink* sink,
                absl::Span<float> token_nats, double& sum, float* dx);
  void ForwardChunk(const float* x, const Chunk& chunk);
  void BackwardChunk(const Chunk& chunk, const GradientSink& sink, float* dx);

  const BoundModel& model_;
  ThreadPool& pool_;
  const int64_t chunk_rows_;
  std::vector<double> nats_;
  FloatBuffer& logits_;
  FloatBuffer hidden_, normed_, inv_, capped_, d_normed_, d_hidden_, u_;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_LOSS_HEAD_H_
