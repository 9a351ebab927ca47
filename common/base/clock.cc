#include "common/base/clock.h"

#include <chrono>

#include "absl/time/clock.h"

namespace fedge {
namespace {

class RealClock : public Clock {
 public:
  absl::Time Now() override { return absl::Now(); }
  absl::Duration Monotonic() override {
    return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
  }
  void Sleep(absl::Duration duration) override { absl::SleepFor(duration); }
};

}  // namespace

Clock* Clock::Real() {
  static RealClock* const clock = new RealClock;
  return clock;
}

absl::Time ManualClock::Now() { return absl::FromUnixSeconds(1767225600) + Monotonic(); }

absl::Duration ManualClock::Monotonic() {
  absl::MutexLock lock(&mutex_);
  return elapsed_;
}

void ManualClock::Advance(absl::Duration duration) {
  absl::MutexLock lock(&mutex_);
  elapsed_ += duration;
}

}  // namespace fedge
