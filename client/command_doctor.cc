// fedge-client doctor: what is missing on this device, and what to do about it.
#include <cstdio>
#include <memory>
#include <optional>

#include "CLI/CLI.hpp"
#include "client/commands.h"
#include "client/config_flags.h"
#include "client/doctor.h"
#include "client/node_identity.h"
#include "client/server_link.h"
#include "common/base/status.h"

namespace fedge {
namespace {

absl::Status RunDoctor(const ConfigFlags& flags, int* exit_code) {
  ASSIGN_OR_RETURN(ClientSettings settings, SettingsOf(flags));
  ServerLinkOptions options;
  options.server = settings.server;
  options.state_dir = settings.state_dir;
  options.node_id = settings.node_id;
  options.insecure = settings.insecure;
  ASSIGN_OR_RETURN(const ServerLink server, OpenServerLink(options, *Env::Posix(), *Clock::Real()));
  std::optional<NodeIdentity> identity;
  if (!settings.insecure) {
    ASSIGN_OR_RETURN(identity, IdentityFolder(settings.state_dir, Env::Posix()).Load());
    identity->server = server.server;
  }
  settings.server = server.server;
  settings.node_id = server.node_id;
  LinuxProbe probe("", settings.state_dir, Clock::Real());
  for (const Finding& finding :
       Examine(settings, {server.link.get(), identity ? &*identity : nullptr, &probe, Clock::Real(),
                          Env::Posix()})) {
    std::printf("%-4s %-8s %s\n", finding.good ? "ok" : "BAD", finding.name.c_str(),
                finding.detail.c_str());
    if (finding.good) continue;
    std::printf("     %-8s -> %s\n", "", finding.remedy.c_str());
    if (*exit_code == 0) *exit_code = static_cast<int>(finding.check);
  }
  return absl::OkStatus();
}

}  // namespace

ClientCommand AddDoctorCommand(CLI::App& program) {
  const auto flags = std::make_shared<ConfigFlags>();
  CLI::App* const doctor = program.add_subcommand(
      "doctor", "Check what this device needs to take part; the exit code names the first trouble");
  AddConfigFlags(doctor, flags.get());
  doctor->footer(
      "Exit codes: 10 state folder, 11 disk, 12 memory, 13 clock, 14 DNS, 15 server, 16 model,\n"
      "17 data, 18 policy, 19 TLS; with the flags of `run` or its --config.\n");
  ClientCommand command;
  command.app = doctor;
  const auto exit_code = std::make_shared<int>(0);
  command.run = [flags, exit_code] { return RunDoctor(*flags, exit_code.get()); };
  command.exit_code = exit_code;
  return command;
}

}  // namespace fedge
