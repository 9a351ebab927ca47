#include "tools/simulate/worker_pool.h"

#include <atomic>
#include <thread>
#include <utility>

#include "common/base/status.h"

namespace fedge {

struct WorkerPool::Worker {
  explicit Worker(std::shared_ptr<const BaseModel> base)
      : pool(1), transformer(std::move(base), &pool) {}
  ThreadPool pool;
  Transformer transformer;
};

WorkerPool::WorkerPool(std::shared_ptr<const BaseModel> base, int workers)
    : base_(std::move(base)) {
  FEDGE_CHECK(workers >= 1);
  for (int i = 0; i < workers; ++i) workers_.push_back(std::make_unique<Worker>(base_));
}

WorkerPool::~WorkerPool() = default;

void WorkerPool::ForEach(int64_t count, const std::function<void(int64_t, Transformer&)>& work) {
  std::atomic<int64_t> next{0};
  const auto run = [&](Transformer& transformer) {
    for (int64_t i = next++; i < count; i = next++) work(i, transformer);
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < workers_.size() && static_cast<int64_t>(i) < count; ++i) {
    threads.emplace_back(run, std::ref(workers_[i]->transformer));
  }
  run(workers_[0]->transformer);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace fedge
