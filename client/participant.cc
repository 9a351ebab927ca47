#include "client/participant.h"

#include <algorithm>
#include <utility>

#include "client/kept_message.h"
#include "common/base/digest.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "common/codec/error_feedback.h"
#include "common/codec/update_codec.h"

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

// Whether the server's refusal ends the update: it will never be wanted. Everything else (a server
// that is broken, a certificate that has run out) may be mended while the update waits.
bool IsFinal(const absl::Status& refused) {
  return absl::IsInvalidArgument(refused) || absl::IsFailedPrecondition(refused) ||
         absl::IsNotFound(refused) || absl::IsAlreadyExists(refused) ||
         absl::IsOutOfRange(refused) || absl::IsDataLoss(refused);
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
      training_({options_.node_id, options_.max_validation_tokens, options_.keep_examples,
                 options_.memory_limit_bytes, options_.threads, options_.checkpoint_interval},
                {parts_.base, &parts_.records, parts_.checkpoints, parts_.clock, parts_.stopping,
                 parts_.on_step, parts_.held_time, parts_.on_trained}),
      global_(options_.node_id, parts_.base->sha256(), &transfer_, parts_.adapters,
              parts_.server_key) {}

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
  if (parts_.describe_device) parts_.describe_device(*request.mutable_device());
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
  warnings_.clear();
  ParticipantState state = LoadState(&warnings_);
  LoadOutgoing();
  absl::StatusOr<StepOutcome> outcome = outgoing_.has_value()
                                            ? SubmitOutgoing(std::move(state))
                                            : CheckInAndAct(transformer, std::move(state));
  if (!outcome.ok()) return outcome;
  for (std::string& warning : training_.TakeWarnings()) warnings_.push_back(std::move(warning));
  const std::string kept = global_.TakeWarning();
  if (!kept.empty()) warnings_.push_back(kept);
  for (const std::string& warning : warnings_) outcome->warnings.push_back(OneLine(warning));
  return outcome;
}

