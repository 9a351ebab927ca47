// What the coordinator answers, and what its owner must do after an event.
#ifndef FEDGE_SERVER_COORDINATOR_ACTIONS_H_
#define FEDGE_SERVER_COORDINATOR_ACTIONS_H_

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/base/digest.h"
#include "server/aggregation.h"
#include "server/cohort.h"
#include "server/round_updates.h"

namespace fedge {

// What a check-in is answered with.
struct TaskAssignment {
  uint64_t round = 0;
  uint64_t adapter_version = 0;
  absl::Duration deadline;  // from now
  uint64_t seed = 0;
  bool is_new = false;  // the node had not been told of it before
};
struct RetryLater {
  absl::Duration min_delay;
  absl::Duration max_delay;
  std::string reason;
};
struct RunEnded {
  uint64_t final_version = 0;
};
using CheckInDecision = std::variant<TaskAssignment, RetryLater, RunEnded>;

// kLater: none yet, as there is no open round to count it in; send it again.
enum class Verdict { kAccepted, kRejected, kLate, kLater };
absl::string_view VerdictName(Verdict verdict);

struct UpdateVerdict {
  Verdict verdict = Verdict::kRejected;
  std::string reason;
};

// Things the owner must do after an event, in order.
struct RoundStarted {  // record it before an assignment of this round goes out
  uint64_t round = 0;
  uint64_t base_version = 0;
  std::vector<std::string> cohort;  // sorted
};
struct NodeAssigned {  // joined an open round: record it before its assignment goes out
  uint64_t round = 0;
  std::string node_id;
};
struct UpdateJudged {  // record it before the receipt goes out; once a node and round
  uint64_t round = 0;
  uint64_t counted = 0;  // the open round that an accepted one counts in: `round`, or a later one
  std::string node_id;
  Digest digest;
  uint64_t weight = 0;      // of an accepted update
  uint64_t wire_bytes = 0;  // 0 for a late one: its bytes are not looked at
  UpdateVerdict verdict = {};
  bool quarantined = false;  // it keeps the node out of the next rounds
};
struct TaskFailed {  // the node said so
  uint64_t round = 0;
  std::string node_id;
  std::string error;
};
struct VersionPublished {  // a candidate: store it and ConfirmPublished, or RejectCandidate
  ModelState state;
  uint64_t round = 0;
  RoundCounts counts;
  std::vector<Contribution> contributions;  // sorted by node, then round
  double aggregation_error = 0;             // NextVersion's
};
struct RoundAbandoned {
  uint64_t round = 0;
  RoundCounts counts;
  std::string reason;
  bool carried = false;  // its updates count in the round after it
};
struct RunCompleted {
  uint64_t final_version = 0;
};
using CoordinatorAction = std::variant<RoundStarted, NodeAssigned, UpdateJudged, TaskFailed,
                                       VersionPublished, RoundAbandoned, RunCompleted>;

}  // namespace fedge

#endif  // FEDGE_SERVER_COORDINATOR_ACTIONS_H_
