// The decoder of all model families, forward and backward, over a frozen quantized base with a LoRA
// adapter.
//
// Memory: per-layer gradient checkpointing (each layer's input is kept, in bf16 where that is
// allowed; a layer is recomputed in the backward pass unless its activations fit a budget),
// cross-entropy over chunks of tokens so that [T, V] logits never exist, attention over blocks of
// queries so that [T, T] never exists. Weights stay quantized in the mapped file. Decoding takes a
// KvCache, and activations of 512 tokens however long a prompt is.
//
// Models with two sets of RoPE factors use the long ones for contexts beyond the original one: a
// batch's context is its length, a cache's its capacity.
#ifndef FEDGE_COMMON_MODEL_TRANSFORMER_H_
#define FEDGE_COMMON_MODEL_TRANSFORMER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/thread_pool.h"
#include "common/model/base_model.h"
#include "common/model/bound_model.h"
#include "common/model/dropout.h"
#include "common/model/kv_cache.h"
#include "common/model/tokenizer.h"
#include "common/tensor/matmul.h"

namespace fedge {

// Rectangular batch of B sequences of T tokens, row-major [B, T].
struct Batch {
  int64_t batch_size = 0;       // B
  int64_t length = 0;           // T
  std::vector<TokenId> tokens;  // inputs; padding may be any valid id
  std::vector<TokenId>
      targets;  // the token to predict at each position, or kNoToken: no loss there
  // What a target counts in the gradient, at each position; empty: 1 everywhere.
  std::vector<float> weights;
};

struct LossSum {
  double nats = 0;         // sum of -log p(target)
  int64_t num_tokens = 0;  // scored positions

  double mean() const { return num_tokens == 0 ? 0 : nats / static_cast<double>(num_tokens); }
  LossSum& operator+=(const LossSum& other) {
    nats += other.nats;
    num_tokens += other.num_tokens;
    return *this;
  }
};

// One of the adapters that share a pass: which of the batch's sequences are its own (`batch_size`
// of them, after those of the adapters before it), and where its gradient goes.
struct AdapterPass {
  const LoraAdapter* adapter = nullptr;
  int64_t batch_size = 0;
  float grad_scale = 1;
  absl::Span<float> gradient;  // in the adapter's layout; added to
  Dropout dropout;             // the rate is that of the others in the pass
};

inline constexpr int64_t kDefaultActivationBudget = int64_t{64} << 20;

struct TransformerOptions {
  // How much may be spent on keeping activations of whole layers instead of computing them again
  // for the gradient (a third faster when all fit); 0: the least memory, one layer's. For each
  // adapter of a pass.
  int64_t activation_budget_bytes = kDefaultActivationBudget;
  // Adapter gradients only: inputs of layers that are computed again are kept in bf16, which rounds
  // those layers' gradients (layer_inputs.h). False: the results are the same bits for any budget.
  bool bf16_checkpoints = true;
  // Rows of logits that exist at once; 0: as many as fit 32 MiB, 32 to 512.
  int64_t logit_rows = 0;
};

// Not thread-safe (owns scratch memory); make one per thread over the same BaseModel. Adapters
// passed in must satisfy BaseModel::CheckAdapter (CHECK).
class Transformer {
 public:
  Transformer(std::shared_ptr<const BaseModel> model, ThreadPool* pool,
              const TransformerOptions& options = TransformerOptions());
  ~Transformer();

  const BaseModel& model() const { return *model_; }

  // As constructed anew with these.
  void set_options(const TransformerOptions& options);
  // Of the products with the frozen weights in LossAndGradient.
  void set_training_precision(Precision precision) { training_precision_ = precision; }

  // Sum of losses over the batch, with `adapter` (null: the bare base). Optional `token_nats` [B*T]
  // gets each position's loss (0 where there is no target). `precision` is of the products.
  LossSum Loss(const Batch& batch, const LoraAdapter* adapter, absl::Span<float> token_nats = {},
               Precision precision = Precision::kFloat32);

  // The same, and adds d(sum of weighted losses)/d(adapter) * `grad_scale` to `gradient` (flat, the
  // adapter's layout). `dropout` is of what the layers' adapters read (not the head's); the loss is
  // with it.
  LossSum LossAndGradient(const Batch& batch, const LoraAdapter& adapter, float grad_scale,
                          absl::Span<float> gradient, const Dropout& dropout = Dropout());

  // The same for several adapters of one spec (CHECK) that share the pass through the base. Each
  // one's loss and gradient are those of a pass of its own sequences alone: the same bits, unless
  // the adapters have different numbers of sequences and checkpoints are in bf16 (then the layers
  // that keep their activations may be others), or a pass has at most kMaxVectorRows rows.
  std::vector<LossSum> LossAndGradients(const Batch& batch, absl::Span<const AdapterPass> adapters);

  // The same for all weights of an F32 base without adapter (pre-training). CHECKs that the base is
  // F32.
  LossSum LossAndWeightGradients(const Batch& batch, float grad_scale, WeightGradients& gradients);

  // Appends `tokens` to the cache and returns the logits [V] of the last one. Many tokens take
  // several passes, whose activations are all the memory it needs; `precision` is of the products
  // with more than kMaxVectorRows of them. OutOfRange when the cache has no room for all of them
  // (it is unchanged then); InvalidArgument when there are none; Internal, and the cache is empty,
  // when a key or value is not finite.
  absl::StatusOr<std::vector<float>> Decode(absl::Span<const TokenId> tokens,
                                            const LoraAdapter* adapter, KvCache& cache,
                                            Precision precision = Precision::kFloat32);

 private:
  class Engine;  // scratch memory and the passes over it
  std::shared_ptr<const BaseModel> model_;
  ThreadPool* pool_;
  std::unique_ptr<Engine> engine_;
  Precision training_precision_ = Precision::kFloat32;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_TRANSFORMER_H_
