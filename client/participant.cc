#include "client/participant.h"

#include <algorithm>
#include <utility>

#include "common/base/digest.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "common/codec/update_codec.h"
#include "common/training/evaluation.h"
#include "common/training/trainer.h"

namespace fedge {
namespace {

constexpr size_t kMaxErrorBytes = 500;
constexpr absl::Duration kPauseAfterTask = absl::Milliseconds(100);
constexpr absl::Duration kPauseAfterFailure = absl::Seconds(10);

// A report's error is one line and short.
std::string OneLine(absl::string_view text) {
  std::string line(text.substr(0, kMaxErrorBytes));
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  return line;
}

std::vector<float> Difference(absl::Span<const float> after, absl::Span<const float> before) {
  std::vector<float> delta(after.size());
  for (size_t i = 0; i < delta.size(); ++i) delta[i] = after[i] - before[i];
  return delta;
}

}  // namespace

absl::string_view StepKindName(StepKind kind) {
  switch (kind) {
    case StepKind::kWaiting:
      return "waiting";
    case StepKind::kAccepted:
      return "accepted";
    case StepKind::kRejected:
      return "rejected";
    case StepKind::kLate:
      return "late";
    case StepKind::kFailed:
      return "failed";
    case StepKind::kFinished:
      return "finished";
  }
  return "unknown";
}

Participant::Participant(ParticipantOptions options, ParticipantParts parts)
    : options_(std::move(options)),
      parts_(std::move(parts)),
      transfer_(parts_.link, parts_.clock, options_.retry, options_.seed, parts_.stopping),
      pause_rng_(Rng::Stream(options_.seed, absl::StrCat("pause/", options_.node_id))),
      global_(options_.node_id, parts_.base->sha256(), &transfer_, parts_.adapters) {}

ParticipantState Participant::LoadState(std::vector<std::string>* warnings) {
  absl::StatusOr<std::string> bytes = parts_.state->Read(options_.node_id);
  if (absl::IsNotFound(bytes.status())) return {};
  absl::StatusOr<ParticipantState> state =
      bytes.ok() ? ParticipantState::Parse(*bytes) : bytes.status();
  if (state.ok()) return *std::move(state);
  warnings->push_back(OneLine(state.status().message()));
  return {};
}

v1::CheckInRequest Participant::MakeCheckIn(const ParticipantState& state) {
  v1::CheckInRequest request;
  request.set_node_id(options_.node_id);
  request.set_base_model_sha256(parts_.base->sha256().Raw());
  if (!global_.held().run_id().empty()) *request.mutable_held_adapter() = global_.held();
  *request.mutable_device() = options_.device;
  request.mutable_device()->set_tokens_per_second(state.tokens_per_second);
  request.mutable_device()->set_num_examples(state.num_examples);
  return request;
}

StepOutcome Participant::Wait(const v1::RetryWindow& window) {
  StepOutcome outcome;
  outcome.detail = OneLine(window.reason());
  constexpr uint64_t kLongestMs = 7 * 24 * 3600 * 1000ull;
  const uint64_t low = std::min<uint64_t>(window.min_delay_ms(), kLongestMs);
  const uint64_t high = std::clamp<uint64_t>(window.max_delay_ms(), low, kLongestMs);
  outcome.pause = absl::Milliseconds(static_cast<int64_t>(low + pause_rng_.Below(high - low + 1)));
  return outcome;
}

absl::StatusOr<StepOutcome> Participant::RunOnce(Transformer& transformer) {
  std::vector<std::string> warnings;
  ParticipantState state = LoadState(&warnings);
  absl::StatusOr<StepOutcome> outcome;
  if (outgoing_.has_value()) {
    outcome = SubmitOutgoing(std::move(state));
  } else {
    outcome = CheckInAndAct(transformer, std::move(state));
  }
  if (outcome.ok()) {
    const std::string warning = global_.TakeWarning();
    if (!warning.empty()) warnings.push_back(OneLine(warning));
    outcome->warnings.insert(outcome->warnings.begin(), warnings.begin(), warnings.end());
  }
  return outcome;
}

absl::StatusOr<StepOutcome> Participant::CheckInAndAct(Transformer& transformer,
                                                       ParticipantState state) {
  ASSIGN_OR_RETURN(const v1::CheckInResponse response, transfer_.CheckIn(MakeCheckIn(state)));
  switch (response.outcome_case()) {
    case v1::CheckInResponse::kAssignment:
      return RunAssignment(response.assignment(), transformer, std::move(state));
    case v1::CheckInResponse::kFinished: {
      finished_ = response.finished();
      if (!finished_->has_lora()) *finished_->mutable_lora() = state.lora;
      StepOutcome outcome;
      outcome.kind = StepKind::kFinished;
      return outcome;
    }
    case v1::CheckInResponse::kRetry:
      return Wait(response.retry());
    default:
      return absl::UnimplementedError(
          "the server answered the check-in with something this client does not know; "
          "update the client");
  }
}

absl::StatusOr<StepOutcome> Participant::RunAssignment(const v1::Assignment& assignment,
                                                       Transformer& transformer,
                                                       ParticipantState state) {
  const auto fail = [&](const absl::Status& why) {
    return FailTask(assignment.run_id(), assignment.round(), why);
  };
  const absl::StatusOr<Task> task = ParseTask(assignment, options_.node_id, *parts_.base);
  if (!task.ok()) return fail(task.status());
  absl::StatusOr<LoraAdapter> adapter = global_.Fetch(task->lora, task->adapter);
  if (!adapter.ok()) {
    if (IsRetryable(adapter.status()) || absl::IsCancelled(adapter.status())) {
      return adapter.status();  // the line's trouble, not the task's: ask again later
    }
    if (absl::IsNotFound(adapter.status())) {  // the run moved on between the two calls
      StepOutcome outcome;
      outcome.detail = OneLine(adapter.status().message());
      outcome.pause = kPauseAfterTask;
      return outcome;
    }
    if (task->adapter.held() && !global_.held().run_id().empty()) {
      // What was kept is not what it should be: ask for all of it.
      global_.Forget();
      return CheckInAndAct(transformer, std::move(state));
    }
    return fail(adapter.status());
  }
  if (state.run_id != task->run_id) {
    state.run_id = task->run_id;
    state.error_feedback.clear();  // what another run did not get is not this one's
  }
  const absl::Status trained = TrainAndEncode(*task, *std::move(adapter), transformer, state);
  if (absl::IsCancelled(trained)) return trained;
  if (!trained.ok()) return fail(trained);
  outgoing_->lora = assignment.lora();
  return SubmitOutgoing(std::move(state));
}

const LocalExamples& Participant::ExamplesOf(const Task& task) {
  const std::string key =
      absl::StrCat(task.training.length, "/", task.split_seed, "/", task.validation_fraction);
  if (key != examples_key_) {
    examples_ = MakeLocalExamples(parts_.records, parts_.base->tokenizer(), task.training.length,
                                  task.split_seed, task.validation_fraction);
    examples_key_ = key;
  }
  return examples_;
}

absl::Status Participant::TrainAndEncode(const Task& task, LoraAdapter adapter,
                                         Transformer& transformer, const ParticipantState& state) {
  const LocalExamples& examples = ExamplesOf(task);
  v1::TaskMetrics metrics;
  metrics.set_download_bytes(global_.downloaded_bytes() - reported_download_bytes_);
  reported_download_bytes_ = global_.downloaded_bytes();
  if (options_.max_validation_tokens > 0 && !examples.validation.empty()) {
    const std::vector<Example> sample =
        BoundedSample(examples.validation, options_.max_validation_tokens,
                      Rng::Stream(task.split_seed, "validation-sample"));
    const LossSum loss = EvaluateLoss(transformer, &adapter, sample);
    metrics.set_validation_loss_before(loss.mean());
    metrics.set_validation_tokens(static_cast<uint64_t>(loss.num_tokens));
  }
  const std::vector<float> before(adapter.values().begin(), adapter.values().end());
  const absl::Status trained = Train(task, examples, transformer, &adapter, &metrics);
  if (!options_.keep_examples) {
    examples_ = LocalExamples();
    examples_key_.clear();
  }
  RETURN_IF_ERROR(trained);
  RETURN_IF_ERROR(FEDGE_FAILPOINT("client.trained"));
  return Encode(task, Difference(adapter.values(), before), state, std::move(metrics));
}

absl::Status Participant::Train(const Task& task, const LocalExamples& examples,
                                Transformer& transformer, LoraAdapter* adapter,
                                v1::TaskMetrics* metrics) {
  if (examples.train.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "no usable training data: ", parts_.records.size(),
        " local records give no training example; give the client more data with --data"));
  }
  const absl::Duration start = parts_.clock->Monotonic();
  bool too_late = false;
  const auto on_step = [&](const TrainProgress& progress) {
    if (parts_.on_step) parts_.on_step(progress);
    if (parts_.stopping && parts_.stopping()) return false;
    too_late = task.deadline > absl::ZeroDuration() && progress.step < progress.steps &&
               parts_.clock->Monotonic() - start > task.deadline;
    return !too_late;
  };
  const absl::StatusOr<TrainResult> result =
      TrainAdapter(transformer, examples.train, task.training, on_step, *adapter);
  if (too_late) {
    return absl::DeadlineExceededError(absl::StrCat(
        "the round's deadline of ", absl::FormatDuration(task.deadline),
        " passed during training; this device needs fewer steps or the run a longer deadline"));
  }
  if (!result.ok()) return result.status();
  const absl::Duration took = parts_.clock->Monotonic() - start;
  metrics->set_train_loss_first(result->first_loss);
  metrics->set_train_loss_last(result->last_loss);
  metrics->set_num_examples(static_cast<uint64_t>(result->num_examples));
  metrics->set_train_tokens(static_cast<uint64_t>(result->num_tokens));
  metrics->set_train_ms(static_cast<uint64_t>(absl::ToInt64Milliseconds(took)));
  return absl::OkStatus();
}

