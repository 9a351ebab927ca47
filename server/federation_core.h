// The service without a transport: coordinator, store and upload buffer put together. gRPC
// (server/federation_service.cc), the simulator and the tests call the same methods.
//
// Locks: `mutex_` guards the coordinator and small tables and is not held during I/O, but for
// reading stored updates again where a round's result needs them one beside the other;
// `actions_mutex_` is held while the coordinator's actions are stored and announced, one batch
// after the other. A method that caused an action returns only after it was stored: what a device
// is told is durable. While the disk is full nothing is told: requests get ResourceExhausted, what
// was decided waits in memory and is stored when there is room.
#ifndef FEDGE_SERVER_FEDERATION_CORE_H_
#define FEDGE_SERVER_FEDERATION_CORE_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/base/clock.h"
#include "common/security/signing.h"
#include "fedge/v1/federation.pb.h"
#include "server/candidate_evaluator.h"
#include "server/coordinator.h"
#include "server/device_requests.h"
#include "server/downlink.h"
#include "server/node_quota.h"
#include "server/quality_gate.h"
#include "server/round_metrics.h"
#include "server/run_clock.h"
#include "server/server_events.h"
#include "server/store.h"
#include "server/upload_buffer.h"

namespace fedge {

struct FederationCoreOptions {
  Clock* clock = nullptr;             // must outlive the core, as all pointers here
  std::vector<ServerEvents*> events;  // called in this order
  std::string config;                 // for the record: serialized v1::ServerConfig
  bool by_operator = false;           // RunRecord's, so are these
  std::string actor = "";             // who wanted the run, for the audit log; empty: the server
  std::string parent_run;
  std::optional<uint64_t> parent_version;
  absl::Duration tick_interval = absl::Milliseconds(200);  // zero: the owner calls Tick
  std::shared_ptr<GuardedQuota> quota;  // what runs share; null: one of its own, as the plan says
  CandidateEvaluator* evaluator = nullptr;  // of run.gate; null: no holdout
  std::optional<SigningKey> signing_key;    // of manifests; none: unsigned
};

// Thread-safe. Methods block on the disk (not on the network), for milliseconds as a rule.
class FederationCore : public DeviceRequests {
 public:
  class OpenStream;

  // Continues the run in `store` at its last published version and in the round that was open, or
  // starts it with `initial` as version 0. Damaged blobs are moved aside and announced: an update's
  // node is asked again, a damaged version is replaced by the newest intact one (as the next
  // version). Codes of Store; DataLoss when no stored version is intact and fits the plan's
  // adapter.
  static absl::StatusOr<std::unique_ptr<FederationCore>> Create(
      RunPlan plan, const LoraAdapter& initial, std::shared_ptr<Store> store,
      std::shared_ptr<UploadBuffer> uploads, FederationCoreOptions options);
  ~FederationCore() override;

  absl::StatusOr<v1::CheckInResponse> CheckIn(const v1::CheckInRequest& request) override;
  absl::StatusOr<std::shared_ptr<const std::string>> OpenDownload(
      const v1::DownloadRequest& request) override;
  absl::StatusOr<v1::QueryUploadResponse> QueryUpload(
      const v1::QueryUploadRequest& request) override;
  absl::Status Report(const v1::ReportRequest& request) override;

  // The parts of CheckIn and OpenDownload behind the node's quota, for an owner of several runs.
  // What the run says to a check-in; stored. Then the message that says so.
  absl::StatusOr<CheckInDecision> Decide(const v1::CheckInRequest& request);
  v1::CheckInResponse Answer(const v1::CheckInRequest& request, CheckInDecision decision);
  // Instead, if another run's task went out.
  void TakeBack(absl::string_view node, const TaskAssignment& task);
  // Of a download by `node`. NotFound: not a content of this run, or of a version that is no longer
  // kept.
  absl::StatusOr<std::shared_ptr<const std::string>> FindContent(const Digest& digest,
                                                                 absl::string_view node);

  class Upload : public UploadStream {
   public:
    absl::StatusOr<std::optional<v1::UploadReceipt>> OnMessage(
        const v1::UploadRequest& request) override;
    absl::StatusOr<v1::UploadReceipt> OnEnd() override;

   private:
    friend class FederationCore;
    explicit Upload(FederationCore& core) : core_(core) {}
    FederationCore& core_;
    std::optional<UploadKey> key_;
    std::shared_ptr<OpenStream> stream_;
  };
  Upload StartUpload() { return Upload(*this); }
  std::unique_ptr<UploadStream> OpenUpload() override {
    return std::make_unique<Upload>(StartUpload());
  }

  // The life of the run: stored first, then in force. FailedPrecondition: the run is over.
  // A paused run gives no tasks, and the time its open round has left stands still; updates on the
  // way are taken and may complete it. `actor` is who the audit log names.
  absl::Status SetPaused(bool paused, absl::string_view actor = kAnOperator);
  // For good: the open round is abandoned, a candidate refused, devices are told that the run is
  // over. Fine when it is.
  absl::Status Stop(absl::string_view actor = kAnOperator);
  RunState state();

