// Threads for the server's blocking work (disk, decoding, aggregation), so that gRPC's own threads
// never wait.
#ifndef FEDGE_SERVER_WORK_QUEUE_H_
#define FEDGE_SERVER_WORK_QUEUE_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace fedge {

// First in, first out; bounded. Thread-safe.
class WorkQueue {
 public:
  WorkQueue(int threads, size_t max_pending);
  ~WorkQueue();  // runs what is pending, then ends the threads
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  // False when max_pending tasks wait already: `task` will not run.
  [[nodiscard]] bool Schedule(std::function<void()> task);

 private:
  void Work();

  const size_t max_pending_;
  absl::Mutex mutex_;
  std::deque<std::function<void()>> pending_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> workers_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_WORK_QUEUE_H_
