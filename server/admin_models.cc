#include "server/admin_models.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "server/federation.h"
#include "server/task_plan.h"

namespace fedge {
namespace {

constexpr size_t kPartBytes = size_t{1} << 20;
constexpr uint64_t kMaxAuditRecords = 1000;  // a message's size

absl::StatusOr<FederationCore*> FindCore(const AdminContext& context, const std::string& run_id) {
  FederationCore* const core =
      run_id.empty() ? context.federation->configured() : context.federation->Find(run_id);
  if (core != nullptr) return core;
  return absl::NotFoundError(run_id.empty()
                                 ? "the server's configuration has no run; name one with --run"
                                 : absl::StrCat("run '", run_id, "' is not served"));
}

v1::ModelInfo InfoOf(const VersionRecord& version, uint64_t served) {
  v1::ModelInfo info;
  info.set_version(version.version);
  info.set_round(version.round);
  info.set_created_us(absl::ToUnixMicros(version.created));
  info.set_served(version.version == served);
  if (version.origin) info.set_origin(*version.origin);
  if (version.holdout_loss) info.set_holdout_loss(*version.holdout_loss);
  if (version.metrics.devices > 0) info.set_train_loss(version.metrics.train_loss_last);
  if (version.metrics.validation_tokens > 0) {
    info.set_validation_loss(version.metrics.validation_loss);
  }
  info.set_aggregation_error(version.aggregation_error);
  info.set_updates(static_cast<uint32_t>(version.counts.accepted));
  info.set_update_bytes(version.update_bytes);
  info.set_download_bytes(version.encoded_bytes);
  if (!version.manifest.empty()) {
    info.set_manifest_sha256(Sha256Of(version.manifest).Raw());
    info.mutable_manifest()->ParseFromString(version.manifest);
  }
  info.set_is_signed(!version.signature.empty());
  if (!version.decision.empty()) info.mutable_gate()->ParseFromString(version.decision);
  return info;
}

}  // namespace

absl::StatusOr<v1::ModelListResponse> ModelList(const AdminContext& context,
                                                const v1::ModelRef& request) {
  std::string run_id = request.run_id();  // also of one that is over for long
  if (run_id.empty()) {
    ASSIGN_OR_RETURN(FederationCore* const core, FindCore(context, run_id));
    run_id = core->plan().run_id;
  }
  RETURN_IF_ERROR(context.federation->FindRun(run_id).status());
  ASSIGN_OR_RETURN(const std::vector<VersionRecord> versions,
                   context.federation->store().ListVersions(run_id));
  v1::ModelListResponse response;
  response.set_run_id(run_id);
  for (const VersionRecord& version : versions) {
    *response.add_versions() = InfoOf(version, versions.back().version);
  }
  return response;
}

absl::StatusOr<v1::ModelInfo> ModelShow(const AdminContext& context, const v1::ModelRef& request) {
  ASSIGN_OR_RETURN(FederationCore* const core, FindCore(context, request.run_id()));
  const uint64_t served = core->version();
  ASSIGN_OR_RETURN(const VersionRecord version,
                   core->FindVersion(request.has_version() ? request.version() : served));
  v1::ModelInfo info = InfoOf(version, served);
  ASSIGN_OR_RETURN(const std::vector<Contribution> parts, core->ContributionsOf(version.version));
  for (const Contribution& part : parts) {
    v1::ContributionInfo& to = *info.add_contributions();
    to.set_node_id(part.node_id);
    to.set_update_sha256(part.digest.Raw());
    to.set_weight(part.weight);
    to.set_update_bytes(part.wire_bytes);
  }
  return info;
}

absl::StatusOr<v1::ModelInfo> ModelPromote(const AdminContext& context,
                                           const v1::ModelDecision& request) {
  ASSIGN_OR_RETURN(FederationCore* const core, FindCore(context, request.run_id()));
  RETURN_IF_ERROR(core->Promote(ActorOf(context, request.actor())));
  v1::ModelRef served;
  served.set_run_id(core->plan().run_id);
  return ModelShow(context, served);
}

absl::StatusOr<v1::ModelInfo> ModelRollback(const AdminContext& context,
                                            const v1::ModelDecision& request) {
  ASSIGN_OR_RETURN(FederationCore* const core, FindCore(context, request.run_id()));
  v1::ModelRef made;
  made.set_run_id(core->plan().run_id);
  ASSIGN_OR_RETURN(const uint64_t number,
                   core->Rollback(request.version(), ActorOf(context, request.actor())));
  made.set_version(number);
  return ModelShow(context, made);
}

absl::StatusOr<v1::AuditListResponse> AuditList(const AdminContext& context,
                                                const v1::AuditListRequest& request) {
  const uint64_t limit = request.limit() == 0
                             ? kMaxAuditRecords
                             : std::min<uint64_t>(request.limit(), kMaxAuditRecords);
  ASSIGN_OR_RETURN(const std::vector<AuditRecord> records,
                   context.federation->store().ListAudit(request.after(), limit));
  v1::AuditListResponse response;
  for (const AuditRecord& record : records) {
    v1::AuditRecordProto& to = *response.add_records();
    to.set_number(record.number);
    to.set_when_us(absl::ToUnixMicros(record.entry.when));
    to.set_run_id(record.entry.run_id);
    to.set_actor(record.entry.actor);
    to.set_action(record.entry.action);
    to.set_detail(record.entry.detail);
    to.set_previous(record.previous.Raw());
    to.set_hash(record.hash.Raw());
  }
  return response;
}

absl::Status ModelFetch(const AdminContext& context, const v1::ModelRef& request,
                        absl::FunctionRef<bool(const v1::ModelPart&)> send) {
  ASSIGN_OR_RETURN(FederationCore* const core, FindCore(context, request.run_id()));
  const uint64_t version = request.has_version() ? request.version() : core->version();
  ASSIGN_OR_RETURN(const LoraAdapter adapter, core->HeldAt(version));
  v1::Assignment shape;
  FillAssignment(core->plan(), shape);
  v1::ModelPart part;
  part.mutable_head()->set_run_id(core->plan().run_id);
  part.mutable_head()->set_version(version);
  part.mutable_head()->set_base_model_sha256(core->plan().base_model.Raw());
  *part.mutable_head()->mutable_lora() = shape.lora();
  const absl::string_view bytes(reinterpret_cast<const char*>(adapter.values().data()),
                                adapter.values().size() * sizeof(float));
  for (size_t at = 0; at < bytes.size(); at += kPartBytes) {
    const absl::string_view piece = bytes.substr(at, kPartBytes);
    part.set_values(piece.data(), piece.size());
    if (!send(part)) return absl::OkStatus();
    part.clear_head();
  }
  return absl::OkStatus();
}

}  // namespace fedge
