#include "server/admin_runs.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "common/base/status.h"
#include "server/federation.h"

namespace fedge {
namespace {

v1::RunState ToProto(RunState state) {
  switch (state) {
    case RunState::kRunning:
      return v1::RUN_RUNNING;
    case RunState::kPaused:
      return v1::RUN_PAUSED;
    case RunState::kStopped:
      return v1::RUN_STOPPED;
    case RunState::kFinished:
      return v1::RUN_FINISHED;
  }
  FEDGE_CHECK(false, "run state ", static_cast<int>(state));
}

void Fill(const RoundCounts& from, v1::RoundCountsProto& to) {
  to.set_assigned(static_cast<uint32_t>(from.assigned));
  to.set_pending(static_cast<uint32_t>(from.pending));
  to.set_accepted(static_cast<uint32_t>(from.accepted));
  to.set_rejected(static_cast<uint32_t>(from.rejected));
  to.set_dropped(static_cast<uint32_t>(from.dropped));
  to.set_late(static_cast<uint32_t>(from.late));
}

void Fill(const VersionRecord& from, v1::VersionInfo& to) {
  to.set_version(from.version);
  to.set_round(from.round);
  to.set_created_us(absl::ToUnixMicros(from.created));
  Fill(from.counts, *to.mutable_counts());
  to.set_update_bytes(from.update_bytes);
  to.set_download_bytes(from.encoded_bytes);
  to.set_aggregation_error(from.aggregation_error);
  if (from.metrics.devices > 0) to.set_train_loss(from.metrics.train_loss_last);
  if (from.metrics.validation_tokens > 0) to.set_validation_loss(from.metrics.validation_loss);
  if (from.holdout_loss) to.set_holdout_loss(*from.holdout_loss);
}

absl::StatusOr<v1::RunInfo> InfoOf(const AdminContext& context, const RunView& run) {
  const RunRecord& record = run.entry.record;
  const v1::RunFile file = Federation::FileOf(run.entry);
  v1::RunInfo info;
  info.set_run_id(record.run_id);
  info.set_state(ToProto(run.entry.state));
  info.set_problem(run.problem);
  info.set_base_model_sha256(record.base_model.Raw());
  info.set_base_model(file.base_model());
  info.set_created_us(absl::ToUnixMicros(record.created));
  info.set_rounds(file.run().has_rounds() ? file.run().rounds()
                                          : static_cast<uint64_t>(RunPlan().rounds));
  info.set_parent_run(record.parent_run);
  if (record.parent_version) info.set_parent_version(*record.parent_version);
  ASSIGN_OR_RETURN(const std::optional<VersionRecord> newest,
                   context.federation->store().LatestVersion(record.run_id));
  if (newest) {
    info.set_version(newest->version);
    Fill(*newest, *info.mutable_newest());
  }
  if (run.core == nullptr) return info;
  info.set_rounds(static_cast<uint64_t>(run.core->plan().rounds));
  const FederationCore::Progress progress = run.core->progress();
  const bool over = info.state() == v1::RUN_STOPPED || info.state() == v1::RUN_FINISHED;
  if (!over) info.set_round(progress.round);
  info.set_collecting(progress.collecting);
  Fill(progress.counts, *info.mutable_counts());
  info.set_known_nodes(progress.known_nodes);
  return info;
}

absl::StatusOr<v1::RunInfo> InfoOf(const AdminContext& context,
                                   const absl::StatusOr<RunView>& run) {
  RETURN_IF_ERROR(run.status());
  return InfoOf(context, *run);
}

absl::StatusOr<v1::RunCreateResponse> Create(const AdminContext& context, const NewRun& run) {
  ASSIGN_OR_RETURN(const Federation::Created created, context.federation->CreateRun(run));
  v1::RunCreateResponse response;
  ASSIGN_OR_RETURN(*response.mutable_run(), InfoOf(context, created.run));
  response.set_existed(created.existed);
  return response;
}

}  // namespace

absl::StatusOr<v1::RunCreateResponse> RunCreate(const AdminContext& context,
                                                const v1::RunCreateRequest& request) {
  NewRun run;
  run.file = request.file();
  run.validate_only = request.validate_only();
  run.actor = ActorOf(context, request.actor());
  return Create(context, run);
}

absl::StatusOr<v1::RunCreateResponse> RunClone(const AdminContext& context,
                                               const v1::RunCloneRequest& request) {
  if (request.parent_run().empty()) {
    return absl::InvalidArgumentError("parent_run: is required: the run to clone");
  }
  NewRun run;
  run.file = request.file();
  run.parent_run = request.parent_run();
  if (request.has_parent_version()) run.parent_version = request.parent_version();
  run.validate_only = request.validate_only();
  run.actor = ActorOf(context, request.actor());
  return Create(context, run);
}

absl::StatusOr<v1::RunListResponse> RunList(const AdminContext& context,
                                            const v1::RunListRequest&) {
  ASSIGN_OR_RETURN(const std::vector<RunView> runs, context.federation->ListRuns());
  v1::RunListResponse response;
  for (const RunView& run : runs) {
    ASSIGN_OR_RETURN(*response.add_runs(), InfoOf(context, run));
  }
  return response;
}

absl::StatusOr<v1::RunShowResponse> RunShow(const AdminContext& context,
                                            const v1::RunShowRequest& request) {
  ASSIGN_OR_RETURN(const RunView run, context.federation->FindRun(request.run_id()));
  v1::RunShowResponse response;
  ASSIGN_OR_RETURN(*response.mutable_run(), InfoOf(context, run));
  *response.mutable_file() = Federation::FileOf(run.entry);
  if (request.newest_versions() == 0) return response;
  ASSIGN_OR_RETURN(const std::vector<VersionRecord> versions,
                   context.federation->store().ListVersions(request.run_id()));
  const size_t count = std::min<size_t>(request.newest_versions(), versions.size());
  for (size_t i = versions.size() - count; i < versions.size(); ++i) {
    Fill(versions[i], *response.add_versions());
  }
  return response;
}

absl::StatusOr<v1::RunInfo> RunPause(const AdminContext& context, const v1::RunRef& request) {
  return InfoOf(context,
                context.federation->PauseRun(request.run_id(), ActorOf(context, request.actor())));
}

absl::StatusOr<v1::RunInfo> RunResume(const AdminContext& context, const v1::RunRef& request) {
  return InfoOf(context,
                context.federation->ResumeRun(request.run_id(), ActorOf(context, request.actor())));
}

absl::StatusOr<v1::RunInfo> RunStop(const AdminContext& context, const v1::RunRef& request) {
  return InfoOf(context,
                context.federation->StopRun(request.run_id(), ActorOf(context, request.actor())));
}

absl::StatusOr<v1::RunInfo> RunNow(const AdminContext& context, const v1::RunRef& request) {
  return InfoOf(context, context.federation->FindRun(request.run_id()));
}

}  // namespace fedge
