// Federation: from what an operator wrote to a run.
#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "server/federation.h"
#include "server/sqlite_store.h"

namespace fedge {
namespace {

bool IsSha256(absl::string_view text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(),
                                          [](unsigned char c) { return absl::ascii_isxdigit(c); });
}

// What the server decides for all runs is not a run's to set.
absl::Status CheckServersOwn(const v1::AdmissionConfig& admission) {
  if (admission.has_max_requests_per_minute() || admission.has_max_upload_bytes_per_day() ||
      admission.has_max_open_streams()) {
    return absl::InvalidArgumentError(
        "run.admission: a node's quota (max_requests_per_minute, max_upload_bytes_per_day, "
        "max_open_streams) holds for all runs; set it in the server's configuration");
  }
  return absl::OkStatus();
}

}  // namespace

v1::RunFile Federation::FileOf(const RunEntry& run) {
  const v1::ServerConfig config = ConfigOf(run);
  v1::RunFile file;
  file.set_base_model(config.base_model());
  if (config.has_holdout()) file.set_holdout(config.holdout());
  *file.mutable_run() = config.run();
  file.mutable_run()->set_id(run.record.run_id);
  if (file.run().has_admission()) {  // the server's own
    v1::AdmissionConfig& admission = *file.mutable_run()->mutable_admission();
    admission.clear_max_requests_per_minute();
    admission.clear_max_upload_bytes_per_day();
    admission.clear_max_open_streams();
  }
  return file;
}

absl::StatusOr<std::string> Federation::ResolvePath(const std::string& path,
                                                    absl::Span<const RunEntry> known) const {
  if (path == config_.holdout()) return path;
  for (const RunEntry& run : known) {
    const v1::ServerConfig config = ConfigOf(run);
    if (path == config.base_model() || path == config.holdout()) return path;
  }
  return models_.PathOf(path);
}

absl::StatusOr<std::string> Federation::ResolveBase(const std::string& name,
                                                    absl::Span<const RunEntry> known) const {
  if (name.empty() && !config_.base_model().empty()) return config_.base_model();
  if (name.empty()) {
    return absl::InvalidArgumentError(
        "base_model: is required: a file in the server's model_dir, or the SHA-256 of a base it "
        "knows");
  }
  if (!IsSha256(name)) {
    absl::StatusOr<std::string> path = ResolvePath(name, known);
    if (!path.ok()) return Annotate(path.status(), "base_model");
    return path;
  }
  const std::string digest = absl::AsciiStrToLower(name);
  for (const RunEntry& run : known) {
    if (run.record.base_model.Hex() == digest) return ConfigOf(run).base_model();
  }
  return absl::NotFoundError(absl::StrCat("base_model: no run of this server trains ", digest,
                                          "; name a file in its model_dir"));
}

absl::StatusOr<v1::ServerConfig> Federation::StoredConfig(const NewRun& run) {
  const v1::RunFile& file = run.file;
  if (!file.run().has_id()) {
    return absl::InvalidArgumentError(
        "run.id: is required: a name of letters, digits, '.', '_' and '-' for the run");
  }
  RETURN_IF_ERROR(CheckServersOwn(file.run().admission()));
  ASSIGN_OR_RETURN(const std::vector<RunEntry> known, store_->ListRuns());
  v1::ServerConfig config;
  ASSIGN_OR_RETURN(*config.mutable_base_model(), ResolveBase(file.base_model(), known));
  std::string holdout = file.holdout();
  // The server's own look goes with its base.
  if (!file.has_holdout() && config.base_model() == config_.base_model()) {
    holdout = config_.holdout();
  }
  if (!holdout.empty()) {
    absl::StatusOr<std::string> path = ResolvePath(holdout, known);
    if (!path.ok()) return Annotate(path.status(), "holdout");
    config.set_holdout(*std::move(path));
  }
  *config.mutable_run() = file.run();
  return config;
}

absl::Status Federation::CheckParent(const NewRun& run, const RunPlan& plan) {
  if (run.parent_run.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<RunEntry> known, store_->ListRuns());
  const auto parent = std::find_if(known.begin(), known.end(), [&](const RunEntry& entry) {
    return entry.record.run_id == run.parent_run;
  });
  if (parent == known.end()) return NoSuchRun(run.parent_run);
  if (!run.parent_version) return absl::OkStatus();
  if (parent->record.base_model != plan.base_model ||
      parent->record.layout != plan.lora.layout_hash()) {
    return absl::FailedPreconditionError(
        absl::StrCat("run.lora: version ", *run.parent_version, " of run '", run.parent_run,
                     "' is an adapter of another shape or base model; keep run.lora and base_model "
                     "as they were, or begin with a new version 0"));
  }
  return ReadVersion(run.parent_run, *run.parent_version, plan.lora).status();
}

absl::StatusOr<Federation::Created> Federation::CreateRun(const NewRun& run) {
  absl::MutexLock changing(&changing_);
  ASSIGN_OR_RETURN(const v1::ServerConfig stored, StoredConfig(run));
  const std::string& id = stored.run().id();
  const std::string config = stored.SerializeAsString();
  const absl::StatusOr<RunView> existing = FindRun(id);
  if (existing.ok()) {
    const RunRecord& record = existing->entry.record;
    if (record.config == config && record.parent_run == run.parent_run &&
        record.parent_version == run.parent_version) {
      return Created{*existing, true};
    }
    return absl::AlreadyExistsError(
        absl::StrCat("run.id: run '", id,
                     "' exists already, with another configuration; take "
                     "another id"));
  }
  if (!absl::IsNotFound(existing.status())) return existing.status();
  ASSIGN_OR_RETURN(RunSetup setup,
                   SetUpRun(EffectiveConfig(stored), models_, options_.threads, *options_.env));
  if (IsSha256(run.file.base_model()) &&
      absl::AsciiStrToLower(run.file.base_model()) != setup.plan.base_model.Hex()) {
    return absl::NotFoundError(absl::StrCat("base_model: ", stored.base_model(),
                                            " is another model now, with SHA-256 ",
                                            setup.plan.base_model.Hex()));
  }
  RETURN_IF_ERROR(CheckParent(run, setup.plan));
  if (run.validate_only) {
    RunView view;
    view.entry.record = {.run_id = id,
                         .base_model = setup.plan.base_model,
                         .layout = setup.plan.lora.layout_hash(),
                         .seed = setup.plan.seed,
                         .config = config,
                         .created = options_.clock->Now(),
                         .by_operator = true,
                         .parent_run = run.parent_run,
                         .parent_version = run.parent_version};
    return Created{std::move(view), false};
  }
  RETURN_IF_ERROR(Serve(std::move(setup), stored, &run).status());
  RETURN_IF_ERROR(FEDGE_FAILPOINT("federation.run.stored"));
  Announce(
      id, "created",
      run.parent_run.empty() ? "created" : absl::StrCat("cloned from run '", run.parent_run, "'"));
  ASSIGN_OR_RETURN(RunView view, FindRun(id));
  return Created{std::move(view), false};
}

}  // namespace fedge
