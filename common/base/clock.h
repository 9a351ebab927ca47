// Time as an injected dependency: production reads the machine's clock, the simulator and the tests
// move their own. Nothing in Fedge calls absl::Now() but RealClock.
#ifndef FEDGE_COMMON_BASE_CLOCK_H_
#define FEDGE_COMMON_BASE_CLOCK_H_

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace fedge {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Wall-clock time, for logs and records only.
  virtual absl::Time Now() = 0;
  // Time since an arbitrary start; never goes back. Deadlines use this one.
  virtual absl::Duration Monotonic() = 0;
  // Blocks for `duration`; a manual clock advances itself instead.
  virtual void Sleep(absl::Duration duration) = 0;

  static Clock* Real();  // never null, never freed
};

// A clock that moves only when told to. Starts at 2026-01-01T00:00:00Z.
class ManualClock : public Clock {
 public:
  absl::Time Now() override;
  absl::Duration Monotonic() override;
  void Sleep(absl::Duration duration) override { Advance(duration); }
  void Advance(absl::Duration duration);

 private:
  absl::Mutex mutex_;
  absl::Duration elapsed_ ABSL_GUARDED_BY(mutex_) = absl::ZeroDuration();
};

}  // namespace fedge

#endif  // FEDGE_COMMON_BASE_CLOCK_H_
