// K workers, each with a transformer of its own (one thread) over one shared base model: the memory
// and the processors of a simulation. Work is given out by index, so results do not depend on K.
#ifndef FEDGE_TOOLS_SIMULATE_WORKER_POOL_H_
#define FEDGE_TOOLS_SIMULATE_WORKER_POOL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "common/base/thread_pool.h"
#include "common/model/base_model.h"
#include "common/model/transformer.h"

namespace fedge {

class WorkerPool {
 public:
  WorkerPool(std::shared_ptr<const BaseModel> base, int workers);
  ~WorkerPool();

  int size() const { return static_cast<int>(workers_.size()); }
  const BaseModel& base() const { return *base_; }
  const std::shared_ptr<const BaseModel>& shared_base() const { return base_; }

  // Calls work(i, transformer) for each i in [0, count), in any order, at most size() at a time;
  // returns when all are done. One call at a time.
  void ForEach(int64_t count, const std::function<void(int64_t, Transformer&)>& work);

 private:
  struct Worker;
  std::shared_ptr<const BaseModel> base_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_SIMULATE_WORKER_POOL_H_
