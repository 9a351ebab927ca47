// Local fine-tuning of a LoRA adapter: what a device does in a round, and `fedge finetune` alone.
#ifndef FEDGE_COMMON_TRAINING_TRAINER_H_
#define FEDGE_COMMON_TRAINING_TRAINER_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/adapter/adapter_slice.h"
#include "common/adapter/lora_adapter.h"
#include "common/model/transformer.h"
#include "common/training/dataset.h"
#include "common/training/optimizer.h"

namespace fedge {

struct TrainOptions {
  int64_t steps = 0;
  int64_t batch_size = 4;
  int64_t micro_batch = 0;      // rows in one pass, gradients add up to the batch's; 0: all
  int64_t length = 256;         // tokens a row
  float completion_weight = 1;  // in the loss: a target of a completion beside one of plain text
  LearningRate learning_rate;
  float lora_plus_ratio = 1;  // B's learning rate, in A's (LoRA+: Hayou, Ghosh, Yu 2024, say 16)
  // Part of what the adapters of the layers read that each step leaves out, in [0, 1).
  float lora_dropout = 0;
  // FedProx: mu (w - start) is added to the gradient, before it is clipped (Li et al. 2020, eq. 2).
  float proximal_mu = 0;
  AdamWOptions adamw;
  // Of the products with the frozen weights; gradients differ by about 1 % of their length.
  Precision precision = Precision::kBFloat16;
  double clip_norm = 1.0;  // of the slice's gradient
  // What is trained; the rest of the adapter stays as it is.
  AdapterSlice slice;
  uint64_t seed = 0;
};

struct TrainProgress {
  int64_t step = 0;   // done, from 1
  int64_t steps = 0;  // in all
  double loss = 0;    // nats a token of this step's batch
  double grad_norm = 0;
  int64_t tokens = 0;  // trained tokens (targets) so far
};

struct TrainResult {
  double first_loss = 0;
  double last_loss = 0;
  double mean_loss = 0;
  int64_t num_tokens = 0;    // targets seen
  int64_t num_examples = 0;  // distinct training examples available (the averaging weight)
};

// A training step by step, which can end between two steps and go on in another process. Movable.
class AdapterTraining {
 public:
  // `adapter` as it is before the first step. Codes as TrainAdapter's.
  static absl::StatusOr<AdapterTraining> Create(const BaseModel& model,
                                                const std::vector<Example>& examples,
                                                const TrainOptions& options,
                                                const LoraAdapter& adapter);

  bool done() const { return step_ == options_.steps; }
  int64_t step() const { return step_; }  // done so far

  // `interrupted` (may be empty) is asked when the gradient is there: true, because the
  // transformer's pool did not do its work (ThreadPool::set_gate), gives Cancelled and changes
  // nothing. Other codes as TrainAdapter's.
  absl::StatusOr<TrainProgress> Step(Transformer& transformer,
                                     const std::function<bool()>& interrupted,
                                     LoraAdapter& adapter);
  TrainResult result() const;

  // What the steps so far have made, `adapter` included, with a checksum: going on from it gives
  // the same bytes as never having stopped. It says nothing of examples and options, which must be
  // the same. DataLoss: damaged, or of another adapter, slice or optimizer; then neither this
  // object nor the adapter is worth anything.
  std::string Serialize(const LoraAdapter& adapter) const;
  absl::Status Restore(absl::string_view bytes, LoraAdapter& adapter);

 private:
  AdapterTraining(const TrainOptions& options, BatchSampler sampler, SliceLayout layout);
  // Returns the norm of the slice's gradient before it was clipped; when that is not finite, no
  // step was made. The gradient is used up.
  double StepOptimizer(float rate, absl::Span<float> values);

  TrainOptions options_;
  BatchSampler sampler_;
  std::optional<Batch> batch_;  // of the next step, if it was begun
  SliceLayout layout_;
  AdamW adamw_;
  int64_t step_ = 0;
  double loss_sum_ = 0;
  TrainResult result_;
  std::vector<float> start_;                          // only of a proximal term
  std::vector<float> gradient_;                       // of the whole adapter
  std::vector<float> slice_gradient_, slice_values_;  // empty when the slice is the whole
};

// Trains `adapter` in place. `on_step` (may be empty) returns false to stop early (Cancelled).
// FailedPrecondition: no example has a trained token. InvalidArgument: an option is out of range
// or the adapter has nothing of the slice. Internal: the loss is not finite (names the step).
absl::StatusOr<TrainResult> TrainAdapter(Transformer& transformer,
                                         const std::vector<Example>& examples,
                                         const TrainOptions& options,
                                         const std::function<bool(const TrainProgress&)>& on_step,
                                         LoraAdapter& adapter);

}  // namespace fedge

#endif  // FEDGE_COMMON_TRAINING_TRAINER_H_
