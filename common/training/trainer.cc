#include "common/training/trainer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/base/status.h"

namespace fedge {
namespace {

absl::Status CheckOptions(const TrainOptions& options) {
  if (options.steps < 1 || options.batch_size < 1 || options.length < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("training needs at least 1 step, 1 row and 2 tokens a row, not ",
                     options.steps, " steps of ", options.batch_size, " rows of ", options.length));
  }
  if (!(options.completion_weight > 0 && std::isfinite(options.completion_weight))) {
    return absl::InvalidArgumentError(
        absl::StrCat("a completion's weight must be above 0, not ", options.completion_weight));
  }
  if (options.micro_batch < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a micro-batch of ", options.micro_batch, " rows; 0 means the whole batch"));
  }
  if (!(options.lora_plus_ratio > 0 && std::isfinite(options.lora_plus_ratio))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the ratio of B's learning rate to A's must be above 0, not ", options.lora_plus_ratio));
  }
  if (!(options.lora_dropout >= 0 && options.lora_dropout < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("LoRA dropout ", options.lora_dropout, " is not in [0, 1)"));
  }
  if (!(options.proximal_mu >= 0 && std::isfinite(options.proximal_mu))) {
    return absl::InvalidArgumentError(
        absl::StrCat("the proximal term's mu must be at least 0, not ", options.proximal_mu));
  }
  if (options.adamw.moment_bits != 32 && options.adamw.moment_bits != 8) {
    return absl::InvalidArgumentError(absl::StrCat(
        "optimizer moments of ", options.adamw.moment_bits, " bits; known are 32 and 8"));
  }
  return absl::OkStatus();
}

// What the batch's targets count together.
double TotalWeight(const Batch& batch) {
  double total = 0;
  for (size_t i = 0; i < batch.targets.size(); ++i) {
    if (batch.targets[i] != kNoToken) total += static_cast<double>(batch.weights[i]);
  }
  return total;
}

// A short example does not fill a row, and a batch has no use for one that trains nothing.
std::vector<Example> Trainable(const std::vector<Example>& examples) {
  std::vector<Example> result;
  for (const Example& example : examples) {
    if (example.num_targets > 0) result.push_back(example);
  }
  return result;
}

// The trained coordinates of the adapter, next to each other, and their optimizer.
class SlicedOptimizer {
 public:
  SlicedOptimizer(SliceLayout layout, const TrainOptions& options)
      : layout_(std::move(layout)),
        adamw_(FactorGroups(layout_, options.lora_plus_ratio), options.adamw),
        clip_norm_(options.clip_norm) {
    if (layout_.whole()) return;
    gradient_.resize(static_cast<size_t>(layout_.size()));
    values_.resize(gradient_.size());
  }

  // Returns the norm of the slice's gradient before it was clipped; when that is not finite, no
  // step was made. `gradient` is used up.
  double Step(absl::Span<float> gradient, float rate, absl::Span<float> values) {
    if (layout_.whole()) return ClipAndStep(gradient, rate, values);
    layout_.Gather(gradient, absl::MakeSpan(gradient_));
    layout_.Gather(values, absl::MakeSpan(values_));
    const double norm = ClipAndStep(absl::MakeSpan(gradient_), rate, absl::MakeSpan(values_));
    layout_.Scatter(values_, values);
    return norm;
  }

 private:
  static std::vector<ParameterGroup> FactorGroups(const SliceLayout& layout,
                                                  float lora_plus_ratio) {
    std::vector<ParameterGroup> groups;
    for (const SliceRun& run : layout.runs()) {
      groups.push_back({run.size, run.is_b ? lora_plus_ratio : 1.0f});
    }
    return groups;
  }
  double ClipAndStep(absl::Span<float> gradient, float rate, absl::Span<float> values) {
    const double norm = ClipByGlobalNorm(clip_norm_, gradient);
    if (std::isfinite(norm)) adamw_.Step(gradient, rate, values);
    return norm;
  }

