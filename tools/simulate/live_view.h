// What a person sees while a simulation runs: one line that lives on a terminal, plain lines in a
// log, and a line that stays for each finished round.
#ifndef FEDGE_TOOLS_SIMULATE_LIVE_VIEW_H_
#define FEDGE_TOOLS_SIMULATE_LIVE_VIEW_H_

#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "common/training/trainer.h"
#include "tools/report/progress.h"
#include "tools/report/run_report.h"
#include "tools/simulate/fleet.h"

namespace fedge {

// Thread-safe.
class LiveView {
 public:
  // `line` may be null: nothing is shown. `centralized`: that part follows the rounds.
  LiveView(ProgressLine* line, Clock* clock, int64_t rounds, bool centralized);

  void Say(absl::string_view text);    // stays
  void Doing(absl::string_view what);  // a phase without numbers of its own
  void RoundStarted(uint64_t round, size_t cohort);
  void NodeDone(const NodeOutcome& outcome);
  void RoundFinished(const RoundRecord& record);  // stays
  void CentralizedStep(const TrainProgress& progress);

 private:
  absl::Duration TimeLeft(absl::Duration now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  ProgressLine* const line_;
  Clock* const clock_;
  const int64_t rounds_;
  const bool centralized_;
  const absl::Duration start_;
  absl::Mutex mutex_;
  bool header_shown_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration first_round_at_ ABSL_GUARDED_BY(mutex_);
  absl::Duration round_at_ ABSL_GUARDED_BY(mutex_);
  absl::Duration centralized_at_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();
  uint64_t round_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t published_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t cohort_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t done_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t accepted_ ABSL_GUARDED_BY(mutex_) = 0;
  double loss_sum_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t upload_bytes_ ABSL_GUARDED_BY(mutex_) = 0;    // of the whole run
  uint64_t download_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // of the whole run
  uint64_t round_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string last_quality_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_SIMULATE_LIVE_VIEW_H_
