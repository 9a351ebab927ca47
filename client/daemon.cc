#include "client/daemon.h"

#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/activity_log.h"
#include "client/adapter_folder.h"
#include "client/background.h"
#include "client/device_probe.h"
#include "client/farewell.h"
#include "client/hook_command.h"
#include "client/metered_link.h"
#include "client/model_file.h"
#include "client/participant.h"
#include "client/server_key.h"
#include "client/server_link.h"
#include "client/state_lock.h"
#include "client/status_board.h"
#include "client/step_loop.h"
#include "client/supervisor.h"
#include "client/wakeable_clock.h"
#include "common/base/logging.h"
#include "common/base/process_memory.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/base/systemd_notifier.h"
#include "common/base/thread_pool.h"
#include "common/base/work_gate.h"
#include "common/model/chat_template.h"
#include "common/tensor/matmul.h"

namespace fedge {
namespace {

// A pause so long lets the connection go, as the server would; after a shorter one another TLS
// handshake (5 KB) would cost more than what keeping it does.
constexpr absl::Duration kRestPause = absl::Seconds(10);
// Between the end of a run and asking for another one, give or take a half.
constexpr absl::Duration kPauseAfterRun = absl::Minutes(30);

absl::StatusOr<std::vector<Record>> ReadLocalRecords(const std::string& data, const BaseModel& base,
                                                     Env& env) {
  ASSIGN_OR_RETURN(const ChatFormat format,
                   RecognizeChatTemplate(base.tokenizer().chat_template()));
  ASSIGN_OR_RETURN(std::vector<Record> records, ReadRecords(data, format, DatasetLimits(), env));
  if (records.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(data, ": no records; --data takes a JSONL or text file, or a folder of them"));
  }
  return records;
}

// Refusing to start beats failing after hours of training; what a killed process was writing goes.
absl::Status PrepareFolder(const std::string& dir, Env& env) {
  RETURN_IF_ERROR(env.CreateDirs(dir));
  for (const std::string& folder : {dir, JoinPath(dir, "nodes")}) {
    const absl::StatusOr<std::vector<std::string>> entries = env.ListDir(folder);
    if (!entries.ok()) continue;
    for (const std::string& entry : *entries) {
      if (absl::StrContains(entry, ".tmp-")) env.Remove(JoinPath(folder, entry)).IgnoreError();
    }
  }
  const std::string probe = JoinPath(dir, ".fedge-write-check");
  RETURN_IF_ERROR(env.WriteFileAtomic(probe, ""));
  return env.Remove(probe);
}

// One daemon: its parts, and what they tell each other.
class Daemon {
 public:
  Daemon(const ClientSettings& settings, const DaemonOptions& options, Env& env)
      : notifier_(SystemdNotifier::FromEnvironment()),
        settings_(settings),
        options_(options),
        env_(env),
        board_(&clock_),
        probe_("", settings.state_dir, &clock_),
        traffic_(JoinPath(settings.state_dir, "traffic"), &env, &clock_),
        hook_(settings.on_new_adapter) {}

  absl::Status Run();

 private:
  absl::Status Start();
  absl::StatusOr<ServerLink> OpenLink();
  absl::Status LoadModelAndData();
  absl::StatusOr<ModelFile> FetchModel();
  std::unique_ptr<Participant> MakeParticipant(int threads);
  // Until the run is over, and then the next ones, if the owner wants that.
  absl::Status WorkForRuns();
  absl::Status TakePart(bool* finished);
  void Describe(v1::DeviceReport& device);
  void OnOutcome(const absl::StatusOr<StepOutcome>& outcome, absl::Duration pause);
  void SaveTraffic();
  void KeepAdapter(const absl::Status& kept);
  absl::Status Leave();