absl::StatusOr<StepOutcome> Participant::CheckInAndAct(Transformer& transformer,
                                                       ParticipantState state) {
  const absl::StatusOr<v1::CheckInResponse> answer = transfer_.CheckIn(MakeCheckIn(state));
  if (!answer.ok()) return GoOnWithoutServer(answer.status(), transformer, std::move(state));
  const v1::CheckInResponse& response = *answer;
  switch (response.outcome_case()) {
    case v1::CheckInResponse::kAssignment:
      return RunAssignment(response.assignment(), transformer, std::move(state));
    case v1::CheckInResponse::kFinished: {
      DropOutgoing();  // what could not be removed before
      finished_ = response.finished();
      if (!finished_->has_lora()) *finished_->mutable_lora() = state.lora;
      StepOutcome outcome;
      outcome.kind = StepKind::kFinished;
      return outcome;
    }
    case v1::CheckInResponse::kRetry:
      return Wait(response.retry());
    case v1::CheckInResponse::kEvaluation:
      return RunEvaluation(response.evaluation(), transformer);
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
  if (parts_.on_task) parts_.on_task(assignment);
  const absl::StatusOr<Task> task = ParseTask(assignment, options_.node_id, *parts_.base);
  if (!task.ok()) return fail(task.status());
  absl::StatusOr<LoraAdapter> adapter = global_.Fetch(task->lora, task->adapter);
  if (!adapter.ok()) {
    if (IsRetryable(adapter.status()) || absl::IsCancelled(adapter.status())) {
      return adapter.status();  // the line's trouble, not the task's: ask again later
    }
    if (absl::IsUnauthenticated(adapter.status())) return adapter.status();  // not our server's
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
  if (parts_.on_global) parts_.on_global(*adapter, task->adapter_version);
  if (state.run_id != task->run_id) {
    state.run_id = task->run_id;
    state.error_feedback.clear();  // what another run did not get is not this one's
  }
  absl::StatusOr<TrainedTask> trained =
      training_.Run(assignment, *task, *std::move(adapter), transformer);
  if (absl::IsCancelled(trained.status())) return trained.status();
  if (!trained.ok()) return fail(trained.status());
  trained->metrics.set_download_bytes(global_.downloaded_bytes() - reported_download_bytes_);
  reported_download_bytes_ = global_.downloaded_bytes();
  absl::StatusOr<v1::OutboxEntry> update = Encode(*task, *trained, state);
  if (!update.ok()) return fail(update.status());
  *update->mutable_lora() = assignment.lora();
  outgoing_ = *std::move(update);
  outgoing_kept_ = false;
  return SubmitOutgoing(std::move(state));
}

absl::StatusOr<StepOutcome> Participant::GoOnWithoutServer(const absl::Status& unreachable,
                                                           Transformer& transformer,
                                                           ParticipantState state) {
  if (!IsRetryable(unreachable)) return unreachable;
  std::optional<v1::Assignment> task = training_.Unfinished();
  const v1::HeldAdapter& held = global_.held();
  if (!task || held.run_id() != task->run_id() || held.version() != task->adapter_version()) {
    return unreachable;
  }
  // The server is to say whether the round still wants it.
  task->clear_deadline_ms();
  v1::AdapterSource source;
  source.set_run_id(held.run_id());
  source.set_version(held.version());
  source.set_values_crc32c(held.values_crc32c());
  source.set_held(true);
  *source.mutable_manifest() = task->adapter().manifest();
  *task->mutable_adapter() = std::move(source);
  warnings_.push_back(absl::StrCat(unreachable.message(), "; the training of round ", task->round(),
                                   " goes on without it"));
  return RunAssignment(*task, transformer, std::move(state));
}

absl::StatusOr<v1::OutboxEntry> Participant::Encode(const Task& task, const TrainedTask& trained,
                                                    const ParticipantState& state) {
  UpdateHeader header;
  header.round = task.round;
  header.base_version = task.adapter_version;
  header.num_examples = trained.metrics.num_examples();
  header.layout_hash = task.lora.layout_hash();
  header.base_model = parts_.base->sha256();
  ASSIGN_OR_RETURN(const SliceLayout layout, SliceLayout::Create(task.lora, task.training.slice));
  v1::OutboxEntry outgoing;
  std::string bytes;
  if (task.error_feedback) {
    std::optional<ErrorFeedback> feedback;
    feedback.emplace(task.lora, header.base_model, task.frame, task.feedback);
    if (!state.error_feedback.empty()) {
      // A residual of another frame or base has no place in this one; the node starts afresh.
      const absl::Status restored = feedback->Restore(state.error_feedback);
      if (!restored.ok()) {
        feedback.emplace(task.lora, header.base_model, task.frame, task.feedback);
      }
    }
    ASSIGN_OR_RETURN(bytes, feedback->Prepare(trained.delta, layout, header, task.codec));
    feedback->Commit();
    outgoing.set_residual(feedback->Serialize());
  } else {
    ASSIGN_OR_RETURN(bytes, EncodeUpdate(trained.delta, layout, header, task.codec, {}));
  }
  *outgoing.mutable_metrics() = trained.metrics;
  outgoing.mutable_metrics()->set_upload_bytes(bytes.size());
  v1::UploadId& id = *outgoing.mutable_id();
  id.set_run_id(task.run_id);
  id.set_round(task.round);
  id.set_node_id(options_.node_id);
  id.set_sha256(Sha256Of(bytes).Raw());
  id.set_size_bytes(bytes.size());
  outgoing.set_update(std::move(bytes));
  return outgoing;
}

void Participant::KeepOutgoing() {
  outbox_read_ = true;
  if (parts_.outbox == nullptr || outgoing_kept_) return;
  const absl::Status kept = FEDGE_FAILPOINT_RUN(
      "client.outbox", parts_.outbox->Write(options_.node_id, SealMessage(*outgoing_)));
  outgoing_kept_ = kept.ok();
  if (outgoing_kept_) {
    training_.Forget().IgnoreError();  // tried again with the receipt
  } else {
    warnings_.push_back(absl::StrCat("the finished update of round ", outgoing_->id().round(),
                                     " is in memory only until it is sent: ", kept.message()));
  }
}

void Participant::LoadOutgoing() {
  if (outbox_read_ || parts_.outbox == nullptr) return;
  outbox_read_ = true;
  const absl::StatusOr<std::string> bytes = parts_.outbox->Read(options_.node_id);
  if (absl::IsNotFound(bytes.status()) || (bytes.ok() && bytes->empty())) return;
  v1::OutboxEntry entry;
  const absl::Status status =
      bytes.ok() ? UnsealMessage(*bytes, "the finished update that was kept", entry)
                 : bytes.status();
  if (status.ok() && entry.id().node_id() == options_.node_id) {
    outgoing_ = std::move(entry);
    outgoing_kept_ = true;
    return;
  }
  warnings_.push_back(std::string(status.message()));
  // Damaged: it would be found again at every start.
  if (absl::IsDataLoss(status)) parts_.outbox->Remove(options_.node_id).IgnoreError();
}

absl::StatusOr<StepOutcome> Participant::SubmitOutgoing(ParticipantState state) {
  KeepOutgoing();  // again, where there was no room before
  if (parts_.hold_transfers && parts_.hold_transfers()) {
    StepOutcome outcome;
    outcome.detail = absl::StrCat("the finished update of round ", outgoing_->id().round(),
                                  " waits for a link that it may use");
    outcome.pause = kPauseAfterFailure;
    return outcome;
  }
  const absl::StatusOr<v1::UploadReceipt> receipt =
      transfer_.Submit(outgoing_->id(), outgoing_->metrics(), outgoing_->update());
  if (!receipt.ok() && !IsFinal(receipt.status())) {
    // outgoing_ stays for the next call
    if (parts_.outbox == nullptr || outgoing_kept_) return receipt.status();
    return Annotate(receipt.status(), warnings_.back());
  }
  RETURN_IF_ERROR(FEDGE_FAILPOINT("client.receipt"));
  const v1::OutboxEntry sent = *std::move(outgoing_);
  outgoing_.reset();
  if (receipt.ok()) return Settle(sent, *receipt, std::move(state));
  DropOutgoing();
  return FailTask(sent.id().run_id(), sent.id().round(), receipt.status());
}

void Participant::DropOutgoing() {
  // The checkpoint first: without the update it would be trained to its end, and sent, again.
  absl::Status dropped = training_.Forget();
  if (dropped.ok() && outgoing_kept_) {
    dropped = FEDGE_FAILPOINT_RUN("client.outbox_remove", parts_.outbox->Remove(options_.node_id));
    if (dropped.ok()) outgoing_kept_ = false;
  }
  // It is sent again after a restart then, and answered as the first time.
  if (!dropped.ok()) warnings_.push_back(std::string(dropped.message()));
}

StepOutcome Participant::Settle(const v1::OutboxEntry& sent, const v1::UploadReceipt& receipt,
                                ParticipantState state) {
  StepOutcome outcome;
  outcome.round = sent.id().round();
  outcome.metrics = sent.metrics();
  outcome.detail = OneLine(receipt.reason());
  outcome.pause = kPauseAfterTask;
  outcome.kind = receipt.verdict() == v1::UploadReceipt::ACCEPTED   ? StepKind::kAccepted
                 : receipt.verdict() == v1::UploadReceipt::REJECTED ? StepKind::kRejected
                                                                    : StepKind::kLate;
  if (state.run_id != sent.id().run_id()) state.error_feedback.clear();
  // Rejected or late: the delta is dropped and the residual of before stays. A late delta was made
  // against a version that is gone, and the node trains on the same data again anyway.
  if (outcome.kind == StepKind::kAccepted && sent.has_residual()) {
    state.error_feedback = sent.residual();
  }
  state.run_id = sent.id().run_id();
  state.lora = sent.lora();
  state.num_examples = sent.metrics().num_examples();
  state.last_metrics = sent.metrics();
  if (sent.metrics().train_ms() > 0) {
    state.tokens_per_second = 1000.0 * static_cast<double>(sent.metrics().train_tokens()) /
                              static_cast<double>(sent.metrics().train_ms());
  }
  const absl::Status saved =
      FEDGE_FAILPOINT_RUN("client.state", parts_.state->Write(options_.node_id, state.Serialize()));
  if (saved.ok()) {
    DropOutgoing();
  } else {
    warnings_.push_back(std::string(saved.message()));
  }
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
  if (adapter.ok() || !finished_->adapter().held() || global_.held().run_id().empty() ||
      absl::IsUnauthenticated(adapter.status())) {
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
