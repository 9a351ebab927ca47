#include "server/work_queue.h"

#include <utility>

#include "common/base/status.h"

namespace fedge {

WorkQueue::WorkQueue(int threads, size_t max_pending) : max_pending_(max_pending) {
  FEDGE_CHECK(threads >= 1);
  for (int i = 0; i < threads; ++i) workers_.emplace_back([this] { Work(); });
}

WorkQueue::~WorkQueue() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& worker : workers_) worker.join();
}

bool WorkQueue::Schedule(std::function<void()> task) {
  absl::MutexLock lock(&mutex_);
  if (pending_.size() >= max_pending_) return false;
  pending_.push_back(std::move(task));
  return true;
}

void WorkQueue::Work() {
  for (;;) {
    std::function<void()> task;
    {
      const auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stopping_ || !pending_.empty();
      };
      absl::MutexLock lock(&mutex_, absl::Condition(&ready));
      if (pending_.empty()) return;
      task = std::move(pending_.front());
      pending_.pop_front();
    }
    task();
  }
}

}  // namespace fedge
