// FederationCore: candidates become versions, or versions of before again.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "server/federation_core.h"
#include "server/version_manifest.h"

namespace fedge {
namespace {

absl::string_view AsBytes(absl::Span<const float> values) {
  return absl::string_view(reinterpret_cast<const char*>(values.data()),
                           values.size() * sizeof(float));
}

}  // namespace

std::string FederationCore::ManifestOf(const ModelState& state, const VersionRecord& record,
                                       const Downlink::Version& version,
                                       absl::Span<const Contribution> parts) const {
  return MakeManifest({.run_id = plan_.run_id,
                       .version = state.version,
                       .round = record.round,
                       .origin = record.origin,
                       .parent = manifest_,
                       .base_model = plan_.base_model,
                       .layout = plan_.lora.layout_hash(),
                       .values = version.state->ValuesDigest(),
                       .master = Sha256Of(AsBytes(state.adapter.values())),
                       .config = config_digest_,
                       .contributions = parts});
}

v1::SignedManifest FederationCore::Sign(const std::string& manifest,
                                        absl::string_view context) const {
  v1::SignedManifest result;
  if (!options_.signing_key) return result;
  result.set_manifest(manifest);
  result.set_signature(options_.signing_key->Sign(context, manifest));
  result.set_public_key(options_.signing_key->public_key());
  return result;
}

absl::StatusOr<VersionRecord> FederationCore::StoreVersion(const ModelState& state,
                                                           VersionRecord record,
                                                           Downlink::Version version,
                                                           absl::Span<const Contribution> parts) {
  record.version = state.version;
  record.typical_norm = state.typical_norm;
  record.created = clock_.Now();
  record.manifest = ManifestOf(state, record, version, parts);
  version.manifest = Sign(record.manifest, kVersionManifestContext);
  record.signature = version.manifest.signature();
  RETURN_IF_ERROR(FEDGE_FAILPOINT("core.version.encoded"));
  ASSIGN_OR_RETURN(record, store_->PublishVersion(plan_.run_id, std::move(record),
                                                  {.encoded = *version.content,
                                                   .master = AsBytes(state.adapter.values()),
                                                   .momentum = AsBytes(state.momentum),
                                                   .snapshot = version.snapshot},
                                                  parts));
  RETURN_IF_ERROR(FEDGE_FAILPOINT("core.version.stored"));
  manifest_ = record.manifest;
  downlink_.Serve(std::move(version));
  return record;
}

absl::Status FederationCore::HandlePublished(VersionPublished& published) {
  if (published.round == 0) {  // a rollback: nobody has to be asked
    const absl::Status status = Publish(*returning_, nullptr);
    if (status.ok()) returning_.reset();
    return status;
  }
  Candidate candidate;
  {
    absl::MutexLock lock(&mutex_);
    candidate.metrics = Summarize(published.contributions, metrics_);
  }
  ASSIGN_OR_RETURN(candidate.version,
                   downlink_.Next(published.state.adapter, published.state.version));
  if (plan_.gate.enabled) RETURN_IF_ERROR(store_->StartEvaluation(plan_.run_id, published.round));
  RETURN_IF_ERROR(FEDGE_FAILPOINT("core.candidate"));
  candidate.published = std::move(published);
  if (plan_.gate.enabled) return StartGate(std::move(candidate));
  const absl::Status status = Publish(candidate, nullptr);
  if (!status.ok()) published = std::move(candidate.published);  // to be tried again
  return status;
}

absl::Status FederationCore::Publish(const Candidate& candidate, const v1::GateDecision* decision) {
  const VersionPublished& published = candidate.published;
  VersionRecord record;
  record.round = published.round;
  record.counts = published.counts;
  record.aggregation_error = published.aggregation_error;
  record.metrics = candidate.metrics;
  record.origin = candidate.origin;
  record.actor = candidate.actor;
  for (const Contribution& contribution : published.contributions) {
    record.update_bytes += contribution.wire_bytes;
  }
  if (decision != nullptr) {
    record.decision = decision->SerializeAsString();
    record.actor = decision->approved_by();
    const v1::HeldOutLoss& loss = decision->holdout().candidate();
    if (loss.tokens() > 0) {
      record.holdout_loss = loss.nats() / static_cast<double>(loss.tokens());
    }
  }
  const std::shared_ptr<const AdapterState> served = candidate.version.state;
  ASSIGN_OR_RETURN(record, StoreVersion(published.state, std::move(record), candidate.version,
                                        published.contributions));
  {
    absl::MutexLock lock(&mutex_);
    if (record.holdout_loss) coordinator_->NoteHoldout(record.version, *record.holdout_loss);
    coordinator_->ConfirmPublished(record.version, run_clock_.Now());
    ForgetMetrics(published.contributions);
  }
  for (ServerEvents* const events : options_.events) {
    events->OnPublished(record, served->adapter());
    if (!record.holdout_loss) continue;
    events->OnEvaluated(record.version, *record.holdout_loss,
                        static_cast<int64_t>(decision->holdout().candidate().tokens()));
  }
  return absl::OkStatus();
}

absl::Status FederationCore::Refuse(const VersionPublished& published,
                                    const v1::GateDecision& decision) {
  const RefusedRound refused{.round = published.round,
                             .version = published.state.version,
                             .counts = published.counts,
                             .reason = decision.reason(),
                             .decision = decision.SerializeAsString(),
                             .when = clock_.Now()};
  RETURN_IF_ERROR(store_->RefuseRound(plan_.run_id, refused));
  RETURN_IF_ERROR(FEDGE_FAILPOINT("core.refusal.stored"));
  {
    absl::MutexLock lock(&mutex_);
    coordinator_->RejectCandidate(refused.version, run_clock_.Now());
    ForgetMetrics(published.contributions);
  }
  for (ServerEvents* const events : options_.events) events->OnRefused(refused);
  return absl::OkStatus();
}

absl::Status FederationCore::PrepareRollback(uint64_t version, absl::string_view actor,
                                             uint64_t* number) {
  ASSIGN_OR_RETURN(VersionRecord old, FindVersion(version));
  const uint64_t current = downlink_.version();
  if (version == current) {
    return absl::FailedPreconditionError(
        absl::StrCat("version ", version, " is the one that is served"));
  }
  old.momentum.reset();  // the outer optimizer starts anew
  absl::StatusOr<ModelState> state = LoadMaster(old);
  absl::StatusOr<std::string> snapshot = std::string();
  if (old.snapshot) snapshot = store_->ReadBlob(*old.snapshot);
  if (!state.ok() || !snapshot.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("version ", version, " is not kept any more (keep_versions): ",
                     state.ok() ? snapshot.status().message() : state.status().message()));
  }
  *number = state->version = current + 1;
  Candidate candidate;
  candidate.origin = version;
  candidate.actor = std::string(actor);
  ASSIGN_OR_RETURN(candidate.version, downlink_.Return(state->adapter, *number, *snapshot));
  candidate.published.state = *state;
  absl::MutexLock lock(&mutex_);
  if (coordinator_->publishing()) {
    return absl::UnavailableError("a version is just being published; try again");
  }
  returning_ = std::move(candidate);
  coordinator_->Restore(*std::move(state), absl::StrCat("rolled back to version ", version));
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> FederationCore::Rollback(uint64_t version, absl::string_view actor) {
  {
    absl::MutexLock lock(&mutex_);
    RefuseCandidate(absl::StrCat("rolled back to version ", version));
  }
  RETURN_IF_ERROR(ProcessActions());
  uint64_t number = 0;
  {
    absl::MutexLock storing(&actions_mutex_);
    RETURN_IF_ERROR(PrepareRollback(version, actor, &number));
  }
  RETURN_IF_ERROR(ProcessActions());
  return number;
}

absl::Status FederationCore::Promote(absl::string_view actor) {
  {
    absl::MutexLock lock(&mutex_);
    if (gate_ == nullptr || !gate_->Approve(actor)) {
      return absl::FailedPreconditionError(
          absl::StrCat("run '", plan_.run_id, "': no candidate waits for nodes to measure it"));
    }
  }
  return ProcessActions();
}

absl::StatusOr<std::vector<Contribution>> FederationCore::ContributionsOf(uint64_t version) {
  ASSIGN_OR_RETURN(const VersionRecord record, FindVersion(version));
  return store_->ListContributions(plan_.run_id, record.version);
}

absl::StatusOr<VersionRecord> FederationCore::FindVersion(uint64_t version) {
  ASSIGN_OR_RETURN(const std::vector<VersionRecord> records, store_->ListVersions(plan_.run_id));
  if (version < records.size()) return records[version];
  return absl::NotFoundError(absl::StrCat("run '", plan_.run_id, "' has no version ", version,
                                          ", the newest is ", records.size() - 1));
}

absl::StatusOr<LoraAdapter> FederationCore::HeldAt(uint64_t version) {
  ASSIGN_OR_RETURN(const VersionRecord record, FindVersion(version));
  absl::StatusOr<std::string> bytes =
      store_->ReadBlob(record.snapshot ? *record.snapshot : record.encoded);
  if (absl::IsNotFound(bytes.status())) {
    return absl::NotFoundError(
        absl::StrCat("version ", version, " is not kept any more (keep_versions)"));
  }
  RETURN_IF_ERROR(bytes.status());
  const absl::StatusOr<AdapterState> state =
      record.snapshot ? AdapterState::Parse(plan_.lora, plan_.base_model, *bytes)
                      : AdapterState::FromValues(plan_.lora, plan_.base_model, *std::move(bytes));
  RETURN_IF_ERROR(state.status());
  return state->adapter();
}

}  // namespace fedge
