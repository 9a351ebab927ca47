#include "client/local_training.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/kept_message.h"
#include "common/base/byte_io.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "common/training/evaluation.h"
#include "common/training/memory_plan.h"

namespace fedge {
namespace {

std::vector<float> Difference(absl::Span<const float> after, absl::Span<const float> before) {
  std::vector<float> delta(after.size());
  for (size_t i = 0; i < delta.size(); ++i) delta[i] = after[i] - before[i];
  return delta;
}

// Of the text, which is the records' size give or take their names.
uint64_t TextBytes(const std::vector<Record>& records) {
  uint64_t bytes = 0;
  for (const Record& record : records) {
    for (const RecordSpan& span : record.spans) bytes += span.text.size();
  }
  return bytes;
}

Digest DigestOf(const std::vector<Record>& records) {
  Sha256 hash;
  const auto add = [&](absl::string_view text) {
    ByteWriter size;
    size.Write<uint64_t>(text.size());
    hash.Update(size.bytes());
    hash.Update(text);
  };
  for (const Record& record : records) {
    add(record.node);
    add(record.id);
    for (const RecordSpan& span : record.spans) {
      add(span.text);
      add(absl::StrCat(span.trained, span.control));
    }
  }
  return hash.Finish();
}

}  // namespace

LocalTraining::LocalTraining(LocalTrainingOptions options, LocalTrainingParts parts)
    : options_(std::move(options)), parts_(std::move(parts)) {}

absl::Duration LocalTraining::WorkingTime() const {
  const absl::Duration held = parts_.held_time ? parts_.held_time() : absl::ZeroDuration();
  return parts_.clock->Monotonic() - held;
}

std::vector<std::string> LocalTraining::TakeWarnings() { return std::exchange(warnings_, {}); }

absl::Status LocalTraining::PlanMemoryOf(Task& task, Transformer& transformer) {
  evaluation_rows_ = kEvaluationRows;
  if (options_.memory_limit_bytes == 0) return absl::OkStatus();
  MemoryRequest request;
  request.model = parts_.base.get();
  request.adapter = &task.lora;
  request.batch_size = task.training.batch_size;
  request.length = task.training.length;
  request.moment_bits = task.training.adamw.moment_bits;
  request.threads = options_.threads;
  request.dropout = task.training.lora_dropout > 0;
  request.precision = task.training.precision;
  // The records' text, and its tokens and targets at about three bytes a token.
  request.data_bytes = static_cast<int64_t>(TextBytes(*parts_.records) * 4);
  request.may_reduce_optimizer = true;
  request.may_reduce_length = true;  // the rank is the server's to choose
  ASSIGN_OR_RETURN(MemoryPlan plan, PlanMemory(request));
  if (plan.estimate.total() > options_.memory_limit_bytes) {
    // Only then: with a limit, a plan takes what it may.
    request.limit_bytes = options_.memory_limit_bytes;
    ASSIGN_OR_RETURN(plan, PlanMemory(request));
  }
  task.training.micro_batch = plan.micro_batch;
  task.training.length = plan.length;
  task.training.adamw.moment_bits = plan.moment_bits;
  if (plan.limit_bytes > 0) evaluation_rows_ = std::min(kEvaluationRows, plan.micro_batch);
  transformer.set_options(plan.transformer);
  return absl::OkStatus();
}

const LocalExamples& LocalTraining::ExamplesOf(const Task& task) {
  const std::string key =
      absl::StrCat(task.training.length, "/", task.split_seed, "/", task.validation_fraction);
  if (key != examples_key_) {
    examples_ = MakeLocalExamples(*parts_.records, parts_.base->tokenizer(), task.training.length,
                                  task.split_seed, task.validation_fraction);
    examples_key_ = key;
  }
  return examples_;
}

absl::StatusOr<TrainedTask> LocalTraining::Run(const v1::Assignment& assignment, Task task,
                                               LoraAdapter adapter, Transformer& transformer) {
  RETURN_IF_ERROR(PlanMemoryOf(task, transformer));
  const LocalExamples& examples = ExamplesOf(task);
  TrainedTask trained;
  std::vector<Example> sample;
  if (options_.max_validation_tokens > 0 && !examples.validation.empty()) {
    sample = BoundedSample(examples.validation, options_.max_validation_tokens,
                           Rng::Stream(task.split_seed, "validation-sample"));
    const LossSum loss = EvaluateLoss(transformer, &adapter, sample, evaluation_rows_);
    if (stopping()) return absl::CancelledError("stopping");
    trained.metrics.set_validation_loss_before(loss.mean());
    trained.metrics.set_validation_tokens(static_cast<uint64_t>(loss.num_tokens));
  }
  const LoraAdapter before = adapter;
  const absl::Status status =
      Train(assignment, task, examples, transformer, adapter, trained.metrics);
  if (!options_.keep_examples) {
    examples_ = LocalExamples();
    examples_key_.clear();
  }
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(FEDGE_FAILPOINT("client.trained"));
  if (parts_.on_trained && !sample.empty()) {
    LocalLosses losses;
    losses.version = task.adapter_version;
    losses.global_loss = trained.metrics.validation_loss_before();
    losses.personal_loss = EvaluateLoss(transformer, &adapter, sample, evaluation_rows_).mean();
    losses.tokens = static_cast<int64_t>(trained.metrics.validation_tokens());
    losses.sample = StableHash(absl::StrCat(DigestOf(*parts_.records).Hex(), examples_key_));
    if (!stopping()) parts_.on_trained(before, adapter, losses);
  }
  trained.delta = Difference(adapter.values(), before.values());
  return trained;
}

absl::Status LocalTraining::Train(const v1::Assignment& assignment, const Task& task,
                                  const LocalExamples& examples, Transformer& transformer,
                                  LoraAdapter& adapter, v1::TaskMetrics& metrics) {
  if (examples.train.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "no usable training data: ", parts_.records->size(),
        " local records give no training example; give the client more data with --data"));
  }
  ASSIGN_OR_RETURN(AdapterTraining training,
                   AdapterTraining::Create(*parts_.base, examples.train, task.training, adapter));
  const std::string key = parts_.checkpoints == nullptr ? "" : KeyOf(assignment, task);
  Resume(key, task, examples, training, adapter, metrics);
  const uint64_t train_ms_before = metrics.train_ms();
  const absl::Duration start = parts_.clock->Monotonic();
  const absl::Duration working_start = WorkingTime();
  absl::Duration kept_at = start;
  const auto keep = [&] {
    const absl::Duration took = WorkingTime() - working_start;
    metrics.set_train_ms(train_ms_before + static_cast<uint64_t>(absl::ToInt64Milliseconds(took)));
    kept_at = parts_.clock->Monotonic();
    if (!training.done()) Keep(assignment, key, training, adapter, metrics);
  };
  while (!training.done()) {
    const absl::StatusOr<TrainProgress> progress =
        training.Step(transformer, parts_.stopping, adapter);
    if (!progress.ok() && !absl::IsCancelled(progress.status())) return progress.status();
    if (progress.ok() && parts_.on_step) parts_.on_step(*progress);
    if (!progress.ok() || stopping()) {
      keep();
      return absl::CancelledError(absl::StrCat("stopped after step ", training.step()));
    }
    const absl::Duration now = parts_.clock->Monotonic();
    if (now - kept_at >= options_.checkpoint_interval) keep();
    if (task.deadline > absl::ZeroDuration() && !training.done() && now - start > task.deadline) {
      return absl::DeadlineExceededError(absl::StrCat(
          "the round's deadline of ", absl::FormatDuration(task.deadline),
          " passed during training; this device needs fewer steps or the run a longer deadline"));
    }
  }
  keep();
  const TrainResult result = training.result();
  metrics.set_train_loss_first(result.first_loss);
  metrics.set_train_loss_last(result.last_loss);
  metrics.set_num_examples(static_cast<uint64_t>(result.num_examples));
  metrics.set_train_tokens(static_cast<uint64_t>(result.num_tokens));
  return absl::OkStatus();
}

