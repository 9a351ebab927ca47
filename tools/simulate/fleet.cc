#include "tools/simulate/fleet.h"

#include <utility>

#include "common/base/rng.h"
#include "common/base/status.h"

namespace fedge {

struct Fleet::Node {
  std::string id;
  std::unique_ptr<FederationLink> link;
  std::unique_ptr<Participant> participant;
  int64_t accepted_rounds = 0;
};

Fleet::Fleet(std::vector<NodeRecords> nodes, const FleetOptions& options, WorkerPool* pool)
    : options_(options),
      pool_(pool),
      spill_(options.spill_dir, options.env),
      states_(options.state_memory_bytes, &spill_) {
  for (NodeRecords& records : nodes) {
    auto node = std::make_unique<Node>();
    node->id = records.node;
    node->link = options_.make_link(node->id);
    ParticipantOptions participant;
    participant.node_id = node->id;
    participant.seed = Rng::Stream(options_.seed, absl::StrCat("node/", node->id)).Next();
    participant.max_validation_tokens = options_.max_validation_tokens;
    participant.keep_examples = options_.keep_examples;
    participant.device.set_threads(1);
    ParticipantParts parts;
    parts.base = pool_->shared_base();
    parts.records = std::move(records.records);
    parts.link = node->link.get();
    parts.state = &states_;
    parts.adapters = &adapters_;
    parts.clock = options_.clock;
    parts.stopping = options_.stopping;
    node->participant = std::make_unique<Participant>(std::move(participant), std::move(parts));
    by_id_[node->id] = node.get();
    nodes_.push_back(std::move(node));
  }
}

Fleet::~Fleet() = default;

const std::string& Fleet::node_id(int64_t index) const {
  return nodes_[static_cast<size_t>(index)]->id;
}

int64_t Fleet::accepted_rounds(int64_t index) const {
  return nodes_[static_cast<size_t>(index)]->accepted_rounds;
}

absl::Status Fleet::CheckInOnce(Node& node) {
  v1::CheckInRequest request;
  request.set_node_id(node.id);
  request.set_base_model_sha256(pool_->base().sha256().Raw());
  return Annotate(node.link->CheckIn(request).status(), absl::StrCat("node ", node.id));
}

absl::Status Fleet::Register() {
  for (const std::unique_ptr<Node>& node : nodes_) RETURN_IF_ERROR(CheckInOnce(*node));
  return absl::OkStatus();
}

absl::Status Fleet::Nudge() { return CheckInOnce(*nodes_.front()); }

NodeOutcome Fleet::RunNode(Node& node, Transformer& transformer) {
  NodeOutcome outcome;
  outcome.node = node.id;
  absl::StatusOr<StepOutcome> step = node.participant->RunOnce(transformer);
  if (!step.ok()) {
    outcome.status = step.status();
    return outcome;
  }
  outcome.step = *std::move(step);
  if (outcome.step.kind == StepKind::kAccepted) ++node.accepted_rounds;
  return outcome;
}

std::vector<NodeOutcome> Fleet::RunCohort(const std::vector<std::string>& cohort,
                                          const std::function<void(const NodeOutcome&)>& on_done) {
  std::vector<NodeOutcome> outcomes(cohort.size());
  pool_->ForEach(static_cast<int64_t>(cohort.size()), [&](int64_t i, Transformer& transformer) {
    const auto index = static_cast<size_t>(i);
    const auto node = by_id_.find(cohort[index]);
    FEDGE_CHECK(node != by_id_.end(), "the cohort names a node that is not of this fleet");
    outcomes[index] = RunNode(*node->second, transformer);
    if (on_done) on_done(outcomes[index]);
  });
  return outcomes;
}

}  // namespace fedge
