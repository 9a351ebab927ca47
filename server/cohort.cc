#include "server/cohort.h"

#include "common/base/status.h"

namespace fedge {

Participation& Cohort::Add(absl::string_view node, absl::Duration now) {
  const auto [place, is_new] = members_.try_emplace(std::string(node));
  FEDGE_CHECK(is_new, "node '", node, "' is in the cohort already");
  place->second.last_sign = now;
  ++counts_.assigned;
  ++counts_.pending;
  CheckCounts();
  return place->second;
}

Participation* Cohort::Find(absl::string_view node) {
  const auto found = members_.find(node);
  return found == members_.end() ? nullptr : &found->second;
}

const Participation* Cohort::Find(absl::string_view node) const {
  const auto found = members_.find(node);
  return found == members_.end() ? nullptr : &found->second;
}

int64_t& Cohort::CountOf(NodeState state) {
  switch (state) {
    case NodeState::kAssigned:
      return counts_.pending;
    case NodeState::kAccepted:
      return counts_.accepted;
    case NodeState::kRejected:
      return counts_.rejected;
    case NodeState::kGivenUp:
    case NodeState::kDropped:
      break;
  }
  return counts_.dropped;
}

void Cohort::Settle(Participation& participation, NodeState state) {
  FEDGE_CHECK(participation.is_open() && state != participation.state);
  --CountOf(participation.state);
  ++CountOf(state);
  participation.state = state;
  CheckCounts();
}

void Cohort::CheckCounts() const {
  FEDGE_CHECK(counts_.pending >= 0 &&
                  counts_.assigned ==
                      counts_.pending + counts_.accepted + counts_.rejected + counts_.dropped &&
                  counts_.assigned == static_cast<int64_t>(members_.size()),
              "assigned ", counts_.assigned, ", pending ", counts_.pending, ", accepted ",
              counts_.accepted, ", rejected ", counts_.rejected, ", dropped ", counts_.dropped);
}

}  // namespace fedge