absl::Status Participant::Encode(const Task& task, absl::Span<const float> delta,
                                 const ParticipantState& state, v1::TaskMetrics metrics) {
  UpdateHeader header;
  header.round = task.round;
  header.base_version = task.adapter_version;
  header.num_examples = metrics.num_examples();
  header.layout_hash = task.lora.layout_hash();
  header.base_model = parts_.base->sha256();
  ASSIGN_OR_RETURN(const SliceLayout layout, SliceLayout::Create(task.lora, task.training.slice));
  Outgoing outgoing;
  if (task.error_feedback) {
    outgoing.feedback.emplace(task.lora, header.base_model, task.frame, task.feedback);
    if (!state.error_feedback.empty()) {
      // A residual of another frame or base has no place in this one; the node starts afresh.
      const absl::Status restored = outgoing.feedback->Restore(state.error_feedback);
      if (!restored.ok()) {
        outgoing.feedback.emplace(task.lora, header.base_model, task.frame, task.feedback);
      }
    }
    ASSIGN_OR_RETURN(outgoing.bytes, outgoing.feedback->Prepare(delta, layout, header, task.codec));
  } else {
    ASSIGN_OR_RETURN(outgoing.bytes, EncodeUpdate(delta, layout, header, task.codec, {}));
  }
  metrics.set_upload_bytes(outgoing.bytes.size());
  outgoing.metrics = std::move(metrics);
  outgoing.id.set_run_id(task.run_id);
  outgoing.id.set_round(task.round);
  outgoing.id.set_node_id(options_.node_id);
  outgoing.id.set_sha256(Sha256Of(outgoing.bytes).Raw());
  outgoing.id.set_size_bytes(outgoing.bytes.size());
  outgoing_ = std::move(outgoing);
  return absl::OkStatus();
}

