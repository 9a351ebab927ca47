// The round as a state machine: no network, no files, no threads, no clock of its own. Events go
// in, decisions and actions come out; the same object runs in production, in the simulator and in
// the fault tests.
//
//   run:   WAITING -> COLLECTING -> PUBLISHING -> COLLECTING ... -> FINISHED
//             ^___________| abandoned: too few updates; they count in the next attempt, which has
//                           the next number
//   node in a round: server/cohort.h
//
// Synchronous: the cohort of a round is a seeded sample of the nodes known when it starts, sorted
// by id: the same seed and the same nodes give the same cohort, whatever the order of arrivals. A
// node that is given up is replaced by the next one that checks in. Asynchronous: a round is a
// buffer. It begins with nobody; who checks in becomes a member as long as there is a place, and
// may deliver in a later round. In both, an update of an earlier round counts in the open one while
// its version is not too old.
//
// Accepted updates are summed as integers (server/aggregator.h), so the published adapter has the
// same bytes for any order too.
#ifndef FEDGE_SERVER_COORDINATOR_H_
#define FEDGE_SERVER_COORDINATOR_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/digest.h"
#include "server/aggregation.h"
#include "server/cohort.h"
#include "server/coordinator_actions.h"
#include "server/early_stopping.h"
#include "server/node_id.h"
#include "server/node_speeds.h"
#include "server/quarantine.h"
#include "server/round_updates.h"
#include "server/run_plan.h"
#include "server/update_admission.h"

namespace fedge {

inline constexpr size_t kMaxKnownNodes = 1'000'000;

// Check-ins come within one to two paces: on average two thirds of this.
inline constexpr double kMostCheckInsPerSecond = 200;

// Not thread-safe: the owner serializes events. Times are Clock::Monotonic values handed in.
class Coordinator {
 public:
  // `state`: version 0 = what every device starts from, or the last published version after a
  // restart; `next_round` (>= 1) is the number of the next round, greater than all started before.
  // `read`: RoundUpdates'.
  Coordinator(RunPlan plan, ModelState state, uint64_t next_round = 1, BlobReader read = nullptr);
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  // A stored verdict on an update of an earlier round; before ResumeRound, in the order of rounds.
  void ResumeVerdict(absl::string_view node_id, uint64_t round, bool accepted) {
    quarantine_.Note(node_id, round, accepted);
  }
  // A round that is over whose updates may still come, and what was stored of its members; before
  // ResumeRound, in the order of rounds.
  void ResumePastRound(uint64_t round, uint64_t base_version,
                       const std::vector<std::string>& cohort, absl::Duration now);
  void ResumePastTask(uint64_t round, absl::string_view node_id, NodeState state,
                      const Digest& digest, absl::string_view reason);
  // Continues round `next_round`, which was open when the server stopped, before any other event:
  // its whole cohort (sorted) is pending, the deadline starts anew. Then ResumeUpdate or
  // ResumeFailure for each node that had settled and for each update of an earlier round that
  // counts in this one, in any order, then FinishResume.
  void ResumeRound(const std::vector<std::string>& cohort, absl::Duration now);
  // What SubmitUpdate made of the update then, without the action. Without a ResumeRound: an update
  // of an abandoned round that counts in the next one.
  UpdateVerdict ResumeUpdate(absl::string_view node_id, uint64_t round, ReceivedUpdate update);
  void ResumeFailure(absl::string_view node_id, absl::string_view error);
  // `closed`: the round was closed before, nobody is waited for.
  void FinishResume(absl::Duration now, bool closed = false) { MaybeCloseRound(closed, now); }

  // InvalidArgument: bad node id. FailedPrecondition: base model differs from the run's (names both
  // hashes). ResourceExhausted: a new node, and kMaxKnownNodes are known.
  // `tokens_per_second`: the node's own word; 0: unknown.
  absl::StatusOr<CheckInDecision> CheckIn(absl::string_view node_id, const Digest& base_model,
                                          absl::Duration now, double tokens_per_second = 0);
  // The node was not told of the task that CheckIn had for it: it works for another run now.
  void TakeBack(absl::string_view node_id, const TaskAssignment& task);
  // Signs of life: the node downloads; it asks about or sends its update of `round`.
  void NoteDownload(absl::string_view node_id, absl::Duration now);
  void NoteUpload(absl::string_view node_id, uint64_t round, absl::Duration now);

