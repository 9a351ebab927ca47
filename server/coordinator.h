// The round as a state machine: no network, no files, no threads, no clock of its own. Events go
// in, decisions and actions come out; the same object runs in production, in the simulator and in
// the fault tests.
//
//   run:   WAITING -> COLLECTING -> PUBLISHING -> COLLECTING ... -> FINISHED
//             ^___________| abandoned: too few updates; the next attempt has the next number
//   node in a round: ASSIGNED -> ACCEPTED | REJECTED | DROPPED
//
// The cohort of a round is a seeded sample of the nodes known when it starts, sorted by id: the
// same seed and the same nodes give the same cohort, whatever the order of arrivals. Accepted
// updates are summed as integers (server/aggregator.h), so the published adapter has the same bytes
// for any order too.
#ifndef FEDGE_SERVER_COORDINATOR_H_
#define FEDGE_SERVER_COORDINATOR_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/digest.h"
#include "server/aggregation.h"
#include "server/cohort.h"
#include "server/node_id.h"
#include "server/quarantine.h"
#include "server/round_updates.h"
#include "server/run_plan.h"
#include "server/update_admission.h"

namespace fedge {

inline constexpr size_t kMaxKnownNodes = 1'000'000;

// What a check-in is answered with.
struct TaskAssignment {
  uint64_t round = 0;
  uint64_t adapter_version = 0;
  absl::Duration deadline;  // from now
  uint64_t seed = 0;
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

enum class Verdict { kAccepted, kRejected, kLate };
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
struct UpdateJudged {  // record it before the receipt goes out; once a node and round
  uint64_t round = 0;
  std::string node_id;
  Digest digest;
  uint64_t weight = 0;      // of an accepted update
  uint64_t wire_bytes = 0;  // 0 for a late one: its bytes are not looked at
  UpdateVerdict verdict = {};
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
  std::vector<Contribution> contributions;  // sorted by node
  double aggregation_error = 0;             // NextVersion's
};
struct RoundAbandoned {
  uint64_t round = 0;
  RoundCounts counts;
  std::string reason;
};
struct RunCompleted {
  uint64_t final_version = 0;
};
using CoordinatorAction = std::variant<RoundStarted, UpdateJudged, TaskFailed, VersionPublished,
                                       RoundAbandoned, RunCompleted>;

// Not thread-safe: the owner serializes events. Times are Clock::Monotonic values handed in.
class Coordinator {
 public:
  // `state`: version 0 = what every device starts from, or the last published version after a
  // restart; `next_round` (>= 1) is the number of the next round, greater than all started before.
  Coordinator(RunPlan plan, ModelState state, uint64_t next_round = 1);
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  // A stored verdict on an update of an earlier round; before ResumeRound, in the order of rounds.
  void ResumeVerdict(absl::string_view node_id, uint64_t round, bool accepted) {
    quarantine_.Note(node_id, round, accepted);
  }
  // Continues round `next_round`, which was open when the server stopped, before any other event:
  // its whole cohort (sorted) is pending, the deadline starts anew. Then ResumeUpdate or
  // ResumeFailure for each node that had settled, in any order, then FinishResume.
  void ResumeRound(const std::vector<std::string>& cohort, absl::Duration now);
  // What SubmitUpdate made of the update then, without the action.
  UpdateVerdict ResumeUpdate(absl::string_view node_id, ReceivedUpdate update);
  void ResumeFailure(absl::string_view node_id, absl::string_view error);
  void FinishResume() { MaybeCloseRound(/*deadline_passed=*/false); }

  // InvalidArgument: bad node id. FailedPrecondition: base model differs from the run's (names both
  // hashes). ResourceExhausted: a new node, and kMaxKnownNodes are known.
  absl::StatusOr<CheckInDecision> CheckIn(absl::string_view node_id, const Digest& base_model,
                                          absl::Duration now);

  // What SubmitUpdate will answer whatever the bytes hold; nothing when the update is still wanted:
  // then AdmitUpdate(plan(), round, version(), bytes) decides.
  std::optional<UpdateVerdict> KnownVerdict(absl::string_view node_id, uint64_t round,
                                            const Digest& digest);
  // Whether the node is in the cohort of the round that is collecting, and that is `round`.
  bool InOpenCohort(absl::string_view node_id, uint64_t round) const;
  // A whole update arrived; `update.admitted` is what AdmitUpdate made of it. One node's bad update
  // is its own verdict and never an error of the round. The same bytes again give the same verdict;
  // other bytes after a verdict are rejected and change nothing.
  UpdateVerdict SubmitUpdate(absl::string_view node_id, uint64_t round, ReceivedUpdate update);
  // The device gave up on its task. Ignored unless its update is pending.
  void ReportFailure(absl::string_view node_id, uint64_t round, absl::string_view error);
  // Time passed: deadlines.
  void Tick(absl::Duration now);
  // The version of the last VersionPublished is durable: it may be served, the next round starts.
  void ConfirmPublished(uint64_t version, absl::Duration now);
  // It was refused instead: its round ends without a version, the next one trains the version of
  // before.
  void RejectCandidate(uint64_t version, absl::Duration now);
  // Makes `state`, whose version must be the next one, the candidate of a VersionPublished of round
  // 0; an open round is abandoned for `reason`. Not while publishing().
  void Restore(ModelState state, absl::string_view reason);

  // Actions since the last call, in order.
  std::vector<CoordinatorAction> TakeActions();

  const RunPlan& plan() const { return plan_; }
  uint64_t version() const { return state_.version; }  // the one being trained or served
  const LoraAdapter& adapter() const { return state_.adapter; }
  uint64_t round() const { return round_; }  // the one collecting or, between rounds, the next
  bool collecting() const { return phase_ == Phase::kCollecting; }
  bool publishing() const { return phase_ == Phase::kPublishing; }
  bool finished() const { return phase_ == Phase::kFinished; }
  RoundCounts counts() const;  // of the open round; between rounds only `late`
  size_t known_nodes() const { return nodes_.size(); }

 private:
  enum class Phase { kWaiting, kCollecting, kPublishing, kFinished };
  size_t NodesNeeded() const;
  int64_t Quorum() const;
  CheckInDecision Decide(absl::string_view node_id, absl::Duration now) const;
  void MaybeStartRound(absl::Duration now);
  void OpenRound(const std::vector<std::string>& cohort, absl::Duration now);
  UpdateVerdict Judge(absl::string_view node_id, Participation& participation,
                      ReceivedUpdate update, uint64_t* weight = nullptr);
  void MaybeCloseRound(bool deadline_passed);
  void EndRound();  // moves the cohort to past_
  void Publish();
  void Abandon(std::string reason);
  void GoOn(absl::Duration now);  // after a candidate was settled

  RunPlan plan_;
  ModelState state_;
  std::optional<ModelState> candidate_;  // of VersionPublished, until it is settled
  uint64_t round_;
  Phase phase_ = Phase::kWaiting;
  bool first_round_started_ = false;
  absl::Duration deadline_;
  std::set<std::string, std::less<>> nodes_;  // checked in, and not silent at a deadline since
  Cohort cohort_;
  std::map<uint64_t, Cohort> past_;  // the newest few, to answer repetitions of lost receipts
  int64_t late_ = 0;                 // since the last round ended
  Quarantine quarantine_;
  std::unique_ptr<RoundUpdates> updates_;  // of the open round
  std::vector<CoordinatorAction> actions_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_COORDINATOR_H_
