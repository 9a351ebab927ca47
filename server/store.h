// What a server must not forget: runs, versions with their blobs, rounds, who took part, nodes.
//
// A version is published in one step, with the exact list of what went into it: a reader of the
// store sees version v or v + 1, never a mix. The bytes of an accepted update are durable before
// the row that says so, and are kept until the next version is published.
// Not here: which bytes are accepted (coordinator), bytes of uploads that are not whole yet
// (upload_buffer).
#ifndef FEDGE_SERVER_STORE_H_
#define FEDGE_SERVER_STORE_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/base/digest.h"
#include "server/audit_log.h"
#include "server/coordinator.h"

namespace fedge {

enum class RunState { kRunning = 0, kPaused = 1, kStopped = 2, kFinished = 3 };
absl::string_view RunStateName(RunState state);  // "paused"

// What must stay the same for the whole life of a run, and its configuration for the record.
struct RunRecord {
  std::string run_id;
  Digest base_model;
  Digest layout;
  uint64_t seed = 0;
  std::string config;  // serialized v1::ServerConfig
  absl::Time created;
  bool by_operator = false;  // over AdminService, not in the server's configuration
  // What it was cloned from, if so, and the version that its version 0 is, if one.
  std::string parent_run;
  std::optional<uint64_t> parent_version;
};

// Means over the devices that measured, of what they measured in one round.
struct RoundMetrics {
  uint64_t devices = 0;         // that sent metrics
  double train_loss_first = 0;  // nats a token, weighted by examples
  double train_loss_last = 0;
  double validation_loss = 0;  // of the version the round started from, weighted by tokens
  uint64_t validation_tokens = 0;
  uint64_t train_tokens = 0;
  uint64_t upload_bytes = 0;
  uint64_t download_bytes = 0;
};

struct VersionRecord {
  uint64_t version = 0;
  uint64_t round = 0;  // that published it; 0 for version 0
  Digest encoded;      // what devices download
  uint64_t encoded_bytes = 0;
  Digest master;                   // fp32 values
  std::optional<Digest> momentum;  // fp32 values
  std::optional<Digest> snapshot;  // what devices hold (server/downlink.h)
  RoundCounts counts;
  uint64_t update_bytes = 0;     // wire bytes of the accepted updates
  double aggregation_error = 0;  // relative: server/aggregation.h
  RoundMetrics metrics;
  std::optional<double> holdout_loss;    // nats a token
  std::array<double, 2> typical_norm{};  // ModelState's
  absl::Time created;
  std::optional<uint64_t> origin;  // the version whose content was published again as this one
  std::string manifest;   // serialized v1::VersionManifest; empty: an older release published it
  std::string signature;  // of it, if the server signs
  std::string decision;   // serialized v1::GateDecision; empty: there was no gate
  std::string actor;      // who wanted it, for the audit log; empty: the server. Not kept
};

// A round whose candidate was refused.
struct RefusedRound {
  uint64_t round = 0;
  uint64_t version = 0;  // that it would have been
  RoundCounts counts;
  std::string reason;    // one line
  std::string decision;  // as VersionRecord's
  absl::Time when;
};

struct VersionBlobs {
  absl::string_view encoded;
  absl::string_view master;
  absl::string_view momentum = {};  // empty: none
  absl::string_view snapshot = {};  // empty: none
};

enum class Outcome { kAccepted = 1, kRejected = 2, kLate = 3, kFailed = 4 };

struct ParticipationRecord {
  uint64_t round = 0;
  uint64_t counted = 0;  // of an accepted update: the round it counts in, `round` or a later one
  std::string node_id;
  Outcome outcome = Outcome::kAccepted;
  Digest digest;  // of the update; zero for kFailed
  uint64_t weight = 0;
  uint64_t wire_bytes = 0;
  std::string reason;
  std::string metrics;  // serialized v1::TaskMetrics; may be empty
  absl::Time when;
  bool quarantined = false;  // it keeps the node out of the next rounds; for the audit log
};

struct RoundRecord {
  uint64_t round = 0;
  uint64_t base_version = 0;
  uint64_t attempt = 1;             // one more each time a server that stopped continues it
  std::vector<std::string> cohort;  // sorted; with those who joined later
  absl::Time started;
  bool closed = false;  // nobody is waited for: its candidate was being evaluated
};

struct NodeRecord {
  std::string node_id;
  absl::Time last_seen;
  std::string device;  // serialized v1::DeviceReport
};

// Thread-safe. Calls block on the disk. A call that returns OK is durable; one that failed may have
// happened all the same, and all may be repeated: the second time changes nothing.
//
// ResourceExhausted: the disk is full; nothing is lost, the same call works once there is room
// again. After any other failed write all further writes return FailedPrecondition: what reached
// the disk is no longer known, the owner must stop and be restarted.
class Store : public AuditLog {
 public:
  // Creates the run or continues it; one that has no version yet is made anew. FailedPrecondition:
  // it exists with another base model, layout or seed (names what differs).
  virtual absl::Status OpenRun(const RunRecord& run) = 0;
  virtual absl::StatusOr<RunState> GetRunState(absl::string_view run) = 0;
  // A change is on record in the audit log, in the same transaction. The bytes of updates that an
  // abandoned round left go with the end of the run.
  virtual absl::Status SetRunState(absl::string_view run, RunState state, absl::string_view actor,
                                   absl::Time when) = 0;
  virtual absl::StatusOr<std::optional<VersionRecord>> LatestVersion(absl::string_view run) = 0;
  virtual absl::StatusOr<std::vector<VersionRecord>> ListVersions(absl::string_view run) = 0;
  virtual absl::StatusOr<uint64_t> LastRound(absl::string_view run) = 0;  // 0: none was started

