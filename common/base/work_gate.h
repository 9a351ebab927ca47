// Lets work pass, holds it or turns it away: how another thread pauses a long computation, or gives
// it up, within milliseconds. A ThreadPool asks it before each piece of work.
#ifndef FEDGE_COMMON_BASE_WORK_GATE_H_
#define FEDGE_COMMON_BASE_WORK_GATE_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/time/time.h"

namespace fedge {

// Thread-safe. Open at first.
class WorkGate {
 public:
  void Open();
  void Hold();   // work waits in Pass until the gate is opened or closed
  void Close();  // for ever: what waits is turned away

  // Whether to go on; waits while the gate holds. One relaxed load while it is open.
  bool Pass() { return state_.load(std::memory_order_relaxed) == State::kOpen || PassSlowly(); }
  bool closed() const { return state_.load() == State::kClosed; }
  // How long the gate has held so far, whether or not somebody waited.
  absl::Duration held_time() const;

 private:
  enum class State { kOpen, kHeld, kClosed };
  using MonotonicTime = std::chrono::steady_clock::time_point;

  void Set(State state);
  bool PassSlowly();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<State> state_{State::kOpen};
  MonotonicTime held_since_;
  absl::Duration held_before_;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_BASE_WORK_GATE_H_