  // What SubmitUpdate will answer whatever the bytes hold; nothing when the update is still wanted:
  // then AdmitUpdate(plan(), round, *BaseVersion(round), bytes) decides.
  std::optional<UpdateVerdict> KnownVerdict(absl::string_view node_id, uint64_t round,
                                            const Digest& digest);
  // What a round trains, or trained; nothing for a round that is not open or no longer remembered.
  std::optional<uint64_t> BaseVersion(uint64_t round) const;
  // How many closed rounds are remembered.
  size_t remembered_rounds() const;
  // Whether the node has a task of that round, and its update may still count.
  bool HasOpenTask(absl::string_view node_id, uint64_t round) const;
  // A whole update arrived; `update.admitted` is what AdmitUpdate made of it. One node's bad update
  // is its own verdict and never an error of the round. The same bytes again give the same verdict;
  // other bytes after a verdict are rejected and change nothing.
  UpdateVerdict SubmitUpdate(absl::string_view node_id, uint64_t round, ReceivedUpdate update);
  // The device gave up on its task. Ignored unless its update may still count.
  void ReportFailure(absl::string_view node_id, uint64_t round, absl::string_view error);
  // A paused run gives no tasks and starts no round; updates on the way are taken and may complete
  // the open one. Its time should stand still meanwhile (server/run_clock.h).
  void SetPaused(bool paused) { paused_ = paused; }
  // The run ends with the version it has: an open round is abandoned; a version that is being
  // published comes out. Without effect once finished; RunCompleted is not among the actions.
  void Stop();
  // Time passed: deadlines, leases.
  void Tick(absl::Duration now);
  // The loss of a version on held-out data, in the order of versions. When it no longer falls
  // (PacePlan::patience), the run ends after the open round.
  void NoteHoldout(uint64_t version, double loss);
  // The version of the last VersionPublished is durable: it may be served, the next round starts.
  void ConfirmPublished(uint64_t version, absl::Duration now);
  // It was refused instead: its round ends without a version, the next one trains the version of
  // before.
  void RejectCandidate(uint64_t version, absl::Duration now);
  // Makes `state`, whose version must be the next one, the candidate of a VersionPublished of round
  // 0; an open round is abandoned for `reason`, updates of earlier versions count no more. Not
  // while publishing().
  void Restore(ModelState state, absl::string_view reason);

  // Who measures the candidate of `round`: the canaries, at least one if there are any, and
  // run.gate.evaluation_nodes others; of the nodes that are known and not in quarantine. Sorted.
  std::vector<std::string> DrawEvaluators(uint64_t round) const;

  // Actions since the last call, in order.
  std::vector<CoordinatorAction> TakeActions();

  const RunPlan& plan() const { return plan_; }
  uint64_t version() const { return state_.version; }  // the one being trained or served
  const LoraAdapter& adapter() const { return state_.adapter; }
  uint64_t round() const { return round_; }  // the one collecting or, between rounds, the next
  bool collecting() const { return phase_ == Phase::kCollecting; }
  bool publishing() const { return phase_ == Phase::kPublishing; }
  bool finished() const { return phase_ == Phase::kFinished; }
  bool paused() const { return paused_; }
  bool stopped() const { return stopped_; }  // by Stop; finished() follows
  // An open round could not be closed, as an update cannot be read again. Its owner must be started
  // again: what is stored is damaged.
  const absl::Status& damage() const { return damage_; }
  RoundCounts counts() const;  // of the open round; between rounds only `folded` and `late`
  absl::Duration deadline() const { return deadline_; }  // of the open round
  size_t known_nodes() const { return nodes_.size(); }
  // Why the node is not drawn, if so.
  std::string QuarantineReason(absl::string_view node_id) const {
    return quarantine_.Reason(node_id, round_);
  }

