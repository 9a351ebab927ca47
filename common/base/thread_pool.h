// A fixed pool that splits index ranges. The split never influences a result: callers give each
// index its own output, so sums are the same for any number of threads.
//
// A training step is hundreds of short loops: workers look for the next one for some tens of
// microseconds before they sleep, and a loop ends when its indices are done, whether or not every
// worker has woken up for it. An idle pool uses no processor time. Low indices tend to go to the
// caller and high ones to the first worker, so that rows stay in the caches that have them.
#ifndef FEDGE_COMMON_BASE_THREAD_POOL_H_
#define FEDGE_COMMON_BASE_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/work_gate.h"

namespace fedge {

class ThreadPool {
 public:
  // `threads` >= 1 counts the calling thread, so ThreadPool(1) starts none and runs all inline.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(i) for each i in [0, count), in any order and on any thread, and returns when all are
  // done. One ParallelFor at a time per pool; fn must not call back into the same pool.
  void ParallelFor(int64_t count, const std::function<void(int64_t)>& fn);

  // From now on each index waits at `gate` (borrowed; null: none). Where it is closed indices count
  // as done without a call of fn: loops end at once, and what they computed is worthless, which
  // their caller learns from the gate. Not while a loop runs.
  void set_gate(WorkGate* gate) { gate_ = gate; }

  // The number of processors this process may run on, at least 1.
  static int AvailableProcessors();

 private:
  using Function = std::function<void(int64_t)>;

  void RunLoop(int64_t count, const Function& fn);
  void Work();
  // Takes indices of the loop `generation` until there are none, or until it is over.
  void RunShare(uint32_t generation);
  // Waits for a loop other than `seen`; false when the pool is stopping.
  bool AwaitLoop(uint32_t seen, uint32_t& generation);
  void AwaitDone(uint32_t count);
  void RunIndex(const Function& fn, int64_t index) {
    if (gate_ == nullptr || gate_->Pass()) fn(index);
  }

  // The loop's number in the high half, the indices left in the low half: an index is taken only
  // while its loop is the current one, so that a worker that comes late harms nothing.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<uint32_t> done_{0};  // indices of the current loop
  // Written while the ticket offers no index: who takes an index afterwards has read these.
  alignas(64) std::atomic<const Function*> fn_{nullptr};
  std::atomic<uint32_t> count_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> stopping_{false};
  bool spin_ = true;
  WorkGate* gate_ = nullptr;

  absl::Mutex mutex_;
  absl::CondVar wake_ ABSL_GUARDED_BY(mutex_);
  absl::CondVar finished_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> workers_;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_BASE_THREAD_POOL_H_
