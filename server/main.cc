// fedge-server: coordinates runs. Parses flags, loads the configuration, wires the parts.
#include <pthread.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <ctime>
#include <iostream>
#include <optional>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "common/base/env.h"
#include "common/base/failpoint.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "common/base/systemd_notifier.h"
#include "common/base/thread_pool.h"
#include "common/config/config_file.h"
#include "fedge/v1/config.pb.h"
#include "server/allocator.h"
#include "server/federation_server.h"
#include "server/grpc_probe.h"

namespace fedge {
namespace {

// Beyond those of common/base/status.h: the disk failed under a running server. Nothing that was
// acknowledged is lost; started again, it goes on.
constexpr int kStoreFailed = 7;
constexpr absl::Duration kShutdownGrace = absl::Seconds(2);
// With --exit-when-finished: how long devices get to hear of the end, and then to fetch the
// adapter.
constexpr absl::Duration kFarewell = absl::Seconds(60);
constexpr absl::Duration kLastDownloads = absl::Seconds(3);

struct Flags {
  std::string config;
  std::optional<std::string> listen, base_model, state_dir, holdout, run_id;
  std::optional<uint32_t> rounds, nodes_per_round, min_nodes;
  std::optional<uint64_t> seed;
  std::string log_level = "info";
  std::string probe;
  std::string join_token_file;
  bool insecure = false;
  bool check = false;
  bool help_config = false;
  bool exit_when_finished = false;
};

void AddFlags(CLI::App& app, Flags& flags) {
  app.add_option("--config", flags.config, "Configuration (YAML or JSON); flags override it")
      ->type_name("FILE");
  app.add_option("--listen", flags.listen, "Address of the service, port 0 picks one")
      ->type_name("HOST:PORT");
  app.add_option("--base-model", flags.base_model, "Base model (GGUF)")->type_name("FILE");
  app.add_option("--state-dir", flags.state_dir, "Database, blobs, open uploads")->type_name("DIR");
  app.add_option("--holdout", flags.holdout, "Held-out text to measure each version on")
      ->type_name("PATH");
  app.add_option("--run-id", flags.run_id, "Name of the run");
  app.add_option("--rounds", flags.rounds, "Rounds to publish");
  app.add_option("--nodes-per-round", flags.nodes_per_round, "Cohort size");
  app.add_option("--min-nodes", flags.min_nodes, "Nodes to wait for before the first round");
  app.add_option("--seed", flags.seed, "Seed of the run");
  app.add_option("--log-level", flags.log_level, "debug, info, warning or error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}));
  app.add_option("--probe", flags.probe,
                 "Ask a running server for its health and exit; with certificates, at the "
                 "port where devices join")
      ->type_name("HOST:PORT");
  app.add_option("--join-token-file", flags.join_token_file,
                 "Write a token there with which up to 1000 devices may join within a day: for "
                 "demonstrations and provisioning")
      ->type_name("FILE");
  app.add_flag("--insecure", flags.insecure,
               "Plaintext without certificates; on a loopback address only");
  app.add_flag("--check", flags.check, "Check the configuration and exit");
  app.add_flag("--help-config", flags.help_config, "Print the documented configuration and exit");
  app.add_flag("--exit-when-finished", flags.exit_when_finished,
               "Exit with 0 after the last round instead of serving its result");
  app.footer(
      "Example:\n"
      "  fedge-server --base-model base.gguf --rounds 5 --nodes-per-round 3 --listen 0.0.0.0:9480");
}

absl::StatusOr<v1::ServerConfig> MakeConfig(const Flags& flags, ConfigPlaces& places) {
  v1::ServerConfig config;
  if (!flags.config.empty()) {
    RETURN_IF_ERROR(LoadConfigFile(flags.config, *Env::Posix(), config, &places));
  }
  const auto take = [&](const char* path, const auto& flag, auto set) {
    if (!flag) return;
    set(*flag);
    places.Override(path);
  };
  if (flags.insecure) config.set_insecure(true);
  v1::RunConfig& run = *config.mutable_run();
  take("listen", flags.listen, [&](const auto& value) { config.set_listen(value); });
  take("base_model", flags.base_model, [&](const auto& value) { config.set_base_model(value); });
  take("state_dir", flags.state_dir, [&](const auto& value) { config.set_state_dir(value); });
  take("holdout", flags.holdout, [&](const auto& value) { config.set_holdout(value); });
  take("run.id", flags.run_id, [&](const auto& value) { run.set_id(value); });
  take("run.rounds", flags.rounds, [&](auto value) { run.set_rounds(value); });
  take("run.nodes_per_round", flags.nodes_per_round,
       [&](auto value) { run.set_nodes_per_round(value); });
  take("run.min_nodes", flags.min_nodes, [&](auto value) { run.set_min_nodes(value); });
  take("run.seed", flags.seed, [&](auto value) { run.set_seed(value); });
  return config;
}

LogLevel LevelOf(const std::string& name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "warning") return LogLevel::kWarning;
  return name == "error" ? LogLevel::kError : LogLevel::kInfo;
}

// Every connection takes two, and how many may be open follows from them (grpc_gate.h). The usual
// 1024 are for programs that use select().
void RaiseDescriptorLimit() {
  constexpr rlim_t kEnough = 65'536;
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= kEnough) return;
  limit.rlim_cur = std::min(kEnough, limit.rlim_max);
  setrlimit(RLIMIT_NOFILE, &limit);  // without it, fewer connections
}

// The signals that end the server; blocked before any thread starts, so that only the waiting main
// thread takes them.
sigset_t BlockStopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return set;
}

