// Federation: the runs. Those that come back with the server, and what operators do to them.
#include <algorithm>
#include <cstring>
#include <utility>

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

}  // namespace

absl::Status Federation::NoSuchRun(absl::string_view run_id) {
  return absl::NotFoundError(absl::StrCat("run '", run_id, "' does not exist; see fedge run list"));
}

v1::ServerConfig Federation::ConfigOf(const RunEntry& run) {
  v1::ServerConfig config;
  config.ParseFromString(run.record.config);
  return config;
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
  core_options.evaluator = run->setup.holdout.get();
  core_options.signing_key = signing_key_;
  core_options.config = config.SerializeAsString();
  core_options.tick_interval = options_.tick_interval;
  core_options.quota = quota_;
  core_options.by_operator = by_operator;
  if (created != nullptr) {
    core_options.actor = created->actor;
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
absl::StatusOr<RunView> Federation::ChangeState(absl::string_view run_id, RunState state,
                                                absl::string_view actor) {
  absl::MutexLock changing(&changing_);
  ASSIGN_OR_RETURN(const RunView view, FindRun(run_id));
  if (view.core != nullptr) {  // it was taken up meanwhile
    RETURN_IF_ERROR(state == RunState::kStopped ? view.core->Stop(actor)
                                                : view.core->SetPaused(true, actor));
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
  RETURN_IF_ERROR(store_->SetRunState(run_id, state, actor, options_.clock->Now()));
  if (state == RunState::kStopped) {
    absl::MutexLock lock(&mutex_);
    unserved_[std::string(run_id)] = {true, ""};
  }
  return FindRun(run_id);
}

absl::StatusOr<RunView> Federation::PauseRun(absl::string_view run_id, absl::string_view actor) {
  FederationCore* const core = Find(run_id);
  if (core == nullptr) return ChangeState(run_id, RunState::kPaused, actor);
  const RunState before = core->state();
  RETURN_IF_ERROR(core->SetPaused(true, actor));
  if (before != RunState::kPaused) Announce(run_id, "paused", absl::StrCat("paused by ", actor));
  return FindRun(run_id);
}

absl::StatusOr<RunView> Federation::StopRun(absl::string_view run_id, absl::string_view actor) {
  FederationCore* const core = Find(run_id);
  if (core == nullptr) return ChangeState(run_id, RunState::kStopped, actor);
  const RunState before = core->state();
  RETURN_IF_ERROR(core->Stop(actor));
  if (!IsOver(before)) Announce(run_id, "stopped", absl::StrCat("stopped by ", actor));
  return FindRun(run_id);
}

absl::StatusOr<RunView> Federation::ResumeRun(absl::string_view run_id, absl::string_view actor) {
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
  RETURN_IF_ERROR(core->SetPaused(false, actor));
  if (before != RunState::kRunning) Announce(run_id, "resumed", absl::StrCat("resumed by ", actor));
  return FindRun(run_id);
}

}  // namespace fedge
