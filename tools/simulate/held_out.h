// How good an adapter is on data no node trains on: fixed, seeded, bounded samples that are drawn
// once and scored again and again.
#ifndef FEDGE_TOOLS_SIMULATE_HELD_OUT_H_
#define FEDGE_TOOLS_SIMULATE_HELD_OUT_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/adapter/lora_adapter.h"
#include "common/training/evaluation.h"
#include "common/training/partition.h"
#include "server/quality_gate.h"
#include "tools/report/run_report.h"
#include "tools/simulate/worker_pool.h"

namespace fedge {

struct HeldOutOptions {
  int64_t length = 128;  // tokens of an example at most
  uint64_t split_seed = 0;
  double validation_fraction = 0.1;
  int64_t max_tokens = 20'000;         // of the sample over all nodes
  int64_t max_tokens_per_node = 1000;  // of each node's own sample
  int64_t max_questions = 400;
  int64_t max_labels = 64;          // more distinct completions: no labelled task
  std::optional<SliceBy> slice_by;  // absent: no slices
};

// Immutable once made.
class HeldOut {
 public:
  // Tokenizes the nodes' held-out records on the pool. FailedPrecondition: there is not one
  // held-out token over all nodes.
  static absl::StatusOr<HeldOut> Make(const std::vector<NodeRecords>& nodes,
                                      const HeldOutOptions& options, WorkerPool& pool);

  // Over the common sample; null adapter: the bare base. The same bits for any pool size.
  absl::StatusOr<QualityPoint> Measure(const LoraAdapter* adapter, bool with_labels,
                                       WorkerPool& pool) const;
  // Loss over the common sample, and over samples of each slice: for the quality gate.
  Measurement MeasureSlices(const LoraAdapter* adapter, WorkerPool& pool) const;
  std::vector<std::string> slices() const;  // sorted
  // Each node's loss over its own sample, in the nodes' order.
  std::vector<LossSum> MeasureNodes(const LoraAdapter* adapter, WorkerPool& pool) const;

  int64_t tokens() const { return tokens_; }  // of the common sample
  bool has_labels() const { return !questions_.empty(); }
  int64_t label_count() const { return static_cast<int64_t>(task_.labels.size()); }
  int64_t questions() const { return static_cast<int64_t>(questions_.size()); }
  double majority_accuracy() const;  // of always giving the questions' most frequent answer

 private:
  HeldOut() = default;
  absl::Status MakeSlices(const std::vector<NodeRecords>& nodes, const HeldOutOptions& options,
                          const Tokenizer& tokenizer);
  void MakeQuestions(const std::vector<NodeRecords>& nodes, const HeldOutOptions& options,
                     const Tokenizer& tokenizer);

  std::vector<Example> sample_;  // longest first, so that batches are even
  std::vector<std::vector<Example>> node_samples_;
  std::map<std::string, std::vector<Example>> slices_;
  int64_t tokens_ = 0;
  LabelTask task_;  // its questions are moved to questions_
  std::vector<LabelQuestion> questions_;
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_SIMULATE_HELD_OUT_H_
