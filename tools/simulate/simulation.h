// A whole federation in one process: the real server and N virtual nodes with the real participant
// code over one shared base model. Only clock and network are simulated.
//
// The same options give the same bytes of the final adapter for any number of workers: cohorts are
// seeded samples of all registered nodes, training is seeded by task, sums are exact.
#ifndef FEDGE_TOOLS_SIMULATE_SIMULATION_H_
#define FEDGE_TOOLS_SIMULATE_SIMULATION_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/federation_link.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "fedge/v1/config.pb.h"
#include "tools/report/progress.h"
#include "tools/report/run_report.h"
#include "tools/simulate/attack.h"
#include "tools/simulate/node_data.h"
#include "tools/simulate/timeline.h"

namespace fedge {

struct SimulationOptions {
  std::string title = "fedge simulate";
  std::string model;      // GGUF
  NodeDataOptions data;   // data.seed is set from the run's seed
  std::string data_name;  // for people; default: data.path
  std::string out_dir;
  v1::RunConfig run;        // nodes_per_round is capped to the nodes, min_nodes is their number
  int workers = 1;          // nodes trained at a time
  bool centralized = true;  // also train the reference on the pooled data
  // Its learning rate of the first round. 0: the run's, divided by the square root of the cohort: a
  // round averages over as many batches, and that is how Adam's rate goes with the batch size
  // (Malladi et al. 2022).
  float centralized_learning_rate = 0;
  // Nodes take virtual time, one after the other: with this, with slow nodes and in asynchronous
  // runs. Not with attacks.
  bool virtual_time = false;
  SpeedOptions speeds;        // speeds.seed is set from the run's seed
  AttackOptions attack;       // attack.seed is set from the run's seed
  bool keep_updates = false;  // write each node's encoded update to <out>/updates
  int64_t eval_tokens = 20'000;
  int64_t eval_tokens_per_node = 1000;
  int64_t device_eval_tokens = 512;  // of each task's own look at its held-out data; 0: none
  int64_t label_questions = 400;
  int64_t label_every = 5;  // rounds
  uint64_t state_memory_bytes = uint64_t{256} << 20;
};

struct SimulationEnvironment {
  Env* env = nullptr;
  Clock* wall = nullptr;              // of the times in the report
  ProgressLine* progress = nullptr;   // may be null
  std::function<bool()> interrupted;  // may be empty
  // For tests: puts something between a node and its link.
  std::function<std::unique_ptr<FederationLink>(const std::string& node_id,
                                                std::unique_ptr<FederationLink> link)>
      wrap_link;
};

// Writes <out>/adapter.gguf, peft/, metrics.jsonl, summary.json and report.html. Errors before any
// work: an out_dir that cannot be written, a broken model, data or configuration. Aborted: too many
// abandoned rounds one after the other. Cancelled: interrupted.
absl::StatusOr<RunReport> RunSimulation(const SimulationOptions& options,
                                        const SimulationEnvironment& environment);

}  // namespace fedge

#endif  // FEDGE_TOOLS_SIMULATE_SIMULATION_H_