  const SystemdNotifier notifier_;  // before any thread: it changes the environment
  const ClientSettings settings_;
  const DaemonOptions options_;
  Env& env_;
  WakeableClock clock_;
  WorkGate gate_;
  StatusBoard board_;
  LinuxProbe probe_;
  DailyTraffic traffic_;
  HookCommand hook_;
  ServerLink server_;
  std::unique_ptr<MeteredLink> link_;
  std::unique_ptr<Supervisor> supervisor_;
  std::shared_ptr<const BaseModel> base_;
  std::string base_name_;
  std::vector<Record> records_;
  std::unique_ptr<AdapterFolder> adapters_;
  std::unique_ptr<DirectoryStateStore> state_, held_, outbox_, checkpoints_, keys_;
  std::unique_ptr<ServerKey> server_key_;
  std::unique_ptr<ActivityLog> activity_;
};

absl::Status Daemon::Run() {
  RunInBackground();
  RETURN_IF_ERROR(PrepareFolder(settings_.state_dir, env_));
  ASSIGN_OR_RETURN(const StateLock lock, StateLock::Take(settings_.state_dir));
  if (env_.Exists(JoinPath(settings_.state_dir, "left"))) {
    return absl::FailedPreconditionError(
        absl::StrCat(settings_.state_dir, ": this device has left the run; remove ",
                     JoinPath(settings_.state_dir, "left"), " to take part again"));
  }
  RETURN_IF_ERROR(Start());
  absl::Status status = WorkForRuns();
  if (supervisor_->stopping()) status = absl::OkStatus();
  SaveTraffic();
  if (supervisor_->leaving()) status = Leave();
  if (status.ok()) LogInfo("stopped");
  return status;
}

absl::StatusOr<ServerLink> Daemon::OpenLink() {
  ServerLinkOptions options;
  options.server = settings_.server;
  options.state_dir = settings_.state_dir;
  options.node_id = settings_.node_id;
  options.insecure = settings_.insecure;
  return OpenServerLink(options, env_, clock_);
}

absl::Status Daemon::Start() {
  ASSIGN_OR_RETURN(server_, OpenLink());
  board_.Update([&](v1::ClientStatus& status) {
    status.set_state("starting");
    status.set_node_id(server_.node_id);
    status.set_server(server_.server);
  });
  link_ = std::make_unique<MeteredLink>(server_.link.get(), &traffic_);
  Supervisor::Parts parts;
  parts.policy = settings_.policy;
  parts.probe = &probe_;
  parts.traffic = &traffic_;
  parts.clock = &clock_;
  parts.gate = &gate_;
  parts.board = &board_;
  parts.state_dir = settings_.state_dir;
  parts.notifier = notifier_;
  parts.on_stop = [this] { link_->Interrupt(); };
  ASSIGN_OR_RETURN(supervisor_, Supervisor::Start(std::move(parts)));
  activity_ = std::make_unique<ActivityLog>(&board_, [this] { return supervisor_->Joules(); });
  return absl::OkStatus();
}

absl::StatusOr<ModelFile> Daemon::FetchModel() {
  ModelFetchOptions options;
  options.folder = JoinPath(settings_.state_dir, "models");
  options.url = settings_.model_url;
  options.node_id = server_.node_id;
  options.seed = StableHash(server_.node_id);
  options.stopping = [this] { return supervisor_->stopping(); };
  options.await_permission = [this] {
    if (!supervisor_->AwaitPermission()) return false;
    board_.SetState("fetching the base model", "");
    return true;
  };
  options.on_wait = [this](const absl::Status& why, absl::Duration pause) {
    LogWarning(why.message(), "; again in ",
               absl::FormatDuration(absl::Trunc(pause, absl::Seconds(1))));
    board_.SetState("waiting", why.message());
    link_->Rest();
  };
  return FetchModelFile(options, *link_, clock_, env_);
}

absl::Status Daemon::LoadModelAndData() {
  ASSIGN_OR_RETURN(const ModelFile model,
                   settings_.model.empty() ? FetchModel() : OpenModelFile(settings_.model, env_));
  base_ = model.base;
  base_name_ = std::string(BaseName(model.path));
  ASSIGN_OR_RETURN(records_, ReadLocalRecords(settings_.data, *base_, env_));
  LogInfo("node \"", server_.node_id, "\": ", records_.size(), " local records, base model ",
          base_->sha256().Hex().substr(0, 12), ", server ", server_.server);
  board_.Update(
      [&](v1::ClientStatus& status) { status.set_base_model_sha256(base_->sha256().Hex()); });
  return absl::OkStatus();
}

std::unique_ptr<Participant> Daemon::MakeParticipant(int threads) {
  ParticipantOptions options;
  options.node_id = server_.node_id;
  options.seed = StableHash(server_.node_id);
  options.memory_limit_bytes = settings_.memory_limit_bytes;
  options.threads = threads;
  options.checkpoint_interval = settings_.checkpoint_interval;
  options.device.set_client_version(FEDGE_VERSION);
  options.device.set_simd_target(SimdTargetName());
  options.device.set_threads(static_cast<uint32_t>(threads));
  options.device.set_memory_bytes(static_cast<uint64_t>(settings_.memory_limit_bytes));
  const std::string nodes = JoinPath(settings_.state_dir, "nodes");
  state_ = std::make_unique<DirectoryStateStore>(nodes, &env_);
  held_ = std::make_unique<DirectoryStateStore>(nodes, &env_, ".adapter");
  outbox_ = std::make_unique<DirectoryStateStore>(nodes, &env_, ".outbox");
  keys_ = std::make_unique<DirectoryStateStore>(KeptServerKeys(settings_.state_dir, &env_));
  server_key_ = std::make_unique<ServerKey>(server_.node_id, settings_.server_key, keys_.get());
  checkpoints_ = std::make_unique<DirectoryStateStore>(nodes, &env_, ".training");
  adapters_ = std::make_unique<AdapterFolder>(
      settings_.adapters_dir, base_, base_name_, &env_,
      [this] { hook_.Run(settings_.adapters_dir, adapters_->choice()); });
  ParticipantParts parts;
  parts.base = base_;
  parts.records = std::move(records_);
  parts.link = link_.get();
  parts.state = state_.get();
  parts.adapters = held_.get();
  parts.outbox = outbox_.get();
  parts.server_key = server_key_.get();
  parts.checkpoints = checkpoints_.get();
  parts.clock = &clock_;
  parts.stopping = [this] {
    supervisor_->NoteLife();
    return supervisor_->stopping();
  };
  parts.hold_transfers = [this] { return supervisor_->HoldTransfers(); };
  parts.held_time = [this] { return gate_.held_time(); };
  parts.describe_device = [this](v1::DeviceReport& device) { Describe(device); };
  parts.on_task = [this](const v1::Assignment& task) {
    activity_->OnTask(task);
    supervisor_->SetTraining(true);
  };
  parts.on_step = [this](const TrainProgress& progress) { activity_->OnStep(progress); };
  parts.on_global = [this](const LoraAdapter& adapter, uint64_t version) {
    KeepAdapter(adapters_->PutGlobal(adapter, activity_->run_id(), version));
  };
  parts.on_trained = [this](const LoraAdapter&, const LoraAdapter& personal,
                            const LocalLosses& losses) {
    KeepAdapter(adapters_->PutTrained(personal, losses));
  };
  return std::make_unique<Participant>(std::move(options), std::move(parts));
}

absl::Status Daemon::WorkForRuns() {
  Rng jitter = Rng::Stream(StableHash(server_.node_id), "run-jitter");
  for (;;) {
    RETURN_IF_ERROR(LoadModelAndData());
    bool finished = false;
    RETURN_IF_ERROR(TakePart(&finished));
    if (!finished || !settings_.stay || options_.once) return absl::OkStatus();
    const absl::Duration pause = kPauseAfterRun * (0.5 + jitter.Uniform());
    board_.NoteNextCheckIn(pause);
    board_.SetState("waiting", "the run is finished; for the server's next one");
    link_->Rest();
    clock_.Sleep(pause);
  }
}

absl::Status Daemon::TakePart(bool* finished) {
  ThreadPool pool(settings_.threads > 0 ? settings_.threads : ThreadPool::AvailableProcessors());
  pool.set_gate(&gate_);
  Transformer transformer(base_, &pool);
  const std::unique_ptr<Participant> participant = MakeParticipant(pool.threads());
  StepLoopOptions loop;
  loop.patience = options_.patience;
  loop.once = options_.once;
  loop.seed = StableHash(server_.node_id);
  loop.stopping = [this] { return supervisor_->stopping(); };
  loop.await_permission = [this] {
    if (!supervisor_->AwaitPermission()) return false;
    board_.SetState("asking", "");
    return true;
  };
  loop.on_outcome = [this](const absl::StatusOr<StepOutcome>& outcome, absl::Duration pause) {
    OnOutcome(outcome, pause);
  };
  RETURN_IF_ERROR(RunSteps(loop, *participant, transformer, clock_, finished));
  if (!*finished) return absl::OkStatus();
  ASSIGN_OR_RETURN(const LoraAdapter adapter, participant->FetchFinalAdapter());
  const absl::Status kept =
      adapters_->PutGlobal(adapter, participant->finished_run(), participant->finished_version());
  KeepAdapter(kept);
  RETURN_IF_ERROR(kept);
  LogInfo("final adapter: ", JoinPath(settings_.adapters_dir, "current/adapter.gguf"), " and ",
          JoinPath(settings_.adapters_dir, "current/peft"));
  return absl::OkStatus();
}

void Daemon::Describe(v1::DeviceReport& device) {
  device.set_peak_memory_bytes(static_cast<uint64_t>(PeakResidentBytes()));
  device.set_joules_per_token(activity_->joules_per_token());
  device.set_bytes_today(traffic_.today());
}

void Daemon::OnOutcome(const absl::StatusOr<StepOutcome>& outcome, absl::Duration pause) {
  supervisor_->SetTraining(false);
  const uint64_t waiting = env_.FileSize(outbox_->Path(server_.node_id)).value_or(0);
  board_.Update([&](v1::ClientStatus& status) { status.set_outbox_bytes(waiting); });
  activity_->OnOutcome(outcome, pause);
  if (outcome.ok() && outcome->kind != StepKind::kWaiting) SaveTraffic();
  hook_.Look();
  if (pause >= kRestPause) link_->Rest();
}

void Daemon::SaveTraffic() {
  const absl::Status saved = traffic_.Save();
  if (!saved.ok()) LogWarning(saved.message());
}

void Daemon::KeepAdapter(const absl::Status& kept) {
  if (!kept.ok()) LogWarning("the adapter's files are not up to date: ", kept.message());
  board_.Update([&](v1::ClientStatus& status) { *status.mutable_adapter() = adapters_->choice(); });
}

absl::Status Daemon::Leave() {
  if (outbox_ != nullptr) {
    // Another link: the first one was interrupted.
    ASSIGN_OR_RETURN(const ServerLink server, OpenLink());
    for (const std::string& line :
         SayFarewell(server_.node_id, *outbox_, *checkpoints_, *server.link, clock_)) {
      LogInfo(line);
    }
  }
  const std::string mark = JoinPath(settings_.state_dir, "left");
  RETURN_IF_ERROR(env_.WriteFileAtomic(mark, "left by command\n"));
  for (const char* const part : {"nodes", "models", "identity", "traffic", "paused"}) {
    const absl::Status removed = env_.Remove(JoinPath(settings_.state_dir, part));
    if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
  }
  LogInfo("left: nothing of the run is kept here but the adapters in ", settings_.adapters_dir);
  return absl::OkStatus();
}

}  // namespace

absl::Status RunDaemon(const ClientSettings& settings, const DaemonOptions& options, Env& env) {
  return Daemon(settings, options, env).Run();
}

}  // namespace fedge
