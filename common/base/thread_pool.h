// A fixed pool that splits index ranges. The split never influences a result: callers give each
// index its own output, so sums are the same for any number of threads.
#ifndef FEDGE_COMMON_BASE_THREAD_POOL_H_
#define FEDGE_COMMON_BASE_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

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

  // The number of processors this process may run on, at least 1.
  static int AvailableProcessors();

 private:
  void Work();
  void RunShare();

  std::vector<std::thread> workers_;
  absl::Mutex mutex_;
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;
  int working_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  const std::function<void(int64_t)>* fn_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
};

}  // namespace fedge

#endif  // FEDGE_COMMON_BASE_THREAD_POOL_H_
