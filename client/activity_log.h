// What the daemon's work amounts to, told twice: a line in the log, and the status.
#ifndef FEDGE_CLIENT_ACTIVITY_LOG_H_
#define FEDGE_CLIENT_ACTIVITY_LOG_H_

#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/participant.h"
#include "client/status_board.h"

namespace fedge {

// Not thread-safe.
class ActivityLog {
 public:
  // `board` is borrowed; `joules`: spent so far, nothing where that cannot be measured.
  ActivityLog(StatusBoard* board, std::function<std::optional<double>()> joules)
      : board_(board), joules_(std::move(joules)) {}

  void OnTask(const v1::Assignment& task);
  void OnStep(const TrainProgress& progress);
  void OnOutcome(const absl::StatusOr<StepOutcome>& outcome, absl::Duration pause);

  const std::string& run_id() const { return run_id_; }          // of the last task
  double joules_per_token() const { return joules_per_token_; }  // of the last task; 0: unknown

 private:
  void OnTaskEnd(const StepOutcome& outcome);

  StatusBoard* const board_;
  const std::function<std::optional<double>()> joules_;
  std::string run_id_;
  double joules_at_task_ = 0;
  double joules_per_token_ = 0;
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_ACTIVITY_LOG_H_
