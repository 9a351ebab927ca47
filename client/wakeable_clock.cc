#include "client/wakeable_clock.h"

#include <algorithm>
#include <chrono>

namespace fedge {
namespace {

// wait_for must not overflow the clock.
constexpr absl::Duration kLongestSleep = absl::Hours(24 * 365);

}  // namespace

void WakeableClock::Sleep(absl::Duration duration) {
  if (duration <= absl::ZeroDuration()) return;
  std::unique_lock<std::mutex> lock(mutex_);
  ++sleeps_;
  const uint64_t wakes = wakes_;
  changed_.wait_for(lock, absl::ToChronoNanoseconds(std::min(duration, kLongestSleep)),
                    [&] { return stopped_ || wakes_ != wakes; });
}

uint64_t WakeableClock::sleeps() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return sleeps_;
}

void WakeableClock::Wake() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++wakes_;
  changed_.notify_all();
}

void WakeableClock::Stop() {
  const std::lock_guard<std::mutex> lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

}  // namespace fedge
