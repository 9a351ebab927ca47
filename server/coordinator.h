// The round as a state machine: no network, no files, no threads, no clock of its own. Events go
// in, decisions and actions come out; the same object runs in production, in the simulator and in
// the fault tests.
//
//   round: COLLECTING -> AGGREGATING -> PUBLISHED | ABANDONED        run: WAITING -> RUNNING ->
//   FINISHED node in a round: ASSIGNED -> ACCEPTED | REJECTED | LATE | DROPPED
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
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/digest.h"
#include "common/codec/update_codec.h"
#include "server/aggregator.h"

namespace fedge {

// All knobs of a run, defaults filled in and checked (server/run_plan.h makes it from
// config.proto).
struct RunPlan {
  std::string run_id = "default";
  uint64_t seed = 0;
  int64_t rounds = 20;
  int64_t nodes_per_round = 16;
  int64_t min_nodes = 16;
  double quorum = 0.5;
  absl::Duration round_deadline = absl::Minutes(10);
  absl::Duration retry = absl::Seconds(5);
  LoraSpec lora;
  Digest base_model;
  // What each device is told to do.
  int64_t steps = 8;
  int64_t batch_size = 4;
  int64_t length = 128;
  float learning_rate = 2e-3f;
  float clip_norm = 1;
  float weight_decay = 0;
  double validation_fraction = 0.1;
  EncodeOptions codec;
  bool error_feedback = true;
  double server_learning_rate = 1;
  double server_momentum = 0;
  double max_update_norm = 0;
};

// Counts of a round's cohort; assigned = pending + accepted + rejected + dropped at all times
// (CHECKed).
struct RoundCounts {
  int64_t assigned = 0;
  int64_t pending = 0;
  int64_t accepted = 0;
  int64_t rejected = 0;
  int64_t dropped = 0;
  int64_t late = 0;  // arrived after the round closed; counted in dropped too
};

// What a check-in is answered with.
struct TaskAssignment {
  uint64_t round = 0;
  uint64_t adapter_version = 0;
  absl::Duration deadline;
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
struct UpdateVerdict {
  Verdict verdict = Verdict::kRejected;
  std::string reason;
};

// Things the owner must do after an event, in order.
struct RoundStarted {
  uint64_t round = 0;
  std::vector<std::string> cohort;
};
struct VersionPublished {  // persist it, then serve it
  uint64_t version = 0;
  uint64_t round = 0;
  LoraAdapter adapter;
  RoundCounts counts;
  uint64_t update_bytes = 0;  // wire bytes of the accepted updates
};
struct RoundAbandoned {
  uint64_t round = 0;
  RoundCounts counts;
  std::string reason;
};
struct RunCompleted {
  uint64_t final_version = 0;
};
using CoordinatorAction =
    std::variant<RoundStarted, VersionPublished, RoundAbandoned, RunCompleted>;

// Not thread-safe: the owner serializes events. Times are Clock::Monotonic values handed in.
class Coordinator {
 public:
  // Starts at version 0 = `initial` (what every device starts from).
  Coordinator(RunPlan plan, LoraAdapter initial);
  // Continues after a restart: the state of the last published version; `next_round` has not
  // started.
  Coordinator(RunPlan plan, LoraAdapter current, uint64_t version, uint64_t next_round);

  // InvalidArgument: bad node id. FailedPrecondition: base model differs from the run's (names both
  // hashes).
  absl::StatusOr<CheckInDecision> CheckIn(absl::string_view node_id, const Digest& base_model,
                                          absl::Duration now);
  // A whole update arrived. One node's bad update is its own verdict and never an error of the
  // round. The same bytes again give the same verdict; other bytes for an accepted (round, node)
  // are rejected.
  UpdateVerdict SubmitUpdate(absl::string_view node_id, uint64_t round, const Digest& digest,
                             absl::string_view bytes);
  // The device gave up on its task.
  void ReportFailure(absl::string_view node_id, uint64_t round, absl::string_view error);
  // Time passed: deadlines.
  void Tick(absl::Duration now);

  // Actions since the last call, in order.
  std::vector<CoordinatorAction> TakeActions();

  const RunPlan& plan() const { return plan_; }
  uint64_t version() const { return version_; }
  uint64_t round() const { return round_; }  // the one collecting or, between rounds, the next
  bool collecting() const { return collecting_; }
  bool finished() const { return finished_; }
  RoundCounts counts() const;
  const LoraAdapter& current() const { return current_; }

 private:
  enum class NodeState { kAssigned, kAccepted, kRejected, kDropped };
  struct Participation {
    NodeState state = NodeState::kAssigned;
    Digest digest;
    std::string reason;
  };

  void MaybeStartRound(absl::Duration now);
  void MaybeCloseRound(absl::Duration now, bool deadline_passed);
  void Publish();
  absl::Status Accept(absl::string_view bytes, Participation& participation);

  RunPlan plan_;
  LoraAdapter current_;
  std::vector<float> momentum_;
  uint64_t version_ = 0;
  uint64_t round_ = 1;
  bool collecting_ = false;
  bool finished_ = false;
  absl::Duration deadline_;
  std::set<std::string> nodes_;                  // all that ever checked in
  std::map<std::string, Participation> cohort_;  // of the current round
  std::unique_ptr<UpdateAggregator> aggregator_;
  uint64_t update_bytes_ = 0;
  int64_t late_ = 0;
  std::vector<CoordinatorAction> actions_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_COORDINATOR_H_
