#include <memory>
#include <string>

#include "common/base/status.h"
#include "tools/fedge/admin_output.h"
#include "tools/fedge/commands.h"
#include "tools/fedge/grpc_admin_link.h"
#include "tools/fedge/proto_json.h"
#include "tools/fedge/server_option.h"

namespace fedge {
namespace {

struct NodesOptions {
  ServerOption server;
  OutputFormat format = OutputFormat::kText;
  std::string node_id;
  std::string after;
  uint32_t limit = 0;
};

absl::Status RunNodeList(const NodesOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  v1::NodeListRequest request;
  request.set_limit(options.limit);
  request.set_after(options.after);
  ASSIGN_OR_RETURN(const v1::NodeListResponse nodes, link->NodeList(request));
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(ProtoJson(nodes));
  } else {
    PrintNodes(nodes, context.out());
  }
  return absl::OkStatus();
}

absl::Status RunNodeShow(const NodesOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  v1::NodeShowRequest request;
  request.set_node_id(options.node_id);
  ASSIGN_OR_RETURN(const v1::NodeShowResponse node, link->NodeShow(request));
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(ProtoJson(node));
  } else {
    PrintNode(node, context.out());
  }
  return absl::OkStatus();
}

absl::Status RunNodeRevoke(const NodesOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  v1::NodeRevokeRequest request;
  request.set_node_id(options.node_id);
  ASSIGN_OR_RETURN(const v1::NodeRevokeResponse done, link->NodeRevoke(request));
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(ProtoJson(done));
  } else {
    context.out() << "node '" << options.node_id
                  << "' is let in no more; the device may join again under another name\n";
  }
  return absl::OkStatus();
}

}  // namespace

void RegisterNodes(CLI::App& app, CommandContext& context) {
  CLI::App* const nodes = app.add_subcommand("nodes", "The devices a server knows");
  nodes->require_subcommand(0, 1);
  auto show_options = std::make_shared<NodesOptions>();
  CLI::App* const show = nodes->add_subcommand("show", "A device and what it did last");
  show->add_option("node", show_options->node_id, "The node's id")->required()->type_name("NODE");
  AddServerOption(show, show_options->server);
  AddFormatOption(show, show_options->format);
  show->footer("Example:\n  fedge nodes show pi-17");
  context.AddCommand(show,
                     [show_options, &context] { return RunNodeShow(*show_options, context); });

  auto revoke_options = std::make_shared<NodesOptions>();
  CLI::App* const revoke =
      nodes->add_subcommand("revoke", "Let a device in no more; what it is doing is cut off");
  revoke->add_option("node", revoke_options->node_id, "The node's id")
      ->required()
      ->type_name("NODE");
  AddServerOption(revoke, revoke_options->server);
  AddFormatOption(revoke, revoke_options->format);
  revoke->footer("Example:\n  fedge nodes revoke pi-17");
  context.AddCommand(
      revoke, [revoke_options, &context] { return RunNodeRevoke(*revoke_options, context); });

  auto options = std::make_shared<NodesOptions>();
  AddServerOption(nodes, options->server);
  AddFormatOption(nodes, options->format);
  nodes->add_option("--limit", options->limit, "How many to list (default 1000)")->type_name("N");
  nodes->add_option("--after", options->after, "Only those with ids behind this one")
      ->type_name("NODE");
  nodes->footer("Example:\n  fedge nodes --format json");
  context.AddCommand(nodes, [options, &context] { return RunNodeList(*options, context); });
}

}  // namespace fedge
