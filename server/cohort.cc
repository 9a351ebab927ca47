#include "server/cohort.h"

#include "common/base/status.h"

namespace fedge {

Participation& Cohort::Add(absl::string_view node) {
  const auto [place, is_new] = members_.try_emplace(std::string(node));
  FEDGE_CHECK(is_new, "node '", node, "' is in the cohort already");
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

void Cohort::Settle(Participation& participation, NodeState state) {
  FEDGE_CHECK(participation.state == NodeState::kAssigned && state != NodeState::kAssigned);
  participation.state = state;
  --counts_.pending;
  ++(state == NodeState::kAccepted   ? counts_.accepted
     : state == NodeState::kRejected ? counts_.rejected
                                     : counts_.dropped);
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
