// Federation: the runs. Those that come back with the server, and what operators do to them.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "server/federation.h"
#include "server/log_events.h"
#include "server/sqlite_store.h"

namespace fedge {
namespace {

bool IsOver(RunState state) { return state == RunState::kStopped || state == RunState::kFinished; }

bool IsSha256(absl::string_view text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(),
                                          [](unsigned char c) { return absl::ascii_isxdigit(c); });
}

v1::ServerConfig ConfigOf(const RunEntry& run) {
  v1::ServerConfig config;
  config.ParseFromString(run.record.config);
  return config;
}

absl::Status NoSuchRun(absl::string_view run_id) {
  return absl::NotFoundError(absl::StrCat("run '", run_id, "' does not exist; see fedge run list"));
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

v1::ServerConfig Federation::EffectiveConfig(const v1::ServerConfig& stored) const {
  v1::ServerConfig config = config_;
  config.set_base_model(stored.base_model());
  config.clear_holdout();
  if (stored.has_holdout()) config.set_holdout(stored.holdout());
  *config.mutable_run() = stored.run();
  return config;
}

absl::Status Federation::TakeUpRuns() {
  ASSIGN_OR_RETURN(const std::vector<RunEntry> entries, store_->ListRuns());
  for (const RunEntry& entry : entries) {
    const std::string& id = entry.record.run_id;
    if (FindServed(id) != nullptr) continue;
    Unserved unserved{IsOver(entry.state), ""};
    if (!unserved.over && !entry.record.by_operator) {
      unserved.problem = absl::StrCat(
          "the server's configuration no longer names it; fedge run "
          "resume ",
          id, " takes it up again");
    }
    {
      absl::MutexLock lock(&mutex_);
      unserved_[id] = unserved;
    }
    if (!unserved.over && unserved.problem.empty()) TakeUp(entry);
  }
  // Devices of a base that has no other run are to hear that theirs is over.
  for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
    const bool ended = IsOver(entry->state) && entry->record.by_operator;
    if (ended && RunsOf(entry->record.base_model).empty()) TakeUp(*entry);
  }
  return absl::OkStatus();
}

void Federation::TakeUp(const RunEntry& entry) {
  const std::string& id = entry.record.run_id;
  const v1::ServerConfig stored = ConfigOf(entry);
  absl::Status status;
  absl::StatusOr<RunSetup> setup =
      SetUpRun(EffectiveConfig(stored), models_, options_.threads, *options_.env);
  if (!setup.ok()) {
    status = setup.status();
  } else if (setup->plan.base_model != entry.record.base_model) {
    status = absl::FailedPreconditionError(absl::StrCat(
        stored.base_model(), ": is another model now, with SHA-256 ", setup->plan.base_model.Hex(),
        " instead of ", entry.record.base_model.Hex(), "; put the run's back"));
  } else {
    status = Serve(*std::move(setup), stored, nullptr).status();
  }
  if (status.ok()) return;
  LogWarning("run '", id, "': cannot be taken up: ", status.message());
  absl::MutexLock lock(&mutex_);
  unserved_[id].problem = std::string(status.message());
}

absl::StatusOr<LoraAdapter> Federation::ReadVersion(absl::string_view run, uint64_t version,
                                                    const LoraSpec& shape) {
  ASSIGN_OR_RETURN(const std::vector<VersionRecord> versions, store_->ListVersions(run));
  const auto found =
      std::find_if(versions.begin(), versions.end(),
                   [&](const VersionRecord& record) { return record.version == version; });
  if (found == versions.end()) {
    return absl::NotFoundError(absl::StrCat("run '", run, "' has no version ", version,
                                            "; its newest is ",
                                            versions.empty() ? 0 : versions.back().version));
  }
  const absl::StatusOr<std::string> master = store_->ReadBlob(found->master);
  if (absl::IsNotFound(master.status())) {
    return absl::NotFoundError(absl::StrCat("version ", version, " of run '", run,
                                            "' is no longer kept; take a newer one (the server's "
                                            "keep_versions says how many there are)"));
  }
  RETURN_IF_ERROR(master.status());
  LoraAdapter adapter(shape);
  const size_t bytes = adapter.values().size() * sizeof(float);
  if (master->size() != bytes) {
    return absl::DataLossError(absl::StrCat("version ", version, " of run '", run, "' has ",
                                            master->size(), " bytes, its adapter needs ", bytes));
  }
  std::memcpy(adapter.values().data(), master->data(), bytes);
  return adapter;
}

absl::StatusOr<LoraAdapter> Federation::InitialAdapter(const RunSetup& setup,
                                                       const NewRun* created) {
  ASSIGN_OR_RETURN(const std::optional<VersionRecord> latest,
                   store_->LatestVersion(setup.plan.run_id));
  if (latest) return LoraAdapter(setup.plan.lora);  // not asked for
  if (created != nullptr && created->parent_version) {
    return ReadVersion(created->parent_run, *created->parent_version, setup.plan.lora);
  }
  return MakeVersionZero(setup, options_.threads, *options_.env);
}

absl::StatusOr<FederationCore*> Federation::Serve(RunSetup setup, const v1::ServerConfig& config,
                                                  const NewRun* created) {
  auto run = std::make_unique<Run>();
  run->setup = std::move(setup);
  const std::string& id = run->setup.plan.run_id;
  const bool by_operator = id != configured_id() || created != nullptr;
  run->log = std::make_unique<LogEvents>(id, by_operator, options_.log);
  FederationCoreOptions core_options;
  core_options.clock = options_.clock;
  core_options.events = options_.events;
  core_options.events.insert(core_options.events.begin(), run->log.get());
  if (run->setup.holdout != nullptr) core_options.events.push_back(run->setup.holdout.get());
  core_options.config = config.SerializeAsString();
  core_options.tick_interval = options_.tick_interval;
  core_options.quota = quota_;
  core_options.by_operator = by_operator;
  if (created != nullptr) {
    core_options.parent_run = created->parent_run;
    core_options.parent_version = created->parent_version;
  }
  ASSIGN_OR_RETURN(const LoraAdapter initial, InitialAdapter(run->setup, created));
  RETURN_IF_ERROR(FEDGE_FAILPOINT("federation.run.begins"));
  ASSIGN_OR_RETURN(run->core, FederationCore::Create(run->setup.plan, initial, store_, uploads_,
                                                     std::move(core_options)));
  if (run->setup.holdout != nullptr) run->setup.holdout->Start(*run->core);
  absl::MutexLock lock(&mutex_);
  unserved_.erase(id);
  runs_.push_back(std::move(run));
  return runs_.back()->core.get();
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

absl::StatusOr<std::vector<RunView>> Federation::ListRuns() {
  ASSIGN_OR_RETURN(std::vector<RunEntry> entries, store_->ListRuns());
  std::vector<RunView> views;
  for (RunEntry& entry : entries) {
    RunView& view = views.emplace_back();
    view.core = Find(entry.record.run_id);
    if (view.core != nullptr) entry.state = view.core->state();
    view.entry = std::move(entry);
    absl::MutexLock lock(&mutex_);
    const auto unserved = unserved_.find(view.entry.record.run_id);
    if (unserved != unserved_.end()) view.problem = unserved->second.problem;
  }
  return views;
}

absl::StatusOr<RunView> Federation::FindRun(absl::string_view run_id) {
  ASSIGN_OR_RETURN(std::vector<RunView> views, ListRuns());
  for (RunView& view : views) {
    if (view.entry.record.run_id == run_id) return std::move(view);
  }
  return NoSuchRun(run_id);
}

void Federation::Announce(absl::string_view run_id, absl::string_view kind,
                          absl::string_view text) {
  if (Run* const run = FindServed(run_id)) {
    run->log->Add(MakeEvent(kind, v1::Event::INFO, text));
  }
}

// Of a run that is not served: only what the store says of it changes.
absl::StatusOr<RunView> Federation::ChangeState(absl::string_view run_id, RunState state) {
  absl::MutexLock changing(&changing_);
  ASSIGN_OR_RETURN(const RunView view, FindRun(run_id));
  if (view.core != nullptr) {  // it was taken up meanwhile
    RETURN_IF_ERROR(state == RunState::kStopped ? view.core->Stop() : view.core->SetPaused(true));
    return FindRun(run_id);
  }
  const RunState now = view.entry.state;
  if (now == RunState::kFinished || (now == RunState::kStopped && state == now)) {
    if (state == RunState::kStopped) return view;
  }
  if (IsOver(now)) {
    return absl::FailedPreconditionError(
        absl::StrCat("run '", run_id, "' is ", RunStateName(now), "; clone it to train on"));
  }
  RETURN_IF_ERROR(store_->SetRunState(run_id, state));
  if (state == RunState::kStopped) {
    absl::MutexLock lock(&mutex_);
    unserved_[std::string(run_id)] = {true, ""};
  }
  return FindRun(run_id);
}

absl::StatusOr<RunView> Federation::PauseRun(absl::string_view run_id) {
  FederationCore* const core = Find(run_id);
  if (core == nullptr) return ChangeState(run_id, RunState::kPaused);
  const RunState before = core->state();
  RETURN_IF_ERROR(core->SetPaused(true));
  if (before != RunState::kPaused) Announce(run_id, "paused", "paused by an operator");
  return FindRun(run_id);
}

absl::StatusOr<RunView> Federation::StopRun(absl::string_view run_id) {
  FederationCore* const core = Find(run_id);
  if (core == nullptr) return ChangeState(run_id, RunState::kStopped);
  const RunState before = core->state();
  RETURN_IF_ERROR(core->Stop());
  if (!IsOver(before)) Announce(run_id, "stopped", "stopped by an operator");
  return FindRun(run_id);
}

absl::StatusOr<RunView> Federation::ResumeRun(absl::string_view run_id) {
  FederationCore* core = Find(run_id);
  if (core == nullptr) {
    absl::MutexLock changing(&changing_);
    ASSIGN_OR_RETURN(const RunView view, FindRun(run_id));
    if (IsOver(view.entry.state)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "run '", run_id, "' is ", RunStateName(view.entry.state), "; clone it to train on"));
    }
    if (view.core == nullptr) TakeUp(view.entry);
    core = Find(run_id);
    if (core == nullptr) {
      ASSIGN_OR_RETURN(const RunView after, FindRun(run_id));
      return absl::FailedPreconditionError(
          absl::StrCat("run '", run_id, "' cannot be taken up: ", after.problem));
    }
  }
  const RunState before = core->state();
  RETURN_IF_ERROR(core->SetPaused(false));
  if (before != RunState::kRunning) Announce(run_id, "resumed", "resumed by an operator");
  return FindRun(run_id);
}

}  // namespace fedge