 private:
  enum class Phase { kWaiting, kCollecting, kPublishing, kFinished };

  // coordinator.cc: what nodes ask and send.
  CheckInDecision Decide(absl::string_view node_id, absl::Duration now);
  // The node's task of the open round, a new one if there is a place for it; null: neither.
  Participation* TaskOf(absl::string_view node_id, absl::Duration now);
  bool IsKeptOut(absl::string_view node_id) const;
  TaskAssignment Assign(absl::string_view node_id, Participation& task, absl::Duration now);
  // Pace steering: least time between check-ins of a node without a task, so that those of many
  // nodes together stay below kMostCheckInsPerSecond.
  absl::Duration Pace() const;
  RetryLater Later(std::string reason, std::optional<absl::Duration> pace = std::nullopt) const;
  std::string WhyNot(absl::string_view node_id) const;  // there is no task for it
  bool IsOpen(uint64_t round) const { return phase_ == Phase::kCollecting && round == round_; }
  const Cohort* FindCohort(uint64_t round) const;  // open, or remembered
  Cohort* FindCohort(uint64_t round) {
    return const_cast<Cohort*>(std::as_const(*this).FindCohort(round));
  }
  bool IsTooOld(const Cohort& cohort) const;
  UpdateVerdict TellLate(absl::string_view node_id, uint64_t round, Participation& task,
                         const Digest& digest);
  UpdateVerdict Judge(absl::string_view node_id, uint64_t round, ReceivedUpdate update,
                      uint64_t* weight = nullptr);
  void LeaveTask(absl::string_view node_id, uint64_t round);

  // coordinator_rounds.cc: how rounds begin and end.
  size_t NodesNeeded() const;
  size_t NodesAvailable() const;
  std::vector<std::string> DrawCohort() const;
  int64_t Quorum() const;
  int64_t Places() const;  // for nodes that are not members yet
  void MaybeStartRound(absl::Duration now);
  void OpenRound(const std::vector<std::string>& cohort, absl::Duration now);
  absl::Duration RoundTime();
  Participation& AddMember(absl::string_view node_id, absl::Duration now);
  absl::Duration LeaseEnd(absl::string_view node_id, const Participation& task) const;
  void EndLeases(absl::Duration now);
  void DropOldTasks();
  void MaybeCloseRound(bool deadline_passed, absl::Duration now);
  void EndRound();  // moves the cohort to past_
  void Publish();
  // `carry`: its updates count in the next round.
  void Abandon(std::string reason, bool carry);
  void GoOn(absl::Duration now);  // after a candidate was settled
  bool FinishIfDone();

  RunPlan plan_;
  ModelState state_;
  const BlobReader read_;
  absl::Status damage_;
  std::optional<ModelState> candidate_;  // of VersionPublished, until it is settled
  uint64_t round_;
  Phase phase_ = Phase::kWaiting;
  bool paused_ = false;
  bool stopped_ = false;
  bool first_round_started_ = false;
  std::set<std::string, std::less<>> nodes_;  // checked in, and not given up since
  // The newest task of each node that has one and is believed to work on it, by its round. Of the
  // open round or an earlier one.
  std::map<std::string, uint64_t, std::less<>> under_way_;
  absl::Duration next_lease_end_ = absl::InfiniteDuration();  // not later than any in under_way_
  NodeSpeeds speeds_;
  Quarantine quarantine_;
  EarlyStopping early_stopping_;
  // The open round.
  Cohort cohort_;
  int64_t goal_ = 0;       // accepted updates that close it
  int64_t vacancies_ = 0;  // members that were given up and not replaced
  absl::Duration opened_, deadline_;
  std::unique_ptr<RoundUpdates> updates_;  // between rounds: what an abandoned one left, if any
  int64_t folded_ = 0;
  int64_t late_ = 0;  // since the last round ended
  // The newest few: their updates may still come, and lost receipts are repeated.
  std::map<uint64_t, Cohort> past_;
  std::vector<CoordinatorAction> actions_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_COORDINATOR_H_