  SliceLayout layout_;
  AdamW adamw_;
  double clip_norm_;
  std::vector<float> gradient_, values_;  // of the slice; unused for the whole
};

// Rows [first, first + rows) of `batch`, without the columns after their last target: nothing
// learns from those.
Batch RowsOf(const Batch& batch, int64_t first, int64_t rows) {
  int64_t length = 0;
  for (int64_t i = first * batch.length; i < (first + rows) * batch.length; ++i) {
    if (batch.targets[static_cast<size_t>(i)] == kNoToken) continue;
    length = std::max(length, i % batch.length + 1);
  }
  Batch part;
  part.batch_size = rows;
  part.length = length;
  for (int64_t row = first; row < first + rows; ++row) {
    const auto append = [&](const auto& from, auto& to) {
      to.insert(to.end(), from.begin() + row * batch.length,
                from.begin() + row * batch.length + length);
    };
    append(batch.tokens, part.tokens);
    append(batch.targets, part.targets);
    if (!batch.weights.empty()) append(batch.weights, part.weights);
  }
  return part;
}

// The batch's loss and gradient, at most `micro_batch` rows at once.
LossSum AccumulateGradient(Transformer& transformer, const Batch& batch, int64_t micro_batch,
                           const LoraAdapter& adapter, Dropout dropout,
                           absl::Span<float> gradient) {
  std::fill(gradient.begin(), gradient.end(), 0.0f);
  const auto scale = static_cast<float>(1.0 / TotalWeight(batch));
  if (micro_batch == 0 || micro_batch >= batch.batch_size) {
    return transformer.LossAndGradient(batch, adapter, scale, gradient, dropout);
  }
  LossSum loss;
  for (int64_t first = 0; first < batch.batch_size; first += micro_batch) {
    const Batch part = RowsOf(batch, first, std::min(micro_batch, batch.batch_size - first));
    dropout.first_sequence = first;
    if (part.length == 0) continue;
    loss += transformer.LossAndGradient(part, adapter, scale, gradient, dropout);
  }
  return loss;
}

absl::Status NotFinite(absl::string_view what, int64_t step, float learning_rate) {
  return absl::InternalError(absl::StrCat("step ", step, ": the ", what,
                                          " is not finite at learning rate ", learning_rate,
                                          "; lower the learning rate or the clip norm"));
}

}  // namespace

absl::StatusOr<TrainResult> TrainAdapter(Transformer& transformer,
                                         const std::vector<Example>& examples,
                                         const TrainOptions& options,
                                         const std::function<bool(const TrainProgress&)>& on_step,
                                         LoraAdapter& adapter) {
  RETURN_IF_ERROR(CheckOptions(options));
  RETURN_IF_ERROR(transformer.model().CheckAdapter(adapter.spec()));
  transformer.set_training_precision(options.precision);
  std::vector<Example> trainable = Trainable(examples);
  TrainResult result;
  result.num_examples = static_cast<int64_t>(trainable.size());
  if (trainable.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("none of the ", examples.size(), " examples has a token to train on"));
  }
  BatchSampler sampler(std::move(trainable), options.batch_size, options.length,
                       Rng::Stream(options.seed, "batches"), options.completion_weight);
  ASSIGN_OR_RETURN(SliceLayout layout, SliceLayout::Create(adapter.spec(), options.slice));
  SlicedOptimizer optimizer(std::move(layout), options);
  std::vector<float> gradient(adapter.values().size());
  std::vector<float> start;  // only of a proximal term
  if (options.proximal_mu > 0) start.assign(adapter.values().begin(), adapter.values().end());
  double loss_sum = 0;
  for (int64_t step = 1; step <= options.steps; ++step) {
    const Batch batch = sampler.Next();
    Dropout dropout;
    dropout.rate = options.lora_dropout;
    dropout.seed = Rng::Stream(options.seed, "dropout", static_cast<uint64_t>(step)).Next();
    const LossSum loss = AccumulateGradient(transformer, batch, options.micro_batch, adapter,
                                            dropout, absl::MakeSpan(gradient));
    const float rate = options.learning_rate.At(step - 1);
    if (!std::isfinite(loss.nats)) return NotFinite("loss", step, rate);
    if (!start.empty()) {
      AddProximalGradient(options.proximal_mu, adapter.values(), start, absl::MakeSpan(gradient));
    }
    const double norm = optimizer.Step(absl::MakeSpan(gradient), rate, adapter.values());
    if (!std::isfinite(norm)) return NotFinite("gradient", step, rate);

    result.num_tokens += loss.num_tokens;
    result.last_loss = loss.mean();
    if (step == 1) result.first_loss = loss.mean();
    loss_sum += loss.mean();
    result.mean_loss = loss_sum / static_cast<double>(step);
    const TrainProgress progress{step, options.steps, loss.mean(), norm, result.num_tokens};
    if (on_step && !on_step(progress)) {
      return absl::CancelledError(absl::StrCat("stopped after step ", step));
    }
  }
  return result;
}

}  // namespace fedge
