// fedge-client status, pause, resume, leave: commands to the daemon of a state folder.
#include <iostream>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "client/client_settings.h"
#include "client/commands.h"
#include "client/control_socket.h"
#include "client/participant_state.h"
#include "client/state_lock.h"
#include "client/status_board.h"
#include "client/supervisor.h"
#include "common/base/env.h"
#include "common/base/status.h"

namespace fedge {
namespace {

struct ControlFlags {
  std::string state_dir = kDefaultStateDir;
  std::string format = "text";
};

CLI::App* AddControl(CLI::App& program, const char* name, const char* what, ControlFlags* flags) {
  CLI::App* const command = program.add_subcommand(name, what);
  command->add_option("--state-dir", flags->state_dir, "Of the daemon")
      ->type_name("DIR")
      ->capture_default_str();
  return command;
}

// What is known of a folder whose daemon does not run.
v1::ClientStatus StatusOfFolder(const std::string& state_dir) {
  v1::ClientStatus status;
  status.set_state("stopped");
  status.set_detail("no fedge-client runs on this folder");
  status.set_paused_by_user(IsPaused(state_dir));
  status.set_last_answer_seconds_ago(-1);
  const std::string nodes = JoinPath(state_dir, "nodes");
  const absl::StatusOr<std::vector<std::string>> entries = Env::Posix()->ListDir(nodes);
  for (const std::string& entry : entries.value_or(std::vector<std::string>())) {
    if (!absl::EndsWith(entry, ".outbox")) continue;
    status.set_outbox_bytes(Env::Posix()->FileSize(JoinPath(nodes, entry)).value_or(0));
  }
  return status;
}

absl::Status ShowStatus(const ControlFlags& flags) {
  if (!Env::Posix()->IsDirectory(flags.state_dir)) {
    return absl::NotFoundError(
        absl::StrCat(flags.state_dir, ": no such state folder; give the daemon's --state-dir"));
  }
  v1::ClientStatus status;
  const absl::StatusOr<std::string> answer = AskDaemon(flags.state_dir, "status");
  if (absl::IsNotFound(answer.status())) {
    status = StatusOfFolder(flags.state_dir);
  } else {
    RETURN_IF_ERROR(answer.status());
    if (!status.ParseFromString(*answer)) {
      return absl::InternalError("the daemon's answer is not a status; is it of another version?");
    }
  }
  std::cout << (flags.format == "json" ? StatusAsJson(status) : StatusAsText(status));
  return absl::OkStatus();
}

absl::Status Tell(const ControlFlags& flags, const std::string& command) {
  const absl::StatusOr<std::string> answer = AskDaemon(flags.state_dir, command);
  if (absl::IsNotFound(answer.status()) && command != "leave") {
    if (!Env::Posix()->IsDirectory(flags.state_dir)) return answer.status();
    RETURN_IF_ERROR(WritePaused(flags.state_dir, command == "pause"));
    std::cout << "no daemon runs here; noted for when one does\n";
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(answer.status());
  return *answer == "ok" ? absl::OkStatus() : absl::InternalError(*answer);
}

}  // namespace

std::vector<ClientCommand> AddControlCommands(CLI::App& program) {
  const auto flags = std::make_shared<ControlFlags>();
  std::vector<ClientCommand> commands;
  CLI::App* const status =
      AddControl(program, "status", "What the daemon is doing, and why not", flags.get());
  status->add_option("--format", flags->format, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  commands.push_back({status, [flags] { return ShowStatus(*flags); }, nullptr});
  const std::pair<const char*, const char*> verbs[] = {
      {"pause", "Stop work until `resume`, also over restarts; nothing is lost"},
      {"resume", "Go on after `pause`"},
      {"leave", "Send what is finished, end the daemon, remove what it kept"}};
  for (const auto& [verb, what] : verbs) {
    const std::string name = verb;
    commands.push_back({AddControl(program, verb, what, flags.get()),
                        [flags, name] { return Tell(*flags, name); }, nullptr});
  }
  return commands;
}

}  // namespace fedge
