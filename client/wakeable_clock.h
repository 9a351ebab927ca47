// The machine's clock, whose sleeps another thread can end. An idle daemon sleeps for as long as
// the server said, in one piece, and still stops at once.
#ifndef FEDGE_CLIENT_WAKEABLE_CLOCK_H_
#define FEDGE_CLIENT_WAKEABLE_CLOCK_H_

#include <condition_variable>
#include <mutex>

#include "common/base/clock.h"

namespace fedge {

// Thread-safe.
class WakeableClock : public Clock {
 public:
  absl::Time Now() override { return Clock::Real()->Now(); }
  absl::Duration Monotonic() override { return Clock::Real()->Monotonic(); }
  // By the monotonic clock: a wall clock that jumps changes nothing.
  void Sleep(absl::Duration duration) override;

  uint64_t sleeps();  // begun so far

  void Wake();  // ends the sleep under way, if there is one
  void Stop();  // ends it, and every later one

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t wakes_ = 0;
  uint64_t sleeps_ = 0;
  bool stopped_ = false;
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_WAKEABLE_CLOCK_H_
