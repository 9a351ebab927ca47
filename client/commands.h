// The commands of fedge-client, one file each (command_*.cc). A command adds its flags to the
// program and hands back what runs it.
#ifndef FEDGE_CLIENT_COMMANDS_H_
#define FEDGE_CLIENT_COMMANDS_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace CLI {
class App;
}  // namespace CLI

namespace fedge {

struct ClientCommand {
  CLI::App* app = nullptr;  // parsed: this command was asked for
  std::function<absl::Status()> run;
  std::shared_ptr<const int> exit_code;  // of a run that went well; null: 0
};

ClientCommand AddJoinCommand(CLI::App& program);
ClientCommand AddRunCommand(CLI::App& program);
ClientCommand AddDoctorCommand(CLI::App& program);
std::vector<ClientCommand> AddControlCommands(CLI::App& program);  // status, pause, resume, leave

// What this machine calls itself: the default name of its node.
std::string HostName();

}  // namespace fedge

#endif  // FEDGE_CLIENT_COMMANDS_H_