// Whether the run is over and everybody who should know does, or had the time to.
class Farewell {
 public:
  bool Done(Federation& federation) {
    if (!federation.finished()) return false;
    const absl::Duration now = Clock::Real()->Monotonic();
    if (!finished_) finished_ = now;
    if (!told_ && federation.nodes_to_tell() == 0) told_ = now;
    return now - *finished_ >= kFarewell || (told_ && now - *told_ >= kLastDownloads);
  }

 private:
  std::optional<absl::Duration> finished_, told_;
};

absl::Status ServeUntilStopped(FederationServer& server, bool exit_when_finished,
                               const sigset_t& stop_signals, SystemdNotifier& notifier) {
  Farewell farewell;
  const timespec pause = {0, 200'000'000};
  for (;;) {
    const int signal = sigtimedwait(&stop_signals, nullptr, &pause);
    if (signal > 0) {
      LogInfo("stopping: ", signal == SIGINT ? "SIGINT" : "SIGTERM");
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(server.federation().health());
    notifier.Alive(Clock::Real()->Monotonic());
    if (exit_when_finished && farewell.Done(server.federation())) {
      server.federation().WaitForEvaluations();
      return absl::OkStatus();
    }
  }
}

absl::Status WriteJoinToken(const std::string& path, Membership* membership) {
  if (membership == nullptr) {
    return absl::InvalidArgumentError("--join-token-file: with --insecure nobody needs a token");
  }
  TokenRequest request;
  request.uses = 1000;
  request.lifetime = absl::Hours(24);
  TokenRecord record;
  ASSIGN_OR_RETURN(const std::string token, membership->CreateToken(request, &record));
  return WritePrivateFile(path, token + "\n", *Env::Posix());
}

void LogRuns(Federation& federation) {
  const absl::StatusOr<std::vector<RunView>> runs = federation.ListRuns();
  if (!runs.ok()) return;
  for (const RunView& run : *runs) {
    if (run.core == nullptr) continue;
    const RunPlan& plan = run.core->plan();
    LogInfo("run '", plan.run_id, "': ", plan.rounds, " rounds of ", plan.nodes_per_round,
            " nodes, adapter of ", plan.lora.num_parameters(), " parameters, base model ",
            plan.base_model.Hex(), ", ", RunStateName(run.entry.state), " at version ",
            run.core->version());
  }
}

absl::Status Serve(const Flags& flags, bool* store_failed) {
  ConfigPlaces places;
  ASSIGN_OR_RETURN(const v1::ServerConfig config, MakeConfig(flags, places));
  if (flags.check) {
    RETURN_IF_ERROR(places.Locate(CheckServerConfig(config, *Env::Posix())));
    std::cout << "the configuration is good\n";
    return absl::OkStatus();
  }
  SystemdNotifier notifier = SystemdNotifier::FromEnvironment();
  const sigset_t stop_signals = BlockStopSignals();
  FederationServerOptions options;
  options.threads = std::max(1, ThreadPool::AvailableProcessors() / 2);
  absl::StatusOr<std::unique_ptr<FederationServer>> started =
      FederationServer::Start(config, options);
  if (!started.ok()) return places.Locate(started.status());
  const std::unique_ptr<FederationServer> server = *std::move(started);
  LogRuns(server->federation());
  const std::string listen = config.has_listen() ? config.listen() : "127.0.0.1:9480";
  if (server->admin_tcp_port() != 0) {
    LogInfo("operators with certificates: port ", server->admin_tcp_port());
  }
  if (server->metrics_port() != 0) LogInfo("metrics: port ", server->metrics_port(), ", /metrics");
  if (!server->admin_address().empty()) LogInfo("operators: ", server->admin_address());
  LogInfo("listening on ", listen.substr(0, listen.rfind(':')), ":", server->grpc().port());
  if (!flags.join_token_file.empty()) {
    RETURN_IF_ERROR(WriteJoinToken(flags.join_token_file, server->membership()));
  }
  if (server->membership() != nullptr) {
    LogInfo("devices join on port ", server->grpc().enroll_port(), " with a token");
  } else {
    LogWarning("--insecure: no encryption, nodes are who they say; for this machine alone");
  }
  notifier.Ready(absl::StrCat("listening on port ", server->grpc().port()));
  const absl::Status status =
      ServeUntilStopped(*server, flags.exit_when_finished, stop_signals, notifier);
  notifier.Stopping();
  *store_failed = !server->federation().health().ok();
  server->Shutdown(kShutdownGrace);
  return status;
}

int Main(int argc, char** argv) {
  CLI::App app{"fedge-server: coordinates devices that fine-tune one adapter together"};
  app.set_version_flag("--version", std::string("fedge-server ") + FEDGE_VERSION);
  Flags flags;
  AddFlags(app, flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    std::cerr << "fedge-server: " << error.what() << "; see fedge-server --help\n";
    return 2;
  }
  if (flags.help_config) {
    std::cout << DescribeConfig(*v1::ServerConfig::descriptor());
    return 0;
  }
  SetLogLevel(LevelOf(flags.log_level));
  RaiseDescriptorLimit();
  std::signal(SIGPIPE, SIG_IGN);
  bool store_failed = false;
  absl::Status status = ArmFailpointsFromEnvironment();
  if (status.ok()) {
    status = flags.probe.empty() ? Serve(flags, &store_failed)
                                 : ProbeHealth(flags.probe, absl::Seconds(2));
  }
  if (status.ok()) status = SaveFailpointHits();
  if (!status.ok()) std::cerr << "fedge-server: " << status.message() << "\n";
  return store_failed ? kStoreFailed : ExitCode(status);
}

}  // namespace
}  // namespace fedge

int main(int argc, char** argv) {
  fedge::KeepMemoryForUpdates();
  return fedge::Main(argc, argv);
}
