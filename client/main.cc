// fedge-client: the daemon on a device. Parses flags and wires the participant to its server.
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <string>

#include "CLI/CLI.hpp"
#include "client/daemon.h"
#include "common/base/env.h"
#include "common/base/failpoint.h"
#include "common/base/logging.h"
#include "common/base/status.h"

namespace {

volatile std::sig_atomic_t stop_requested = 0;

void RequestStop(int) { stop_requested = 1; }

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 && name[0] != '\0' ? name : "fedge-node";
}

void AddRunFlags(CLI::App* run, fedge::DaemonOptions* options) {
  run->add_option("--server", options->server, "Address of fedge-server, host:port")
      ->required()
      ->type_name("H:P");
  run->add_option("--model", options->model, "Base model (GGUF), the same file as the server's")
      ->required()
      ->type_name("FILE");
  run->add_option("--data", options->data, "Local data: a JSONL or text file, or a folder of them")
      ->required()
      ->type_name("PATH");
  run->add_option("--node-id", options->node_id, "Name of this node")->capture_default_str();
  run->add_option("--state-dir", options->state_dir, "What the node keeps between rounds")
      ->capture_default_str();
  run->add_option("--out", options->out_dir,
                  "Where the final adapter goes: adapter.gguf and peft/ (default: the state dir)");
  run->add_option("--threads", options->threads, "Training threads; 0: all processors")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  run->add_option("--patience", options->patience_seconds,
                  "Seconds a lost server is waited for before giving up")
      ->check(CLI::Range(0, 7 * 24 * 3600))
      ->capture_default_str();
  run->add_flag("--once", options->once, "End after one task (or when there is none)");
  run->footer(
      "Example:\n"
      "  fedge-client run --server 10.0.0.5:9480 --model base.gguf --data notes.jsonl\n");
}

int Main(int argc, char** argv) {
  CLI::App app{"fedge-client: fine-tunes together with others on data that stays here"};
  app.require_subcommand(1);
  app.set_version_flag("--version", FEDGE_VERSION);
  fedge::DaemonOptions options;
  options.node_id = HostName();
  CLI::App* const run = app.add_subcommand("run", "Take part in a server's run until it is over");
  AddRunFlags(run, &options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  struct sigaction action = {};
  action.sa_handler = RequestStop;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  options.stopping = [] { return stop_requested != 0; };
  absl::Status status = fedge::ArmFailpointsFromEnvironment();
  if (status.ok()) status = fedge::RunDaemon(options, *fedge::Env::Posix());
  if (!status.ok()) std::cerr << "fedge-client: " << status.message() << "\n";
  return fedge::ExitCode(status);
}

}  // namespace

int main(int argc, char** argv) { return Main(argc, argv); }
