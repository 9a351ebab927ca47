// fedge-client: the daemon on a device, and the commands around it.
#include <iostream>
#include <vector>

#include "CLI/CLI.hpp"
#include "client/commands.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"

namespace {

int Main(int argc, char** argv) {
  CLI::App app{"fedge-client: fine-tunes together with others on data that stays here"};
  app.require_subcommand(1);
  app.set_version_flag("--version", FEDGE_VERSION);
  const std::vector<fedge::ClientCommand> commands = {fedge::AddJoinCommand(app),
                                                      fedge::AddRunCommand(app)};
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  absl::Status status = fedge::ArmFailpointsFromEnvironment();
  for (const fedge::ClientCommand& command : commands) {
    if (status.ok() && command.app->parsed()) status = command.run();
  }
  if (status.ok()) status = fedge::SaveFailpointHits();
  if (!status.ok()) std::cerr << "fedge-client: " << status.message() << "\n";
  return fedge::ExitCode(status);
}

}  // namespace

int main(int argc, char** argv) { return Main(argc, argv); }
