// The reference line: one adapter trained on the pooled training data of all nodes, with as many
// steps of the same shape as the federation made in all.
#ifndef FEDGE_TOOLS_SIMULATE_CENTRALIZED_H_
#define FEDGE_TOOLS_SIMULATE_CENTRALIZED_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/training/partition.h"
#include "common/training/trainer.h"
#include "tools/simulate/held_out.h"
#include "tools/simulate/worker_pool.h"

namespace fedge {

// A uniform seeded sample of all nodes' training examples, of about `max_tokens` tokens at most:
// more would not be seen anyway.
std::vector<Example> PoolTrainingExamples(const std::vector<NodeRecords>& nodes,
                                          const Tokenizer& tokenizer, const HeldOutOptions& split,
                                          int64_t max_tokens);

struct CentralizedOptions {
  TrainOptions training;         // steps: in all
  int64_t steps_per_round = 1;   // local steps of one federated round's cohort together
  int64_t rounds_per_point = 1;  // how often quality is measured
  int64_t label_every = 5;       // labels at each so many rounds, and at the end
  std::function<bool(const TrainProgress&)> on_step;  // false: stop (Cancelled)
};

// Trains `adapter` in place and measures it on the way.
absl::StatusOr<std::vector<CentralizedPoint>> TrainCentralized(const std::vector<Example>& examples,
                                                               const CentralizedOptions& options,
                                                               const HeldOut& held_out,
                                                               WorkerPool& pool,
                                                               LoraAdapter& adapter);

}  // namespace fedge

#endif  // FEDGE_TOOLS_SIMULATE_CENTRALIZED_H_
