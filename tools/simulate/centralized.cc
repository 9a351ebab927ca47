#include "tools/simulate/centralized.h"

#include <memory>
#include <numeric>
#include <utility>

#include "common/base/rng.h"
#include "common/base/status.h"

namespace fedge {

std::vector<Example> PoolTrainingExamples(const std::vector<NodeRecords>& nodes,
                                          const Tokenizer& tokenizer, const HeldOutOptions& split,
                                          int64_t max_tokens) {
  std::vector<const Record*> records;
  for (const NodeRecords& node : nodes) {
    for (const Record& record : node.records) {
      if (!IsValidation(record, split.split_seed, split.validation_fraction)) {
        records.push_back(&record);
      }
    }
  }
  Rng rng = Rng::Stream(split.split_seed, "pooled-examples");
  rng.Shuffle(absl::MakeSpan(records));
  std::vector<Example> examples;
  int64_t tokens = 0;
  for (const Record* record : records) {
    if (tokens >= max_tokens) break;
    for (Example& example : MakeExamples(*record, tokenizer, split.length)) {
      if (example.num_targets == 0) continue;
      tokens += static_cast<int64_t>(example.tokens.size());
      examples.push_back(std::move(example));
    }
  }
  return examples;
}

absl::StatusOr<std::vector<CentralizedPoint>> TrainCentralized(const std::vector<Example>& examples,
                                                               const CentralizedOptions& options,
                                                               const HeldOut& held_out,
                                                               WorkerPool& pool,
                                                               LoraAdapter& adapter) {
  // One sequence of steps: the workers' processors go into each step instead.
  ThreadPool threads(pool.size());
  Transformer transformer(pool.shared_base(), &threads);
  std::vector<CentralizedPoint> points;
  absl::Status measured;
  const int64_t steps_per_point = options.steps_per_round * options.rounds_per_point;
  int64_t labels_at = 0;  // the round whose labels were scored last
  const auto on_step = [&](const TrainProgress& progress) {
    if (options.on_step && !options.on_step(progress)) return false;
    const bool last = progress.step == options.training.steps;
    if (progress.step % steps_per_point != 0 && !last) return true;
    const int64_t round = progress.step / options.steps_per_round;
    const bool due = last || round - labels_at >= options.label_every;
    const bool with_labels = due && held_out.has_labels();
    if (with_labels) labels_at = round;
    absl::StatusOr<QualityPoint> quality = held_out.Measure(&adapter, with_labels, pool);
    if (!quality.ok()) {
      measured = quality.status();
      return false;
    }
    points.push_back(
        {static_cast<double>(progress.step) / static_cast<double>(options.steps_per_round),
         *std::move(quality)});
    return true;
  };
  const absl::StatusOr<TrainResult> trained =
      TrainAdapter(transformer, examples, options.training, on_step, adapter);
  RETURN_IF_ERROR(measured);
  if (!trained.ok()) return Annotate(trained.status(), "centralised reference");
  return points;
}

}  // namespace fedge
