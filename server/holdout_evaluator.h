// The server's own look at versions and candidates: their loss on held-out text, on a thread of its
// own.
#ifndef FEDGE_SERVER_HOLDOUT_EVALUATOR_H_
#define FEDGE_SERVER_HOLDOUT_EVALUATOR_H_

#include <map>
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
#include "server/candidate_evaluator.h"
#include "server/quality_gate.h"
#include "server/server_events.h"

namespace fedge {

class FederationCore;

// Measures candidates for the quality gate, and versions that were published without one: of these
// only the newest waits, when rounds are faster than the evaluation those in between are skipped.
// Thread-safe.
class HoldoutEvaluator : public ServerEvents, public CandidateEvaluator {
 public:
  // Reads all of `path` (text, JSONL or a folder) as examples of at most `max_length` tokens, in
  // slices by `slice_by`. Codes of ReadRecords; FailedPrecondition when nothing in it has a token
  // to score, or there are more than kMaxSlices slices.
  static absl::StatusOr<std::unique_ptr<HoldoutEvaluator>> Create(
      std::shared_ptr<const BaseModel> model, absl::string_view path, int64_t max_length,
      SliceBy slice_by, int threads, Env& env);
  ~HoldoutEvaluator() override;  // gives up what is being evaluated

  // Starts evaluating, the current version first; results go to core.RecordHoldout, those of
  // candidates to core.NoteHoldout. `core` must outlive this object or Stop.
  void Start(FederationCore& core);
  void Stop();
  // Until nothing waits and nothing runs.
  void WaitUntilIdle();

  void OnPublished(const VersionRecord& version, const LoraAdapter& adapter) override;
  void Evaluate(CandidateTask task) override;
  std::vector<std::string> slices() const override;

 private:
  struct Slice {
    std::string name;  // empty: of none
    std::vector<Example> examples;
  };
  struct Job {
    uint64_t version = 0;
    std::optional<LoraAdapter> published;
    std::optional<CandidateTask> candidate;
  };

  HoldoutEvaluator(std::shared_ptr<const BaseModel> model, std::vector<Slice> slices, int threads);
  void Work(FederationCore& core);
  void Do(const Job& job, FederationCore& core);
  // Null: the bare base model. Nothing when stopped in the middle.
  std::optional<Measurement> Measure(const LoraAdapter* adapter);
  std::optional<Measurement> MeasureAnew(const LoraAdapter* adapter);
  bool stopping();

  const std::vector<Slice> slices_;  // sorted by name
  ThreadPool pool_;
  Transformer transformer_;                 // of the worker thread
  std::map<Digest, Measurement> measured_;  // so, too: the newest few, by the values' digest
  std::vector<Digest> order_;               // of measured_, oldest first
  absl::Mutex mutex_;
  std::optional<Job> published_ ABSL_GUARDED_BY(mutex_);
  std::optional<Job> candidate_ ABSL_GUARDED_BY(mutex_);
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread worker_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_HOLDOUT_EVALUATOR_H_
