// The part of a task that needs no network: measure the adapter on held-out records, plan the
// memory, train, and keep a checkpoint from which an interrupted training goes on to the same
// bytes.
#ifndef FEDGE_CLIENT_LOCAL_TRAINING_H_
#define FEDGE_CLIENT_LOCAL_TRAINING_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/local_examples.h"
#include "client/participant_state.h"
#include "client/task.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/clock.h"
#include "common/base/digest.h"
#include "common/model/base_model.h"
#include "common/model/transformer.h"
#include "common/training/trainer.h"
#include "fedge/v1/client.pb.h"

namespace fedge {

// How good the adapters at hand are on this device's held-out records; the same sample of the same
// records when `sample` is the same.
struct LocalLosses {
  uint64_t version = 0;  // of the global adapter
  double global_loss = 0;
  double personal_loss = 0;  // after the local training
  int64_t tokens = 0;
  uint64_t sample = 0;
};

struct LocalTrainingOptions {
  std::string node_id;
  int64_t max_validation_tokens = 4096;  // held-out tokens scored before each task; 0: none
  bool keep_examples = true;             // between tasks
  int64_t memory_limit_bytes = 0;        // 0: none
  int threads = 1;                       // of the transformer's pool
  absl::Duration checkpoint_interval = absl::Seconds(60);
};

// All but the base are borrowed and must outlive it; functions may be empty.
struct LocalTrainingParts {
  std::shared_ptr<const BaseModel> base;
  const std::vector<Record>* records = nullptr;
  StateStore* checkpoints = nullptr;  // null: a training under way is not kept
  Clock* clock = nullptr;
  std::function<bool()> stopping;
  std::function<void(const TrainProgress&)> on_step;
  std::function<absl::Duration()> held_time;  // for which training was held back, so far
  // The global adapter of a task and the one trained from it, when both were measured.
  std::function<void(const LoraAdapter& global, const LoraAdapter& personal, const LocalLosses&)>
      on_trained;
};

struct TrainedTask {
  std::vector<float> delta;  // after - before
  v1::TaskMetrics metrics;
};

// Not thread-safe.
class LocalTraining {
 public:
  LocalTraining(LocalTrainingOptions options, LocalTrainingParts parts);

  // `assignment` is what `task` was made of; `adapter` is its start. Cancelled when stopping: the
  // checkpoint is then up to date. DeadlineExceeded, FailedPrecondition, ResourceExhausted (no plan
  // fits the memory) and those of TrainAdapter name what is wrong.
  absl::StatusOr<TrainedTask> Run(const v1::Assignment& assignment, Task task, LoraAdapter adapter,
                                  Transformer& transformer);

  // The task whose training was interrupted, if one was.
  std::optional<v1::Assignment> Unfinished();
  // Its checkpoint is not needed any more; nothing happens when there is none.
  absl::Status Forget();

  // What went wrong without stopping the task, a line each; then none.
  std::vector<std::string> TakeWarnings();

 private:
  absl::Status PlanMemoryOf(Task& task, Transformer& transformer);
  const LocalExamples& ExamplesOf(const Task& task);
  absl::Status Train(const v1::Assignment& assignment, const Task& task,
                     const LocalExamples& examples, Transformer& transformer, LoraAdapter& adapter,
                     v1::TaskMetrics& metrics);
  // What was kept of this very training; the adapter is then as it was left.
  void Resume(const std::string& key, const Task& task, const LocalExamples& examples,
              AdapterTraining& training, LoraAdapter& adapter, v1::TaskMetrics& metrics);
  void Keep(const v1::Assignment& assignment, const std::string& key,
            const AdapterTraining& training, const LoraAdapter& adapter,
            const v1::TaskMetrics& metrics);
  std::string KeyOf(const v1::Assignment& assignment, const Task& task);
  bool stopping() const { return parts_.stopping && parts_.stopping(); }
  absl::Duration WorkingTime() const;

  const LocalTrainingOptions options_;
  const LocalTrainingParts parts_;
  LocalExamples examples_;  // kept between tasks
  std::string examples_key_;
  std::optional<Digest> records_digest_;
  int64_t evaluation_rows_ = 0;
  bool may_be_kept_ = true;  // a checkpoint; by an earlier process, too
  std::vector<std::string> warnings_;
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_LOCAL_TRAINING_H_
