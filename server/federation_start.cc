// FederationCore: what is taken up from the store at the start, and what becomes of damage.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "server/federation_core.h"

namespace fedge {
namespace {

constexpr size_t kHistoryVersions = 64;  // read at the start
constexpr uint64_t kVerdictRounds = 256;

// A blob that is gone or not what it was.
bool IsDamage(const absl::Status& status) {
  return absl::IsNotFound(status) || absl::IsDataLoss(status);
}

absl::Status CopyFloats(const Digest& digest, absl::string_view bytes, absl::Span<float> values) {
  if (bytes.size() != values.size() * sizeof(float)) {
    return absl::DataLossError(absl::StrCat("stored version: blob ", digest.Hex(), " has ",
                                            bytes.size(), " bytes, the run's adapter needs ",
                                            values.size() * sizeof(float)));
  }
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return absl::OkStatus();
}

NodeState StateOf(Outcome outcome) {
  return outcome == Outcome::kAccepted   ? NodeState::kAccepted
         : outcome == Outcome::kRejected ? NodeState::kRejected
                                         : NodeState::kDropped;
}

}  // namespace

absl::StatusOr<std::unique_ptr<FederationCore>> FederationCore::Create(
    RunPlan plan, const LoraAdapter& initial, std::shared_ptr<Store> store,
    std::shared_ptr<UploadBuffer> uploads, FederationCoreOptions options) {
  std::unique_ptr<FederationCore> core(new FederationCore(std::move(plan), std::move(store),
                                                          std::move(uploads), std::move(options)));
  RETURN_IF_ERROR(core->store_->OpenRun({.run_id = core->plan_.run_id,
                                         .base_model = core->plan_.base_model,
                                         .layout = core->plan_.lora.layout_hash(),
                                         .seed = core->plan_.seed,
                                         .config = core->options_.config,
                                         .created = core->clock_.Now(),
                                         .by_operator = core->options_.by_operator,
                                         .parent_run = core->options_.parent_run,
                                         .parent_version = core->options_.parent_version}));
  ASSIGN_OR_RETURN(ModelState state, core->LoadOrCreateVersion(initial));
  RETURN_IF_ERROR(core->StartCoordinator(std::move(state)));
  RETURN_IF_ERROR(core->ProcessActions());
  if (core->options_.tick_interval > absl::ZeroDuration()) {
    FederationCore* const self = core.get();
    core->ticker_ = std::thread([self] { self->TickLoop(); });
  }
  return core;
}

absl::StatusOr<ModelState> FederationCore::LoadOrCreateVersion(const LoraAdapter& initial) {
  ASSIGN_OR_RETURN(const std::optional<VersionRecord> latest, store_->LatestVersion(plan_.run_id));
  if (latest) {
    absl::StatusOr<ModelState> state = LoadVersion(*latest);
    return IsDamage(state.status()) ? FallBack(*latest, state.status()) : state;
  }
  ModelState state{initial, {}, 0, {}};
  ASSIGN_OR_RETURN(Downlink::Version version, downlink_.Start(initial));
  absl::MutexLock storing(&actions_mutex_);
  VersionRecord record;
  record.actor = options_.actor;
  RETURN_IF_ERROR(StoreVersion(state, std::move(record), std::move(version), {}).status());
  return state;
}

absl::StatusOr<ModelState> FederationCore::LoadMaster(const VersionRecord& record) {
  ModelState state{LoraAdapter(plan_.lora), {}, record.version, record.typical_norm};
  ASSIGN_OR_RETURN(const std::string master, store_->ReadBlob(record.master));
  RETURN_IF_ERROR(CopyFloats(record.master, master, state.adapter.values()));
  if (!record.momentum) return state;
  const absl::StatusOr<std::string> momentum = store_->ReadBlob(*record.momentum);
  if (IsDamage(momentum.status())) {
    RETURN_IF_ERROR(
        Quarantine(*record.momentum,
                   absl::StrCat("state of the outer optimizer at version ", record.version, ": ",
                                momentum.status().message(), "; it starts again at zero")));
    return state;
  }
  RETURN_IF_ERROR(momentum.status());
  const size_t size = plan_.outer.StateSize(state.adapter.values().size());
  // State of another optimizer is of no use to this one.
  if (momentum->size() == size * sizeof(float)) {
    state.momentum.resize(size);
    RETURN_IF_ERROR(CopyFloats(*record.momentum, *momentum, absl::MakeSpan(state.momentum)));
  }
  return state;
}

absl::StatusOr<ModelState> FederationCore::LoadVersion(const VersionRecord& record) {
  ASSIGN_OR_RETURN(ModelState state, LoadMaster(record));
  std::string snapshot;
  if (record.snapshot) {
    ASSIGN_OR_RETURN(snapshot, store_->ReadBlob(*record.snapshot));
  }
  ASSIGN_OR_RETURN(Downlink::Version version,
                   downlink_.Resume(state.adapter, record.version, snapshot));
  ASSIGN_OR_RETURN(const std::vector<Contribution> parts,
                   store_->ListContributions(plan_.run_id, record.version));
  {
    absl::MutexLock storing(&actions_mutex_);
    // An older release kept none, but devices that trust a key load nothing unsigned.
    manifest_ =
        record.manifest.empty() ? ManifestOf(state, record, version, parts) : record.manifest;
    version.manifest = Sign(manifest_, kVersionManifestContext);
  }
  downlink_.Serve(std::move(version));
  RETURN_IF_ERROR(LoadHistory());
  return state;
}

absl::StatusOr<ModelState> FederationCore::FallBack(const VersionRecord& latest,
                                                    const absl::Status& damage) {
  ASSIGN_OR_RETURN(const std::vector<VersionRecord> records, store_->ListVersions(plan_.run_id));
  for (auto record = records.rbegin(); record != records.rend(); ++record) {
    absl::StatusOr<ModelState> state = LoadMaster(*record);
    if (IsDamage(state.status())) continue;
    RETURN_IF_ERROR(state.status());
    // A version is never changed: what devices get from now on has a number of its own.
    state->version = latest.version + 1;
    RETURN_IF_ERROR(Quarantine(latest.master, ""));
    if (latest.snapshot) RETURN_IF_ERROR(Quarantine(*latest.snapshot, ""));
    for (ServerEvents* const events : options_.events) {
      events->OnDamage(absl::StrCat("version ", latest.version, " is damaged (", damage.message(),
                                    "): going back to version ", record->version,
                                    ", published again as version ", state->version,
                                    "; what was found is in the folder 'quarantine'"));
    }
    ASSIGN_OR_RETURN(Downlink::Version version,
                     downlink_.Resume(state->adapter, state->version, ""));
    VersionRecord again;
    again.origin = record->version;
    absl::MutexLock storing(&actions_mutex_);
    manifest_ = latest.manifest;
    RETURN_IF_ERROR(StoreVersion(*state, std::move(again), std::move(version), {}).status());
    return state;
  }
  return damage;  // nothing intact is left
}

absl::Status FederationCore::Quarantine(const Digest& digest, const std::string& what) {
  if (absl::IsDataLoss(store_->ReadBlob(digest).status())) {
    RETURN_IF_ERROR(store_->QuarantineBlob(digest));
  }
  if (what.empty()) return absl::OkStatus();
  for (ServerEvents* const events : options_.events) events->OnDamage(what);
  return absl::OkStatus();
}

absl::Status FederationCore::LoadHistory() {
  ASSIGN_OR_RETURN(const std::vector<VersionRecord> records, store_->ListVersions(plan_.run_id));
  std::vector<std::string> contents;  // newest first
  for (auto record = records.rbegin();
       record != records.rend() && contents.size() < kHistoryVersions; ++record) {
    absl::StatusOr<std::string> bytes = store_->ReadBlob(record->encoded);
    if (absl::IsNotFound(bytes.status())) break;  // no longer kept
    if (absl::IsDataLoss(bytes.status())) {
      RETURN_IF_ERROR(Quarantine(
          record->encoded,
          absl::StrCat("download of version ", record->version, ": ", bytes.status().message(),
                       "; devices that hold an older version get it whole")));
      break;
    }
    if (!bytes.ok()) return bytes.status();
    contents.push_back(*std::move(bytes));
  }
  std::reverse(contents.begin(), contents.end());
  downlink_.AddHistory(contents);
  return absl::OkStatus();
}

absl::StatusOr<std::optional<RoundRecord>> FederationCore::OpenRoundToContinue(
    const ModelState& state, RunState run) {
  ASSIGN_OR_RETURN(std::optional<RoundRecord> open, store_->ContinueRound(plan_.run_id));
  if (!open) return open;
  std::string why;
  if (run == RunState::kStopped) {
    why = "the run was stopped";
  } else if (open->base_version != state.version) {
    why = "server restarted, the version it trained is damaged";
  } else if (open->cohort.empty() && !plan_.pace.is_async) {
    why = "server restarted, it was started by an older release";
  } else {
    return open;
  }
  const RoundAbandoned abandoned{open->round, RoundCounts(), why};
  RETURN_IF_ERROR(store_->AbandonRound(plan_.run_id, abandoned, clock_.Now()));
  for (ServerEvents* const events : options_.events) events->OnAbandoned(abandoned);
  return std::optional<RoundRecord>();
}

absl::Status FederationCore::StartCoordinator(ModelState state) {
  ASSIGN_OR_RETURN(const RunState run, store_->GetRunState(plan_.run_id));
  ASSIGN_OR_RETURN(const std::optional<RoundRecord> open, OpenRoundToContinue(state, run));
  ASSIGN_OR_RETURN(const uint64_t last_round, store_->LastRound(plan_.run_id));
  {
    absl::MutexLock lock(&mutex_);
    coordinator_ = std::make_unique<Coordinator>(
        plan_, std::move(state), open ? open->round : last_round + 1,
        [this](const Digest& digest) { return store_->ReadBlob(digest); });
    if (run == RunState::kStopped) coordinator_->Stop();
    run_clock_.SetPaused(run == RunState::kPaused);
    coordinator_->SetPaused(run == RunState::kPaused);
    flushed_ = clock_.Monotonic();
  }
  RETURN_IF_ERROR(ResumeQuarantine(last_round));
  RETURN_IF_ERROR(ResumePastRounds(open ? open->round : last_round + 1));
  RETURN_IF_ERROR(open ? ContinueRound(*open) : ResumeFolded(last_round + 1));
  ASSIGN_OR_RETURN(const std::vector<VersionRecord> versions, store_->ListVersions(plan_.run_id));
  absl::MutexLock lock(&mutex_);
  for (const VersionRecord& version : versions) {
    if (version.holdout_loss) coordinator_->NoteHoldout(version.version, *version.holdout_loss);
  }
  return absl::OkStatus();
}

// Rounds whose updates may still come: of versions that are not too old, nor from before one that
// was restored in the place of others.
absl::Status FederationCore::ResumePastRounds(uint64_t before_round) {
  ASSIGN_OR_RETURN(const std::vector<VersionRecord> versions, store_->ListVersions(plan_.run_id));
  const uint64_t newest = versions.back().version;
  uint64_t first = newest - std::min<uint64_t>(newest, plan_.pace.max_staleness);
  for (const VersionRecord& version : versions) {
    if (version.round == 0) first = std::max(first, version.version);
  }
  ASSIGN_OR_RETURN(const std::vector<RoundRecord> rounds, store_->ListRounds(plan_.run_id, first));
  absl::MutexLock lock(&mutex_);
  for (const RoundRecord& round : rounds) {
    if (round.round + coordinator_->remembered_rounds() < before_round) continue;
    if (round.round >= before_round) break;
    coordinator_->ResumePastRound(round.round, round.base_version, round.cohort, run_clock_.Now());
    ASSIGN_OR_RETURN(const std::vector<ParticipationRecord> records,
                     store_->ListParticipations(plan_.run_id, round.round));
    for (const ParticipationRecord& record : records) {
      // What counts in the open round is judged anew with it.
      if (record.outcome == Outcome::kAccepted && record.counted >= before_round) continue;
      coordinator_->ResumePastTask(round.round, record.node_id, StateOf(record.outcome),
                                   record.digest, record.reason);
    }
  }
  return absl::OkStatus();
}

// Verdicts of the newest rounds, but not of one that is continued: that judges them anew.
absl::Status FederationCore::ResumeQuarantine(uint64_t last_round) {
  if (plan_.admission.quarantine_after == 0) return absl::OkStatus();
  absl::MutexLock lock(&mutex_);
  const uint64_t first = last_round - std::min(last_round, kVerdictRounds) + 1;
  for (uint64_t round = first; round < coordinator_->round(); ++round) {
    ASSIGN_OR_RETURN(const std::vector<ParticipationRecord> records,
                     store_->ListParticipations(plan_.run_id, round));
    for (const ParticipationRecord& record : records) {
      if (record.outcome != Outcome::kAccepted && record.outcome != Outcome::kRejected) continue;
      coordinator_->ResumeVerdict(record.node_id, round, record.outcome == Outcome::kAccepted);
    }
  }
  return absl::OkStatus();
}

// Requests come after the start: nobody else holds the lock.
absl::Status FederationCore::ContinueRound(const RoundRecord& round) {
  {
    absl::MutexLock lock(&mutex_);
    coordinator_->ResumeRound(round.cohort, run_clock_.Now());
  }
  RETURN_IF_ERROR(ResumeFolded(round.round));
  ASSIGN_OR_RETURN(const std::vector<ParticipationRecord> own,
                   store_->ListParticipations(plan_.run_id, round.round));
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(ResumeVerdicts(own));
  for (ServerEvents* const events : options_.events) {
    events->OnRoundContinued(round, coordinator_->counts());
  }
  coordinator_->FinishResume(run_clock_.Now(), round.closed);
  return FEDGE_FAILPOINT("core.resume.round");
}

absl::Status FederationCore::ResumeFolded(uint64_t round) {
  ASSIGN_OR_RETURN(const std::vector<ParticipationRecord> records,
                   store_->ListFolded(plan_.run_id, round));
  absl::MutexLock lock(&mutex_);
  return ResumeVerdicts(records);
}

absl::Status FederationCore::ResumeVerdicts(absl::Span<const ParticipationRecord> records) {
  for (const ParticipationRecord& record : records) {
    RETURN_IF_ERROR(FEDGE_FAILPOINT("core.resume.update"));
    v1::TaskMetrics metrics;
    if (!record.metrics.empty() && metrics.ParseFromString(record.metrics)) {
      metrics_[{record.round, record.node_id}] = std::move(metrics);
    }
    RETURN_IF_ERROR(ResumeVerdict(record));
  }
  return absl::OkStatus();
}

absl::Status FederationCore::ResumeVerdict(const ParticipationRecord& record) {
  const bool is_folded = record.round < coordinator_->round();
  if (!is_folded && !coordinator_->HasOpenTask(record.node_id, record.round)) {
    return Withdraw(record, absl::DataLossError("its node has no such task"));
  }
  if (record.outcome == Outcome::kLate) return absl::OkStatus();  // the round was closed then
  if (record.outcome == Outcome::kFailed) {
    coordinator_->ResumeFailure(record.node_id, record.reason);
    return absl::OkStatus();
  }
  ReceivedUpdate update{.digest = record.digest,
                        .wire_bytes = record.wire_bytes,
                        .admitted = absl::InvalidArgumentError(record.reason)};
  if (record.outcome == Outcome::kAccepted) {
    const absl::StatusOr<std::string> bytes = store_->ReadBlob(record.digest);
    if (!bytes.ok() && !IsDamage(bytes.status())) return bytes.status();
    // One of a round that is remembered no more was carried on from attempt to attempt.
    const uint64_t base_version =
        coordinator_->BaseVersion(record.round).value_or(coordinator_->version());
    update.admitted =
        bytes.ok() ? AdmitUpdate(plan_, record.round, base_version, *bytes) : bytes.status();
    if (!update.admitted.ok()) return Withdraw(record, update.admitted.status());
  }
  coordinator_->ResumeUpdate(record.node_id, record.round, std::move(update));
  return absl::OkStatus();
}

absl::Status FederationCore::Withdraw(const ParticipationRecord& record,
                                      const absl::Status& damage) {
  RETURN_IF_ERROR(store_->WithdrawParticipation(plan_.run_id, record.round, record.node_id));
  return Quarantine(record.digest,
                    absl::StrCat("update of node '", record.node_id, "' for round ", record.round,
                                 " cannot be used any more: ", damage.message(),
                                 "; if its round is open, the node is asked again"));
}

}  // namespace fedge