std::string LocalTraining::KeyOf(const v1::Assignment& assignment, const Task& task) {
  if (!records_digest_) records_digest_ = DigestOf(*parts_.records);
  // How the adapter came and how much time is left do not change the result.
  v1::Assignment decides = assignment;
  decides.clear_deadline_ms();
  decides.clear_adapter();
  ByteWriter key;
  key.WriteBytes(decides.SerializeAsString());
  key.WriteBytes(records_digest_->Raw());
  key.WriteBytes(absl::StrCat("/", assignment.adapter().values_crc32c(), "/", options_.node_id, "/",
                              task.training.length, "/", task.training.micro_batch, "/",
                              task.training.adamw.moment_bits));
  return Sha256Of(key.bytes()).Raw();
}

void LocalTraining::Resume(const std::string& key, const Task& task, const LocalExamples& examples,
                           AdapterTraining& training, LoraAdapter& adapter,
                           v1::TaskMetrics& metrics) {
  if (parts_.checkpoints == nullptr) return;
  const absl::StatusOr<std::string> bytes = parts_.checkpoints->Read(options_.node_id);
  if (!bytes.ok() || bytes->empty()) return;
  v1::TrainingCheckpoint kept;
  absl::Status status = UnsealMessage(*bytes, "the training's checkpoint", kept);
  if (status.ok() && kept.key() != key) return;  // another task's: replaced by the next one
  const LoraAdapter before = adapter;
  if (status.ok()) status = training.Restore(kept.training(), adapter);
  if (status.ok()) {
    metrics.set_train_ms(kept.metrics().train_ms());
    return;
  }
  warnings_.push_back(
      absl::StrCat("the training begins again from its first step: ", status.message()));
  adapter = before;
  // Restore may have left anything; the options were good a moment ago.
  training = AdapterTraining::Create(*parts_.base, examples.train, task.training, adapter).value();
}

