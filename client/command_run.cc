// fedge-client run: the daemon.
#include <csignal>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "client/commands.h"
#include "client/daemon.h"

namespace fedge {
namespace {

volatile std::sig_atomic_t stop_requested = 0;

void RequestStop(int) { stop_requested = 1; }

void CatchStopSignals() {
  struct sigaction action = {};
  action.sa_handler = RequestStop;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
}

void AddRunFlags(CLI::App* run, DaemonOptions* options) {
  run->add_option("--server", options->server,
                  "Address of fedge-server (default: the one this device joined)")
      ->type_name("H:P");
  run->add_flag("--insecure", options->insecure,
                "Plaintext, without having joined; for a --server on this machine only");
  run->add_option("--model", options->model, "Base model (GGUF), the same file as the server's")
      ->required()
      ->type_name("FILE");
  run->add_option("--data", options->data, "Local data: a JSONL or text file, or a folder of them")
      ->required()
      ->type_name("PATH");
  run->add_option("--node-id", options->node_id,
                  "Name of this node (default: the one it joined as; with --insecure the host's)");
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
      "  fedge-client run --model base.gguf --data notes.jsonl\n");
}

}  // namespace

ClientCommand AddRunCommand(CLI::App& program) {
  const auto options = std::make_shared<DaemonOptions>();
  CLI::App* const run =
      program.add_subcommand("run", "Take part in a server's run until it is over");
  AddRunFlags(run, options.get());
  return {run, [options] {
            CatchStopSignals();
            options->stopping = [] { return stop_requested != 0; };
            if (options->insecure && options->node_id.empty()) options->node_id = HostName();
            return RunDaemon(*options, *Env::Posix());
          }};
}

}  // namespace fedge
