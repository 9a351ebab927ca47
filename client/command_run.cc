// fedge-client run: the daemon.
#include <memory>
#include <optional>

#include "CLI/CLI.hpp"
#include "client/commands.h"
#include "client/config_flags.h"
#include "client/daemon.h"
#include "client/supervisor.h"
#include "common/base/status.h"

namespace fedge {
namespace {

struct RunFlags {
  ConfigFlags config;
  std::optional<double> patience_seconds;
  bool once = false;
};

absl::Status Run(const RunFlags& flags) {
  ASSIGN_OR_RETURN(const ClientSettings settings, SettingsOf(flags.config));
  BlockStopSignals();
  DaemonOptions options;
  if (flags.patience_seconds) options.patience = absl::Seconds(*flags.patience_seconds);
  options.once = flags.once;
  return RunDaemon(settings, options, *Env::Posix());
}

}  // namespace

ClientCommand AddRunCommand(CLI::App& program) {
  const auto flags = std::make_shared<RunFlags>();
  CLI::App* const run =
      program.add_subcommand("run", "Take part in a server's run until it is over");
  AddConfigFlags(run, &flags->config);
  run->add_option("--patience", flags->patience_seconds,
                  "Seconds a server that does not answer is waited for (default: for ever)")
      ->check(CLI::Range(0.0, 1e9));
  run->add_flag("--once", flags->once, "End after one task, or when there is none");
  run->footer(
      "Example:\n"
      "  fedge-client run --data notes.jsonl\n");
  return {run, [flags] { return Run(*flags); }, nullptr};
}

}  // namespace fedge
