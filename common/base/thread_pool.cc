#include "common/base/thread_pool.h"

#include <sched.h>

#include <algorithm>

#include "common/base/status.h"

namespace fedge {

ThreadPool::ThreadPool(int threads) {
  FEDGE_CHECK(threads >= 1, "threads ", threads);
  workers_.reserve(static_cast<size_t>(threads) - 1);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { Work(); });
}

ThreadPool::~ThreadPool() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::RunShare() {
  for (int64_t i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1)) (*fn_)(i);
}

void ThreadPool::ParallelFor(int64_t count, const std::function<void(int64_t)>& fn) {
  if (workers_.empty() || count <= 1) {
    for (int64_t i = 0; i < count; ++i) fn(i);
    return;
  }
  {
    absl::MutexLock lock(&mutex_);
    fn_ = &fn;
    count_ = count;
    next_.store(0);
    working_ = static_cast<int>(workers_.size());
    ++generation_;
  }
  RunShare();
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(
      +[](int* working) { return *working == 0; }, &working_));
}

void ThreadPool::Work() {
  uint64_t seen = 0;
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      struct Wake {
        ThreadPool* pool;
        uint64_t seen;
      } wake{this, seen};
      mutex_.Await(absl::Condition(
          +[](Wake* w) ABSL_NO_THREAD_SAFETY_ANALYSIS {
            return w->pool->stopping_ || w->pool->generation_ != w->seen;
          },
          &wake));
      if (stopping_) return;
      seen = generation_;
    }
    RunShare();
    absl::MutexLock lock(&mutex_);
    --working_;
  }
}

int ThreadPool::AvailableProcessors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

}  // namespace fedge
