// fedge-client: the daemon on a device, and the commands around it.
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "client/commands.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "common/config/config_file.h"
#include "fedge/v1/client.pb.h"

namespace {

int Main(int argc, char** argv) {
  // gRPC's own lines would stand beside our one clear line; set it to bring them back.
  setenv("GRPC_VERBOSITY", "NONE", 0);
  CLI::App app{"fedge-client: fine-tunes together with others on data that stays here"};
  app.require_subcommand(0, 1);
  app.set_version_flag("--version", std::string("fedge-client ") + FEDGE_VERSION);
  bool help_config = false;
  app.add_flag("--help-config", help_config, "Print the documented settings and exit");
  std::vector<fedge::ClientCommand> commands = {
      fedge::AddJoinCommand(app), fedge::AddRunCommand(app), fedge::AddDoctorCommand(app)};
  for (fedge::ClientCommand& command : fedge::AddControlCommands(app)) commands.push_back(command);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (help_config) {
    std::cout << fedge::DescribeConfig(*fedge::v1::ClientConfig::descriptor());
    return 0;
  }
  if (app.get_subcommands().empty()) {
    std::cerr << app.help();
    return 2;
  }
  int exit_code = 0;
  absl::Status status = fedge::ArmFailpointsFromEnvironment();
  for (const fedge::ClientCommand& command : commands) {
    if (!status.ok() || !command.app->parsed()) continue;
    status = command.run();
    if (command.exit_code != nullptr) exit_code = *command.exit_code;
  }
  if (status.ok()) status = fedge::SaveFailpointHits();
  if (!status.ok()) std::cerr << "fedge-client: " << status.message() << "\n";
  return status.ok() ? exit_code : fedge::ExitCode(status);
}

}  // namespace

int main(int argc, char** argv) { return Main(argc, argv); }
