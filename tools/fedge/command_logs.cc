#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "tools/fedge/admin_output.h"
#include "tools/fedge/commands.h"
#include "tools/fedge/grpc_admin_link.h"
#include "tools/fedge/proto_json.h"
#include "tools/fedge/server_option.h"

namespace fedge {
namespace {

struct LogsOptions {
  ServerOption server;
  OutputFormat format = OutputFormat::kText;
  uint32_t last = 100;
  bool follow = false;
  std::string run_id, node_id;
};

absl::Status RunLogs(const LogsOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  v1::LogsRequest request;
  request.set_last(options.last);
  request.set_follow(options.follow);
  request.set_run_id(options.run_id);
  request.set_node_id(options.node_id);
  const auto take = [&](const v1::Event& event) {
    const bool json = options.format == OutputFormat::kJson;
    context.out() << (json ? ProtoJson(event).dump() : EventLine(event)) << std::endl;
    return true;
  };
  RETURN_IF_ERROR(link->Logs(request, take, [&context] { return context.interrupted(); }));
  if (!options.follow || context.interrupted()) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("the server at ", options.server.address, " has gone"));
}

}  // namespace

void RegisterLogs(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<LogsOptions>();
  CLI::App* const logs = app.add_subcommand("logs", "What happened on a server since its start");
  AddServerOption(logs, options->server);
  AddFormatOption(logs, options->format);
  logs->add_option("--last", options->last, "So many of the newest (default 100)")->type_name("N");
  logs->add_flag("--follow", options->follow, "Then go on with those to come");
  logs->add_option("--run", options->run_id, "Only of this run")->type_name("RUN");
  logs->add_option("--node", options->node_id, "Only of this node")->type_name("NODE");
  logs->footer("Example:\n  fedge logs --follow --run english-2026");
  context.AddCommand(logs, [options, &context] { return RunLogs(*options, context); });
}

}  // namespace fedge