absl::StatusOr<StepOutcome> Participant::SubmitOutgoing(ParticipantState state) {
  const absl::StatusOr<v1::UploadReceipt> receipt =
      transfer_.Submit(outgoing_->id, outgoing_->metrics, outgoing_->bytes);
  if (!receipt.ok() && (IsRetryable(receipt.status()) || absl::IsCancelled(receipt.status()))) {
    return receipt.status();  // outgoing_ stays for the next call
  }
  const Outgoing sent = *std::move(outgoing_);
  outgoing_.reset();
  if (!receipt.ok()) return FailTask(sent.id.run_id(), sent.id.round(), receipt.status());

  return Settle(sent, *receipt, std::move(state));
}

StepOutcome Participant::Settle(const Outgoing& sent, const v1::UploadReceipt& receipt,
                                ParticipantState state) {
  StepOutcome outcome;
  outcome.round = sent.id.round();
  outcome.metrics = sent.metrics;
  outcome.detail = OneLine(receipt.reason());
  outcome.pause = kPauseAfterTask;
  outcome.kind = receipt.verdict() == v1::UploadReceipt::ACCEPTED   ? StepKind::kAccepted
                 : receipt.verdict() == v1::UploadReceipt::REJECTED ? StepKind::kRejected
                                                                    : StepKind::kLate;
  // Rejected or late: the delta is dropped and the residual of before stays. A late delta was made
  // against a version that is gone, and the node trains on the same data again anyway.
  if (sent.feedback.has_value()) {
    ErrorFeedback feedback = *sent.feedback;
    if (outcome.kind == StepKind::kAccepted) {
      feedback.Commit();
    } else {
      feedback.Discard();
    }
    state.error_feedback = feedback.Serialize();
  }
  state.run_id = sent.id.run_id();
  state.lora = sent.lora;
  state.num_examples = sent.metrics.num_examples();
  state.last_metrics = sent.metrics;
  if (sent.metrics.train_ms() > 0) {
    state.tokens_per_second = 1000.0 * static_cast<double>(sent.metrics.train_tokens()) /
                              static_cast<double>(sent.metrics.train_ms());
  }
  const absl::Status saved =
      FEDGE_FAILPOINT_RUN("client.state", parts_.state->Write(options_.node_id, state.Serialize()));
  if (!saved.ok()) outcome.warnings.push_back(OneLine(saved.message()));
  return outcome;
}

