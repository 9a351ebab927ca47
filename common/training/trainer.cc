#include "common/training/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/byte_io.h"
#include "common/base/digest.h"
#include "common/base/rng.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr uint32_t kStateMagic = 0x31544446;  // "FDT1"

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

std::vector<ParameterGroup> FactorGroups(const SliceLayout& layout, float lora_plus_ratio) {
  std::vector<ParameterGroup> groups;
  for (const SliceRun& run : layout.runs()) {
    groups.push_back({run.size, run.is_b ? lora_plus_ratio : 1.0f});
  }
  return groups;
}

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

absl::string_view BytesOf(absl::Span<const float> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

}  // namespace

AdapterTraining::AdapterTraining(const TrainOptions& options, BatchSampler sampler,
                                 SliceLayout layout)
    : options_(options),
      sampler_(std::move(sampler)),
      layout_(std::move(layout)),
      adamw_(FactorGroups(layout_, options.lora_plus_ratio), options.adamw) {
  if (layout_.whole()) return;
  slice_gradient_.resize(static_cast<size_t>(layout_.size()));
  slice_values_.resize(slice_gradient_.size());
}

absl::StatusOr<AdapterTraining> AdapterTraining::Create(const BaseModel& model,
                                                        const std::vector<Example>& examples,
                                                        const TrainOptions& options,
                                                        const LoraAdapter& adapter) {
  RETURN_IF_ERROR(CheckOptions(options));
  RETURN_IF_ERROR(model.CheckAdapter(adapter.spec()));
  std::vector<Example> trainable = Trainable(examples);
  const auto num_examples = static_cast<int64_t>(trainable.size());
  if (trainable.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("none of the ", examples.size(), " examples has a token to train on"));
  }
  ASSIGN_OR_RETURN(SliceLayout layout, SliceLayout::Create(adapter.spec(), options.slice));
  BatchSampler sampler(std::move(trainable), options.batch_size, options.length,
                       Rng::Stream(options.seed, "batches"), options.completion_weight);
  AdapterTraining training(options, std::move(sampler), std::move(layout));
  training.result_.num_examples = num_examples;
  training.gradient_.resize(adapter.values().size());
  if (options.proximal_mu > 0) {
    training.start_.assign(adapter.values().begin(), adapter.values().end());
  }
  return training;
}

absl::StatusOr<TrainProgress> AdapterTraining::Step(Transformer& transformer,
                                                    const std::function<bool()>& interrupted,
                                                    LoraAdapter& adapter) {
  FEDGE_CHECK(!done() && adapter.values().size() == gradient_.size());
  transformer.set_training_precision(options_.precision);
  const int64_t step = step_ + 1;
  if (!batch_) batch_ = sampler_.Next();
  Dropout dropout;
  dropout.rate = options_.lora_dropout;
  dropout.seed = Rng::Stream(options_.seed, "dropout", static_cast<uint64_t>(step)).Next();
  const LossSum loss = AccumulateGradient(transformer, *batch_, options_.micro_batch, adapter,
                                          dropout, absl::MakeSpan(gradient_));
  if (interrupted && interrupted()) {
    return absl::CancelledError(absl::StrCat("stopped after step ", step_));
  }
  const float rate = options_.learning_rate.At(step_);
  if (!std::isfinite(loss.nats)) return NotFinite("loss", step, rate);
  if (!start_.empty()) {
    AddProximalGradient(options_.proximal_mu, adapter.values(), start_, absl::MakeSpan(gradient_));
  }
  const double norm = StepOptimizer(rate, adapter.values());
  if (!std::isfinite(norm)) return NotFinite("gradient", step, rate);

  batch_.reset();
  step_ = step;
  result_.num_tokens += loss.num_tokens;
  result_.last_loss = loss.mean();
  if (step == 1) result_.first_loss = loss.mean();
  loss_sum_ += loss.mean();
  return TrainProgress{step, options_.steps, loss.mean(), norm, result_.num_tokens};
}

double AdapterTraining::StepOptimizer(float rate, absl::Span<float> values) {
  const bool whole = layout_.whole();
  if (!whole) {
    layout_.Gather(gradient_, absl::MakeSpan(slice_gradient_));
    layout_.Gather(values, absl::MakeSpan(slice_values_));
  }
  const absl::Span<float> gradient = absl::MakeSpan(whole ? gradient_ : slice_gradient_);
  const double norm = ClipByGlobalNorm(options_.clip_norm, gradient);
  if (!std::isfinite(norm)) return norm;
  adamw_.Step(gradient, rate, whole ? values : absl::MakeSpan(slice_values_));
  if (!whole) layout_.Scatter(slice_values_, values);
  return norm;
}

TrainResult AdapterTraining::result() const {
  TrainResult result = result_;
  if (step_ > 0) result.mean_loss = loss_sum_ / static_cast<double>(step_);
  return result;
}

std::string AdapterTraining::Serialize(const LoraAdapter& adapter) const {
  ByteWriter writer;
  writer.Write(kStateMagic);
  writer.Write(step_);
  writer.Write(loss_sum_);
  writer.Write(result_.first_loss);
  writer.Write(result_.last_loss);
  writer.Write(result_.num_tokens);
  writer.WriteBytes(BytesOf(adapter.values()));
  adamw_.Write(writer);
  writer.Write(Crc32c(writer.bytes()));
  return std::move(writer).Take();
}

absl::Status AdapterTraining::Restore(absl::string_view bytes, LoraAdapter& adapter) {
  const absl::Status damaged =
      absl::DataLossError("training state: damaged, or of another adapter or optimizer");
  if (bytes.size() < 2 * sizeof(uint32_t)) return damaged;
  const absl::string_view body = bytes.substr(0, bytes.size() - sizeof(uint32_t));
  if (ByteReader(bytes.substr(body.size())).Read<uint32_t>() != Crc32c(body)) return damaged;
  ByteReader reader(body);
  if (reader.Read<uint32_t>() != kStateMagic) return damaged;
  const auto step = reader.Read<int64_t>();
  loss_sum_ = reader.Read<double>();
  result_.first_loss = reader.Read<double>();
  result_.last_loss = reader.Read<double>();
  result_.num_tokens = reader.Read<int64_t>();
  const absl::Span<float> values = adapter.values();
  const absl::string_view held = reader.ReadBytes(values.size() * sizeof(float));
  if (!reader.ok() || step < step_ || step > options_.steps || !adamw_.Read(reader) ||
      reader.remaining() != 0) {
    return damaged;
  }
  std::memcpy(values.data(), held.data(), held.size());
  for (; step_ < step; ++step_) sampler_.Next();
  return absl::OkStatus();
}

absl::StatusOr<TrainResult> TrainAdapter(Transformer& transformer,
                                         const std::vector<Example>& examples,
                                         const TrainOptions& options,
                                         const std::function<bool(const TrainProgress&)>& on_step,
                                         LoraAdapter& adapter) {
  ASSIGN_OR_RETURN(AdapterTraining training,
                   AdapterTraining::Create(transformer.model(), examples, options, adapter));
  while (!training.done()) {
    ASSIGN_OR_RETURN(const TrainProgress progress, training.Step(transformer, nullptr, adapter));
    if (on_step && !on_step(progress)) {
      return absl::CancelledError(absl::StrCat("stopped after step ", progress.step));
    }
  }
  return training.result();
}

}  // namespace fedge
