// The nodes of one round and what became of their tasks.
//
//   ASSIGNED -> ACCEPTED | REJECTED | DROPPED
#ifndef FEDGE_SERVER_COHORT_H_
#define FEDGE_SERVER_COHORT_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "common/base/digest.h"

namespace fedge {

// Counts of a round's cohort; assigned = pending + accepted + rejected + dropped at all times
// (CHECKed).
struct RoundCounts {
  int64_t assigned = 0;
  int64_t pending = 0;
  int64_t accepted = 0;
  int64_t rejected = 0;
  int64_t dropped = 0;
  int64_t late = 0;  // dropped members of earlier rounds whose update came during this one
};

enum class NodeState { kAssigned, kAccepted, kRejected, kDropped };

// One node's task of one round.
struct Participation {
  NodeState state = NodeState::kAssigned;
  Digest digest;       // of the update that was judged
  std::string reason;  // of a rejection or a failure
  bool late = false;   // its update came after the round
};

class Cohort {
 public:
  using Members = std::map<std::string, Participation, std::less<>>;

  Participation& Add(absl::string_view node);  // ASSIGNED; of a node that is not in it yet
  // Null: not a member. Only Settle may change `state`.
  Participation* Find(absl::string_view node);
  const Participation* Find(absl::string_view node) const;
  // From ASSIGNED to `state`.
  void Settle(Participation& participation, NodeState state);

  Members& members() { return members_; }
  const RoundCounts& counts() const { return counts_; }  // `late` is not counted here

 private:
  void CheckCounts() const;

  Members members_;
  RoundCounts counts_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_COHORT_H_
