#include "client/step_loop.h"

#include <algorithm>

#include "client/transfer.h"
#include "common/base/rng.h"

namespace fedge {
namespace {

constexpr absl::Duration kFirstPauseUnreachable = absl::Seconds(5);
constexpr absl::Duration kLongestPauseUnreachable = absl::Minutes(2);
constexpr absl::Duration kLongestPauseAfterFailures = absl::Hours(1);
constexpr absl::Duration kFirstPauseRefused = absl::Minutes(1);

absl::Duration Doubled(absl::Duration first, int times, absl::Duration longest) {
  return std::min(first * (int64_t{1} << std::min(times, 20)), longest);
}

// Where the loop stands.
class Loop {
 public:
  Loop(const StepLoopOptions& options, Clock& clock)
      : options_(options),
        clock_(clock),
        jitter_(Rng::Stream(options.seed, "loop-jitter")),
        answered_at_(clock.Monotonic()) {}

  bool stopping() const { return options_.stopping && options_.stopping(); }

  // Waits until the next step may be made; false: stopping.
  bool AwaitStep() {
    if (stopping()) return false;
    if (options_.await_permission && !options_.await_permission()) return false;
    // Time without permission is no time the server was away.
    if (failures_ == 0) answered_at_ = clock_.Monotonic();
    return true;
  }

  // The pause after a step without an outcome, or why there is no point in another one.
  absl::StatusOr<absl::Duration> AfterError(const absl::Status& error) {
    const absl::Duration away = clock_.Monotonic() - answered_at_;
    if (options_.once || (!IsRetryable(error) && !reached_)) return error;
    if (IsRetryable(error) && away >= options_.patience) return error;
    const bool unreachable = IsRetryable(error);
    const absl::Duration pause =
        Doubled(unreachable ? kFirstPauseUnreachable : kFirstPauseRefused, failures_++,
                unreachable ? kLongestPauseUnreachable : kLongestPauseAfterFailures);
    return pause * (0.5 + jitter_.Uniform());
  }

  absl::Duration AfterOutcome(const StepOutcome& outcome) {
    reached_ = true;
    failures_ = 0;
    failed_tasks_ = outcome.kind == StepKind::kFailed ? failed_tasks_ + 1 : 0;
    if (failed_tasks_ < 2) return outcome.pause;
    return Doubled(outcome.pause, failed_tasks_ - 1, kLongestPauseAfterFailures) *
           (0.5 + jitter_.Uniform());
  }

 private:
  const StepLoopOptions& options_;
  Clock& clock_;
  Rng jitter_;
  bool reached_ = false;  // the server answered at least once
  absl::Duration answered_at_;
  int failures_ = 0;  // in a row: steps without an outcome
  int failed_tasks_ = 0;
};

}  // namespace

absl::Status RunSteps(const StepLoopOptions& options, Participant& participant,
                      Transformer& transformer, Clock& clock, bool* finished) {
  Loop loop(options, clock);
  *finished = false;
  while (loop.AwaitStep()) {
    const absl::StatusOr<StepOutcome> outcome = participant.RunOnce(transformer);
    if (absl::IsCancelled(outcome.status())) break;
    absl::Duration pause;
    if (outcome.ok()) {
      pause = loop.AfterOutcome(*outcome);
    } else {
      const absl::StatusOr<absl::Duration> retry = loop.AfterError(outcome.status());
      if (!retry.ok()) return retry.status();
      pause = *retry;
    }
    if (options.on_outcome) options.on_outcome(outcome, pause);
    *finished = outcome.ok() && outcome->kind == StepKind::kFinished;
    if (*finished || options.once || loop.stopping()) break;
    clock.Sleep(pause);
  }
  return absl::OkStatus();
}

}  // namespace fedge