  // Deadlines, stale uploads, the node table. Called by an own thread every tick_interval.
  void Tick();
  // Stores what Tick would have stored later. Called by the destructor.
  void Flush();
  // Whether the node is to measure a candidate: Answer turns a RetryLater into that task.
  bool AsksForEvaluation(absl::string_view node);
  // What the evaluator measured of the candidate of `round`; ignored once that is decided.
  void NoteHoldout(uint64_t round, const HoldoutMeasurement& measured);
  // What operators decide; the next check-ins follow. Durable when OK is returned; while the disk
  // is full, ResourceExhausted: it comes into force when there is room.
  // Publishes the candidate that waits for its nodes. FailedPrecondition: none does.
  absl::Status Promote(absl::string_view actor);
  // Publishes the content of `version` again, as the next version, which is returned; the open
  // round ends without a version, the outer optimizer starts anew. NotFound: no such version.
  // FailedPrecondition: it is the one served, or not kept any more.
  absl::StatusOr<uint64_t> Rollback(uint64_t version, absl::string_view actor);
  // NotFound: no such version.
  absl::StatusOr<VersionRecord> FindVersion(uint64_t version);
  absl::StatusOr<std::vector<Contribution>> ContributionsOf(uint64_t version);
  // What devices hold at a version. NotFound: there is none, or it is not kept any more.
  absl::StatusOr<LoraAdapter> HeldAt(uint64_t version);

  // Of a version's held-out data; stored and announced.
  void RecordHoldout(uint64_t version, double loss, int64_t tokens);

  const RunPlan& plan() const { return plan_; }
  uint64_t version();
  uint64_t round();
  bool finished();
  LoraAdapter adapter();                               // the fp32 master, a copy
  LoraAdapter served() { return downlink_.served(); }  // what devices hold, a copy
  absl::Status health();                               // OK, or why the store failed
  size_t known_nodes();
  // Of the round that is open or, between rounds, next.
  struct Progress {
    uint64_t round = 0;
    bool collecting = false;
    RoundCounts counts;
    size_t known_nodes = 0;
  };
  Progress progress();
  // Why the node is not drawn, if so.
  std::string QuarantineReason(absl::string_view node);
  // The node heard from somebody else that the run is over.
  void NoteTold(absl::string_view node);
  // Once finished: how many of the known nodes have not been told so yet.
  size_t nodes_to_tell();

 private:
  FederationCore(RunPlan plan, std::shared_ptr<Store> store, std::shared_ptr<UploadBuffer> uploads,
                 FederationCoreOptions options);

