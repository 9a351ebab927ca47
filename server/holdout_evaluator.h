// The server's own look at each version: its loss on held-out text, on a thread of its own.
#ifndef FEDGE_SERVER_HOLDOUT_EVALUATOR_H_
#define FEDGE_SERVER_HOLDOUT_EVALUATOR_H_

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/base/env.h"
#include "common/base/thread_pool.h"
#include "common/model/base_model.h"
#include "common/training/dataset.h"
#include "server/server_events.h"

namespace fedge {

class FederationCore;

// Only the newest version waits: when rounds are faster than the evaluation, versions in between
// are skipped. Thread-safe.
class HoldoutEvaluator : public ServerEvents {
 public:
  // Reads all of `path` (text, JSONL or a folder) as examples of at most `max_length` tokens.
  // Codes of ReadRecords; FailedPrecondition when nothing in it has a token to score.
  static absl::StatusOr<std::unique_ptr<HoldoutEvaluator>> Create(
      std::shared_ptr<const BaseModel> model, absl::string_view path, int64_t max_length,
      int threads, Env& env);
  ~HoldoutEvaluator() override;  // gives up what is being evaluated

  // Starts evaluating, the current version first; results go to core.RecordHoldout. `core` must
  // outlive this object or Stop.
  void Start(FederationCore& core);
  void Stop();
  // Until nothing waits and nothing runs.
  void WaitUntilIdle();

  void OnPublished(const VersionRecord& version, const LoraAdapter& adapter) override;

 private:
  HoldoutEvaluator(std::shared_ptr<const BaseModel> model, std::vector<Example> examples,
                   int threads);
  void Work(FederationCore& core);
  // Nothing when stopped in the middle.
  std::optional<LossSum> Evaluate(const LoraAdapter& adapter);
  bool stopping();

  const std::vector<Example> examples_;
  ThreadPool pool_;
  Transformer transformer_;  // of the worker thread
  absl::Mutex mutex_;
  std::optional<std::pair<uint64_t, LoraAdapter>> waiting_ ABSL_GUARDED_BY(mutex_);
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread worker_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_HOLDOUT_EVALUATOR_H_
