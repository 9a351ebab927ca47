#include "client/activity_log.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/logging.h"
#include "common/base/process_memory.h"

namespace fedge {

void ActivityLog::OnTask(const v1::Assignment& task) {
  run_id_ = task.run_id();
  joules_at_task_ = joules_().value_or(0);
  board_->NoteAnswer();
  board_->Update([&](v1::ClientStatus& status) {
    status.set_state("training");
    status.set_detail("");
    status.set_run_id(task.run_id());
    status.set_round(task.round());
    status.set_step(0);
    status.set_steps(task.training().steps());
  });
  LogInfo("round ", task.round(), ": a task of ", task.training().steps(), " steps");
}

void ActivityLog::OnStep(const TrainProgress& progress) {
  const bool last = progress.step == progress.steps;
  board_->Update([&](v1::ClientStatus& status) {
    status.set_step(static_cast<uint64_t>(progress.step));
    status.set_steps(static_cast<uint64_t>(progress.steps));
    if (last) status.set_state("sending");
  });
  if (!last || progress.tokens == 0) return;
  const std::optional<double> joules = joules_();
  joules_per_token_ =
      joules ? (*joules - joules_at_task_) / static_cast<double>(progress.tokens) : 0;
}

void ActivityLog::OnOutcome(const absl::StatusOr<StepOutcome>& outcome, absl::Duration pause) {
  board_->NoteNextCheckIn(pause);
  const absl::Duration shown = absl::Trunc(pause, absl::Milliseconds(100));
  const std::string again = shown > absl::ZeroDuration()
                                ? absl::StrCat("again in ", absl::FormatDuration(shown))
                                : std::string("again at once");
  if (!outcome.ok()) {
    LogWarning(outcome.status().message(), "; ", again);
    board_->SetState("unreachable", outcome.status().message());
    return;
  }
  board_->NoteAnswer();
  board_->SetState("waiting", outcome->detail);
  for (const std::string& warning : outcome->warnings) LogWarning(warning);
  switch (outcome->kind) {
    case StepKind::kFinished:
      LogInfo("the run is finished");
      return;
    case StepKind::kWaiting:
      LogInfo(outcome->detail.empty() ? "no task now" : outcome->detail, "; ", again);
      return;
    default:
      OnTaskEnd(*outcome);
  }
}

void ActivityLog::OnTaskEnd(const StepOutcome& outcome) {
  const v1::TaskMetrics& metrics = outcome.metrics;
  const bool accepted = outcome.kind == StepKind::kAccepted;
  const bool failed = outcome.kind == StepKind::kFailed;
  board_->Update([&](v1::ClientStatus& status) {
    status.set_updates_accepted(status.updates_accepted() + (accepted ? 1 : 0));
    status.set_tasks_failed(status.tasks_failed() + (failed ? 1 : 0));
    status.set_updates_rejected(status.updates_rejected() + (accepted || failed ? 0 : 1));
    if (!accepted) status.set_last_error(outcome.detail);
    if (metrics.train_ms() > 0) {
      status.set_tokens_per_second(1000.0 * static_cast<double>(metrics.train_tokens()) /
                                   static_cast<double>(metrics.train_ms()));
    }
    status.set_joules_per_token(joules_per_token_);
    status.set_peak_memory_bytes(static_cast<uint64_t>(PeakResidentBytes()));
  });
  if (!accepted) {
    LogWarning("round ", outcome.round, ": ", failed ? "task " : "update ",
               StepKindName(outcome.kind), ": ", outcome.detail);
    return;
  }
  LogInfo(absl::StrFormat(
      "round %d: update accepted; loss %.4f -> %.4f nats/token over %d tokens, "
      "validation %.4f before, %d bytes up, %d down",
      outcome.round, metrics.train_loss_first(), metrics.train_loss_last(), metrics.train_tokens(),
      metrics.validation_loss_before(), metrics.upload_bytes(), metrics.download_bytes()));
}

}  // namespace fedge