void LocalTraining::Keep(const v1::Assignment& assignment, const std::string& key,
                         const AdapterTraining& training, const LoraAdapter& adapter,
                         const v1::TaskMetrics& metrics) {
  if (parts_.checkpoints == nullptr) return;
  v1::TrainingCheckpoint checkpoint;
  checkpoint.set_key(key);
  *checkpoint.mutable_assignment() = assignment;
  *checkpoint.mutable_metrics() = metrics;
  checkpoint.set_training(training.Serialize(adapter));
  may_be_kept_ = true;
  const absl::Status kept = FEDGE_FAILPOINT_RUN(
      "client.checkpoint", parts_.checkpoints->Write(options_.node_id, SealMessage(checkpoint)));
  if (kept.ok()) return;
  // One line a task is enough; each names another temporary file.
  constexpr absl::string_view kWarning = "no checkpoint of the training, a restart would begin it";
  if (!warnings_.empty() && absl::StartsWith(warnings_.back(), kWarning)) return;
  warnings_.push_back(absl::StrCat(kWarning, " again: ", kept.message()));
}

std::optional<v1::Assignment> LocalTraining::Unfinished() {
  if (parts_.checkpoints == nullptr) return std::nullopt;
  const absl::StatusOr<std::string> bytes = parts_.checkpoints->Read(options_.node_id);
  if (!bytes.ok() || bytes->empty()) return std::nullopt;
  v1::TrainingCheckpoint kept;
  if (!UnsealMessage(*bytes, "the training's checkpoint", kept).ok()) return std::nullopt;
  return std::move(*kept.mutable_assignment());
}

absl::Status LocalTraining::Forget() {
  if (parts_.checkpoints == nullptr || !may_be_kept_) return absl::OkStatus();
  RETURN_IF_ERROR(
      FEDGE_FAILPOINT_RUN("client.forget", parts_.checkpoints->Remove(options_.node_id)));
  may_be_kept_ = false;
  return absl::OkStatus();
}

}  // namespace fedge
