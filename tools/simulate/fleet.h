// The virtual nodes of a simulation: the real participant of each over a link of its own, their
// states within a memory budget, run by the workers of a pool.
#ifndef FEDGE_TOOLS_SIMULATE_FLEET_H_
#define FEDGE_TOOLS_SIMULATE_FLEET_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/federation_link.h"
#include "client/global_adapter.h"
#include "client/participant.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "common/training/partition.h"
#include "tools/simulate/worker_pool.h"

namespace fedge {

// Makes the link of one node. Tests wrap it to misbehave.
using LinkFactory = std::function<std::unique_ptr<FederationLink>(const std::string& node_id)>;

struct FleetOptions {
  LinkFactory make_link;
  Clock* clock = nullptr;
  uint64_t seed = 0;
  uint64_t state_memory_bytes = uint64_t{256} << 20;  // residuals beyond it go to spill_dir
  std::string spill_dir;
  Env* env = nullptr;
  int64_t max_validation_tokens = 0;  // of each task's own look at its held-out data
  bool keep_examples = true;          // tokenize once, for more memory
  std::function<bool()> stopping;
};

struct NodeOutcome {
  std::string node;
  absl::Status status;  // of the step itself: the link, the server's refusal, stopping
  StepOutcome step;     // when status is OK
};

class Fleet {
 public:
  // Takes the nodes' records. `pool` must outlive this object.
  Fleet(std::vector<NodeRecords> nodes, const FleetOptions& options, WorkerPool* pool);
  ~Fleet();

  int64_t size() const { return static_cast<int64_t>(nodes_.size()); }
  const std::string& node_id(int64_t index) const;

  // A bare check-in of each node, in order: the server knows them all then. The answers are not
  // acted upon.
  absl::Status Register();
  // The same of the first node only: time has passed, or the server waits for somebody to ask.
  absl::Status Nudge();

  // One step of each node of `cohort` (ids), at most pool.size() at a time. `on_done` (may be
  // empty) is called from worker threads. Outcomes are in the cohort's order.
  std::vector<NodeOutcome> RunCohort(const std::vector<std::string>& cohort,
                                     const std::function<void(const NodeOutcome&)>& on_done);

  int64_t accepted_rounds(int64_t index) const;  // updates accepted of this node so far

 private:
  struct Node;
  absl::Status CheckInOnce(Node& node);
  NodeOutcome RunNode(Node& node, Transformer& transformer);

  const FleetOptions options_;
  WorkerPool* const pool_;
  DirectoryStateStore spill_;
  BudgetedStateStore states_;
  SharedStateStore adapters_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::map<std::string, Node*> by_id_;
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_SIMULATE_FLEET_H_
