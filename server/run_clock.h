// The time of a run: the machine's, but it stands still while the run is paused. Deadlines and
// leases so need not know of pauses.
#ifndef FEDGE_SERVER_RUN_CLOCK_H_
#define FEDGE_SERVER_RUN_CLOCK_H_

#include <optional>

#include "absl/time/time.h"
#include "common/base/clock.h"

namespace fedge {

// Not thread-safe.
class RunClock {
 public:
  explicit RunClock(Clock& clock) : clock_(clock) {}

  absl::Duration Now() { return stopped_at_ ? *stopped_at_ : clock_.Monotonic() - stood_still_; }
  void SetPaused(bool paused) {
    if (paused == stopped_at_.has_value()) return;
    if (paused) {
      stopped_at_ = Now();
    } else {
      stood_still_ = clock_.Monotonic() - *stopped_at_;
      stopped_at_.reset();
    }
  }

 private:
  Clock& clock_;
  absl::Duration stood_still_ = absl::ZeroDuration();
  std::optional<absl::Duration> stopped_at_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_RUN_CLOCK_H_
