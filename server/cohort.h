// The nodes of one round and what became of their tasks.
//
//   ASSIGNED -> ACCEPTED | REJECTED | DROPPED (it said so)
//       \_> GIVEN UP: silent for too long; its update still counts when it comes in time
#ifndef FEDGE_SERVER_COHORT_H_
#define FEDGE_SERVER_COHORT_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/base/digest.h"

namespace fedge {

// Counts of a round's cohort; assigned = pending + accepted + rejected + dropped at all times
// (CHECKed). Of a round that is over, `pending` are the tasks that were still under way.
struct RoundCounts {
  int64_t assigned = 0;
  int64_t pending = 0;
  int64_t accepted = 0;
  int64_t rejected = 0;
  int64_t dropped = 0;
  // Updates of earlier rounds that came during this one: those that count in it, and the others.
  int64_t folded = 0;
  int64_t late = 0;
};

enum class NodeState { kAssigned, kGivenUp, kDropped, kAccepted, kRejected };

// One node's task of one round.
struct Participation {
  NodeState state = NodeState::kAssigned;
  Digest digest;       // of the update that was judged
  std::string reason;  // of a rejection or a failure
  bool late = false;   // its update came too late to count
  // On the owner's clock. A task that an earlier server gave out has been told at an unknown time.
  bool told = false;
  std::optional<absl::Duration> told_at;
  absl::Duration last_sign;  // of life, or when it was drawn

  // Whether an update of it may still count.
  bool is_open() const { return state == NodeState::kAssigned || state == NodeState::kGivenUp; }
};

class Cohort {
 public:
  using Members = std::map<std::string, Participation, std::less<>>;

  explicit Cohort(uint64_t base_version = 0) : base_version_(base_version) {}

  // ASSIGNED at `now`, of a node that is not in it yet.
  Participation& Add(absl::string_view node, absl::Duration now);
  // Null: not a member. Only Settle may change `state`.
  Participation* Find(absl::string_view node);
  const Participation* Find(absl::string_view node) const;
  // From a state that is_open() to any other; from GIVEN UP also back to ASSIGNED.
  void Settle(Participation& participation, NodeState state);

  uint64_t base_version() const { return base_version_; }  // what its members train
  Members& members() { return members_; }
  // `late` and `folded` are not counted here.
  const RoundCounts& counts() const { return counts_; }

 private:
  int64_t& CountOf(NodeState state);
  void CheckCounts() const;

  uint64_t base_version_;
  Members members_;
  RoundCounts counts_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_COHORT_H_