  // The start.
  absl::StatusOr<ModelState> LoadOrCreateVersion(const LoraAdapter& initial);
  absl::StatusOr<ModelState> LoadVersion(const VersionRecord& record);
  absl::StatusOr<ModelState> LoadMaster(const VersionRecord& record);
  absl::Status LoadHistory();
  // The newest version that is intact, as the one after `latest`; `damage` when there is none.
  absl::StatusOr<ModelState> FallBack(const VersionRecord& latest, const absl::Status& damage);
  absl::Status StartCoordinator(ModelState state);
  // The round that was open, unless it cannot go on: then it is abandoned.
  absl::StatusOr<std::optional<RoundRecord>> OpenRoundToContinue(const ModelState& state,
                                                                 RunState run);
  absl::Status ResumeQuarantine(uint64_t last_round);
  absl::Status ResumePastRounds(uint64_t before_round);
  absl::Status ContinueRound(const RoundRecord& round);
  // Updates of earlier rounds that count in `round`, which is open or the next one.
  absl::Status ResumeFolded(uint64_t round);
  absl::Status ResumeVerdicts(absl::Span<const ParticipationRecord> records)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status ResumeVerdict(const ParticipationRecord& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Withdraw(const ParticipationRecord& record, const absl::Status& damage);
  // Moves the blob aside if it is damaged, and says so unless `what` is empty.
  absl::Status Quarantine(const Digest& digest, const std::string& what);

  // A round's result, until it is published or refused.
  struct Candidate {
    VersionPublished published;
    Downlink::Version version;  // what devices would hold
    std::optional<uint64_t> origin;
    std::string actor;  // of a rollback
    RoundMetrics metrics;
  };

  // Stores the version, of which `version` is what devices get, and makes it the one served.
  absl::StatusOr<VersionRecord> StoreVersion(const ModelState& state, VersionRecord record,
                                             Downlink::Version version,
                                             absl::Span<const Contribution> parts)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(actions_mutex_);
  // What is signed of a version, and what devices are told of it.
  std::string ManifestOf(const ModelState& state, const VersionRecord& record,
                         const Downlink::Version& version,
                         absl::Span<const Contribution> parts) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(actions_mutex_);
  v1::SignedManifest Sign(const std::string& manifest, absl::string_view context) const;

  absl::Status CheckServing();
  absl::Status CheckRun(absl::string_view run_id) const;
  // Quotas; ResourceExhausted says when to come again.
  absl::Status TakeRequest(absl::string_view node);
  absl::Status TakeBytes(absl::string_view node, uint64_t bytes);
  absl::StatusOr<UploadKey> ParseUploadId(const v1::UploadId& id) const;
  // The receipt for an upload whose verdict is known without its bytes.
  absl::StatusOr<std::optional<v1::UploadReceipt>> KnownReceipt(const UploadKey& key);
  absl::StatusOr<v1::UploadReceipt> Submit(const UploadKey& key, const std::string& bytes);
  // After a version was published: what is of no use to later ones.
  void ForgetMetrics(absl::Span<const Contribution> counted) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NoteMetrics(absl::string_view node, uint64_t round, v1::TaskMetrics metrics);

  // Stores and announces what the coordinator decided, in order; all updates that were judged
  // meanwhile in one transaction. ResourceExhausted: the disk is full, the rest is stored by a
  // later call. Unavailable once the store failed.
  absl::Status ProcessActions();
  absl::Status HandleFirst() ABSL_EXCLUSIVE_LOCKS_REQUIRED(actions_mutex_);
  // Passes a status of the store on: fails the server unless the disk is only full.
  absl::Status CheckStored(const absl::Status& status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(actions_mutex_);
  absl::Status StoreUpdate(const Digest& digest, absl::string_view bytes);
  absl::Status Handle(CoordinatorAction& action) ABSL_EXCLUSIVE_LOCKS_REQUIRED(actions_mutex_);
  absl::Status HandlePublished(VersionPublished& published)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(actions_mutex_);
  // NodeAssigned, all of one round, in one transaction.
  absl::Status HandleAssigned(absl::Span<const CoordinatorAction> actions)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(actions_mutex_);
  // The gate, in the order in which a candidate meets it.
  absl::Status StartGate(Candidate candidate) ABSL_EXCLUSIVE_LOCKS_REQUIRED(actions_mutex_);
  std::optional<v1::EvaluationTask> MakeEvaluation(const v1::CheckInRequest& request);
  void NoteEvaluation(const v1::ReportRequest& request);
  // An operator's decision made it void, if it is not decided yet.
  void RefuseCandidate(absl::string_view reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsToMeasure(absl::string_view node) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status SettleCandidate() ABSL_EXCLUSIVE_LOCKS_REQUIRED(actions_mutex_);
  absl::Status Publish(const Candidate& candidate, const v1::GateDecision* decision)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(actions_mutex_);
  absl::Status Refuse(const VersionPublished& published, const v1::GateDecision& decision)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(actions_mutex_);
  absl::Status PrepareRollback(uint64_t version, absl::string_view actor, uint64_t* number)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(actions_mutex_);
  // UpdateJudged and TaskFailed, in one transaction.
  absl::Status HandleOutcomes(absl::Span<const CoordinatorAction> outcomes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(actions_mutex_);
  absl::Status Fail(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(actions_mutex_);
  void TickLoop();

  const RunPlan plan_;
  const std::shared_ptr<Store> store_;           // other runs may share it
  const std::shared_ptr<UploadBuffer> uploads_;  // so, too
  const FederationCoreOptions options_;
  const Digest config_digest_;
  Clock& clock_;
  v1::Assignment assignment_;  // what all assignments share

  Downlink downlink_;  // locks for itself

  absl::Mutex actions_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);
  std::deque<CoordinatorAction> unstored_ ABSL_GUARDED_BY(actions_mutex_);
  bool no_room_ ABSL_GUARDED_BY(actions_mutex_) = false;
  std::optional<Candidate> candidate_ ABSL_GUARDED_BY(actions_mutex_);  // that the gate looks at
  std::optional<Candidate> returning_ ABSL_GUARDED_BY(actions_mutex_);  // a rollback on its way
  std::string manifest_ ABSL_GUARDED_BY(actions_mutex_);                // of the version served
  absl::Mutex mutex_;
  std::unique_ptr<QualityGate> gate_ ABSL_GUARDED_BY(mutex_);  // of candidate_
  uint64_t gate_round_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<Coordinator> coordinator_ ABSL_GUARDED_BY(mutex_);
  const std::shared_ptr<GuardedQuota> quota_;
  RunClock run_clock_ ABSL_GUARDED_BY(mutex_);  // what the coordinator goes by
  // Of tasks whose updates may still count, or count in the open round.
  std::map<TaskKey, v1::TaskMetrics> metrics_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, NodeRecord> seen_ ABSL_GUARDED_BY(mutex_);  // not stored yet
  std::set<std::string> told_ ABSL_GUARDED_BY(mutex_);              // that the run is over
  absl::Duration flushed_ ABSL_GUARDED_BY(mutex_);
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread ticker_;
};

// OutOfRange unless the offset that `request` asks for is within `content`.
absl::Status CheckOffset(const v1::DownloadRequest& request, absl::string_view content);

}  // namespace fedge

#endif  // FEDGE_SERVER_FEDERATION_CORE_H_
