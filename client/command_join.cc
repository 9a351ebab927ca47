// fedge-client join: this device becomes a node of a federation.
#include <unistd.h>

#include <iostream>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "client/commands.h"
#include "client/server_link.h"
#include "common/base/status.h"

namespace fedge {
namespace {

absl::Status Join(const JoinOptions& options) {
  ASSIGN_OR_RETURN(const JoinedNode node, JoinFederation(options, *Env::Posix(), *Clock::Real()));
  if (!node.warning.empty()) std::cerr << "fedge-client: " << node.warning << "\n";
  std::cout << "joined " << node.server << " as node '" << node.node_id << "'; next: fedge-client "
            << "run --data PATH --state-dir " << options.state_dir << "\n";
  return absl::OkStatus();
}

}  // namespace

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 && name[0] != '\0' ? name : "fedge-node";
}

ClientCommand AddJoinCommand(CLI::App& program) {
  const auto options = std::make_shared<JoinOptions>();
  options->node_id = HostName();
  options->state_dir = "fedge-client-state";
  CLI::App* const join =
      program.add_subcommand("join", "Become a node of a federation, with an operator's token");
  join->add_option("server", options->url, "https://host:port (default: what the token says)");
  join->add_option("--token", options->token, "FEDGE1..., from the server's operator")
      ->required()
      ->envname("FEDGE_TOKEN");
  join->add_option("--node-id", options->node_id, "Name of this node")->capture_default_str();
  join->add_option("--state-dir", options->state_dir, "What the node keeps, its identity included")
      ->capture_default_str();
  join->footer("Example:\n  fedge-client join https://10.0.0.5:9481 --token FEDGE1.MFRGG...\n");
  return {join, [options] { return Join(*options); }, nullptr};
}

}  // namespace fedge