  // FailedPrecondition: a round of this number was started differently.
  virtual absl::Status StartRound(absl::string_view run, const RoundRecord& round) = 0;
  // Adds nodes to the cohort of a round that was started.
  virtual absl::Status AddMembers(absl::string_view run, uint64_t round,
                                  absl::Span<const std::string> nodes) = 0;
  // All rounds that trained `first_version` or a later one, ascending.
  virtual absl::StatusOr<std::vector<RoundRecord>> ListRounds(absl::string_view run,
                                                              uint64_t first_version) = 0;
  // The round that was open when the last server stopped, now at its next attempt.
  virtual absl::StatusOr<std::optional<RoundRecord>> ContinueRound(absl::string_view run) = 0;
  // The updates that count in it count in the round after it if they are carried; or else their
  // bytes go.
  virtual absl::Status AbandonRound(absl::string_view run, const RoundAbandoned& round,
                                    absl::Time when) = 0;
  // The round is closed and its candidate is being evaluated: what came in is what it is made of.
  virtual absl::Status StartEvaluation(absl::string_view run, uint64_t round) = 0;
  // The bytes of the round's updates go. One transaction with the audit log's record.
  virtual absl::Status RefuseRound(absl::string_view run, const RefusedRound& round) = 0;
  // Blobs first, then one transaction for the version, its contributions (sorted by node and
  // round), its round and the audit log's record; then the blobs of versions that are no longer
  // kept go, and those of updates that count in rounds before (of all, if it is of round 0). Fills
  // in the record's digests.
  // FailedPrecondition: a version of this number with other content exists, or there is a gap.
  virtual absl::StatusOr<VersionRecord> PublishVersion(
      absl::string_view run, VersionRecord record, const VersionBlobs& blobs,
      absl::Span<const Contribution> contributions) = 0;
  // What went into a version, sorted by node and round. Kept for ever.
  virtual absl::StatusOr<std::vector<Contribution>> ListContributions(absl::string_view run,
                                                                      uint64_t version) = 0;
  virtual absl::Status RecordHoldout(absl::string_view run, uint64_t version, double loss) = 0;

  // A blob of a kept version, or an accepted update of the open round or of the one that published
  // last; checked against its digest: NotFound, DataLoss.
  virtual absl::StatusOr<std::string> ReadBlob(const Digest& digest) = 0;
  // Moves a damaged blob aside, so that its bytes can be written anew. Fine when there is none.
  virtual absl::Status QuarantineBlob(const Digest& digest) = 0;
  // Whether `digest` is what devices download as a version of `run` that is still kept.
  virtual absl::StatusOr<bool> IsServed(absl::string_view run, const Digest& digest) = 0;

  // Makes an update's bytes durable ahead of the record that will name them. Updates are written in
  // parallel. Undone by DropUpdate, or kept by RecordParticipations of an accepted update; exactly
  // one of the two must follow each WriteUpdate.
  virtual absl::Status WriteUpdate(const Digest& digest, absl::string_view bytes) = 0;
  virtual void DropUpdate(const Digest& digest) = 0;

  // All in one transaction. Inserts, or replaces a record of the same (round, node) that has no
  // verdict (kFailed, kLate).
  virtual absl::Status RecordParticipations(absl::string_view run,
                                            absl::Span<const ParticipationRecord> records) = 0;
  virtual absl::StatusOr<std::optional<ParticipationRecord>> FindParticipation(
      absl::string_view run, uint64_t round, absl::string_view node) = 0;
  // Of a round, sorted by node.
  virtual absl::StatusOr<std::vector<ParticipationRecord>> ListParticipations(absl::string_view run,
                                                                              uint64_t round) = 0;
  // Accepted updates of earlier rounds that count in `round`, which may not have started yet;
  // sorted by round and node.
  virtual absl::StatusOr<std::vector<ParticipationRecord>> ListFolded(absl::string_view run,
                                                                      uint64_t round) = 0;
  // Forgets a verdict whose update's bytes are damaged, as if the update had never come.
  virtual absl::Status WithdrawParticipation(absl::string_view run, uint64_t round,
                                             absl::string_view node) = 0;
  // Only fills in what is missing; without effect when the node has no record in the round.
  virtual absl::Status RecordMetrics(absl::string_view run, uint64_t round, absl::string_view node,
                                     absl::string_view metrics) = 0;

  virtual absl::Status TouchNodes(absl::Span<const NodeRecord> nodes) = 0;
  virtual absl::StatusOr<uint64_t> CountNodes() = 0;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_STORE_H_
