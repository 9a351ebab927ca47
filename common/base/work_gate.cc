#include "common/base/work_gate.h"

namespace fedge {

void WorkGate::Open() { Set(State::kOpen); }
void WorkGate::Hold() { Set(State::kHeld); }
void WorkGate::Close() { Set(State::kClosed); }

void WorkGate::Set(State state) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const State before = state_.load();
  if (before == state || before == State::kClosed) return;
  const MonotonicTime now = std::chrono::steady_clock::now();
  if (state == State::kHeld) held_since_ = now;
  if (before == State::kHeld) held_before_ += absl::FromChrono(now - held_since_);
  state_.store(state);
  changed_.notify_all();
}

bool WorkGate::PassSlowly() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return state_.load() != State::kHeld; });
  return state_.load() == State::kOpen;
}

absl::Duration WorkGate::held_time() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (state_.load() != State::kHeld) return held_before_;
  return held_before_ + absl::FromChrono(std::chrono::steady_clock::now() - held_since_);
}

}  // namespace fedge