StepOutcome Participant::FailTask(const std::string& run_id, uint64_t round,
                                  const absl::Status& why) {
  StepOutcome outcome;
  outcome.kind = StepKind::kFailed;
  outcome.round = round;
  outcome.detail = OneLine(why.message());
  outcome.pause = kPauseAfterFailure;
  v1::ReportRequest report;
  report.set_run_id(run_id);
  report.set_round(round);
  report.set_node_id(options_.node_id);
  report.set_completed(false);
  report.set_error(outcome.detail);
  const absl::Status sent = transfer_.Report(report);
  if (!sent.ok()) {
    outcome.warnings.push_back(
        absl::StrCat("the report of round ", round, " was lost: ", OneLine(sent.message())));
  }
  return outcome;
}

absl::StatusOr<LoraAdapter> Participant::FetchFinalAdapter() {
  if (!finished_.has_value()) {
    return absl::FailedPreconditionError("the run has not finished yet");
  }
  ASSIGN_OR_RETURN(const LoraSpec spec, LoraSpecFromProto(finished_->lora()));
  RETURN_IF_ERROR(parts_.base->CheckAdapter(spec));
  absl::StatusOr<LoraAdapter> adapter = global_.Fetch(spec, finished_->adapter());
  if (adapter.ok() || !finished_->adapter().held() || global_.held().run_id().empty()) {
    return adapter;
  }
  if (IsRetryable(adapter.status()) || absl::IsCancelled(adapter.status())) return adapter;
  global_.Forget();
  std::vector<std::string> warnings;
  ASSIGN_OR_RETURN(const v1::CheckInResponse again,
                   transfer_.CheckIn(MakeCheckIn(LoadState(&warnings))));
  if (!again.has_finished()) return adapter;
  *finished_->mutable_adapter() = again.finished().adapter();
  return global_.Fetch(spec, finished_->adapter());
}

}  // namespace fedge
