// fedge token: what a device needs to join.
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/base/status.h"
#include "tools/fedge/admin_output.h"
#include "tools/fedge/commands.h"
#include "tools/fedge/grpc_admin_link.h"
#include "tools/fedge/proto_json.h"
#include "tools/fedge/qr_code.h"
#include "tools/fedge/server_option.h"
#include "tools/fedge/table.h"

namespace fedge {
namespace {

struct TokenOptions {
  ServerOption server;
  OutputFormat format = OutputFormat::kText;
  v1::TokenCreateRequest create;
  std::string expires = "1h";
  bool no_qr = false;
  v1::TokenRevokeRequest revoke;
};

absl::Status CreateToken(TokenOptions options, CommandContext& context) {
  absl::Duration lifetime;
  if (!absl::ParseDuration(options.expires, &lifetime) || lifetime < absl::Seconds(1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--expires \"", options.expires, "\": must be like 30m, 1h or 24h"));
  }
  options.create.set_lifetime_seconds(static_cast<uint64_t>(absl::ToInt64Seconds(lifetime)));
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  ASSIGN_OR_RETURN(const v1::TokenCreateResponse token, link->TokenCreate(options.create));
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(ProtoJson(token));
    return absl::OkStatus();
  }
  context.out() << token.token() << "\n";
  if (!options.no_qr) context.out() << QrCode(token.token());
  context.out() << "token " << token.info().token_id() << ", for " << token.info().uses()
                << " device(s), until " << TimeText(token.info().expires_us())
                << "\non the device: fedge-client join --token TOKEN\n";
  return absl::OkStatus();
}

absl::Status ListTokens(const TokenOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  ASSIGN_OR_RETURN(const v1::TokenListResponse tokens, link->TokenList({}));
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(ProtoJson(tokens));
    return absl::OkStatus();
  }
  Table table({"token", "expires", "used", "for", "state"});
  for (const v1::TokenInfo& token : tokens.tokens()) {
    const bool is_used = token.used() >= token.uses();
    table.Add({token.token_id(), TimeText(token.expires_us()),
               absl::StrCat(token.used(), " of ", token.uses()),
               token.node_id().empty() ? "any new node" : token.node_id(),
               token.revoked() ? "revoked" : (is_used ? "used" : "open")});
  }
  table.Print(context.out());
  return absl::OkStatus();
}

absl::Status RevokeToken(const TokenOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  ASSIGN_OR_RETURN(const v1::TokenRevokeResponse done, link->TokenRevoke(options.revoke));
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(ProtoJson(done));
    return absl::OkStatus();
  }
  context.out() << "token " << options.revoke.token_id() << " lets nobody in any more\n";
  return absl::OkStatus();
}

}  // namespace

void RegisterToken(CLI::App& app, CommandContext& context) {
  CLI::App* const token = app.add_subcommand("token", "Join tokens: what lets a device in");
  token->require_subcommand(1);
  auto options = std::make_shared<TokenOptions>();

  CLI::App* const create = token->add_subcommand("create", "Make one, as text and as a QR code");
  AddServerOption(create, options->server);
  AddFormatOption(create, options->format);
  create->add_option_function<uint32_t>(
      "--uses", [options](uint32_t uses) { options->create.set_uses(uses); },
      "Devices it lets in (default 1)");
  create->add_option("--expires", options->expires, "How long it works, at most 24h (default 1h)")
      ->type_name("DURATION");
  create->add_option_function<std::string>(
      "--node", [options](const std::string& node) { options->create.set_node_id(node); },
      "Only for this node, also if it has joined before (default: any new one)");
  create->add_option_function<std::string>(
      "--address", [options](const std::string& text) { options->create.set_address(text); },
      "HOST:PORT where the device finds the server (default: the server's public_host)");
  create->add_flag("--no-qr", options->no_qr, "Text only");
  create->footer("Example:\n  fedge token create --expires 30m");
  context.AddCommand(create, [options, &context] { return CreateToken(*options, context); });

  CLI::App* const list = token->add_subcommand("list", "Those that are not over yet");
  AddServerOption(list, options->server);
  AddFormatOption(list, options->format);
  list->footer("Example:\n  fedge token list");
  context.AddCommand(list, [options, &context] { return ListTokens(*options, context); });

  CLI::App* const revoke = token->add_subcommand("revoke", "Make one useless");
  AddServerOption(revoke, options->server);
  AddFormatOption(revoke, options->format);
  revoke
      ->add_option_function<std::string>(
          "token", [options](const std::string& id) { options->revoke.set_token_id(id); },
          "Its id, as in the list")
      ->required()
      ->type_name("ID");
  revoke->footer("Example:\n  fedge token revoke 3f2a");
  context.AddCommand(revoke, [options, &context] { return RevokeToken(*options, context); });
}

}  // namespace fedge
