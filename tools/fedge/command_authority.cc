// fedge authority: the key that signs all certificates of a federation.
#include <memory>
#include <string>

#include "absl/strings/escaping.h"
#include "common/base/status.h"
#include "tools/fedge/admin_output.h"
#include "tools/fedge/commands.h"
#include "tools/fedge/grpc_admin_link.h"
#include "tools/fedge/proto_json.h"
#include "tools/fedge/server_option.h"

namespace fedge {
namespace {

struct AuthorityOptions {
  ServerOption server;
  OutputFormat format = OutputFormat::kText;
  v1::AuthorityRotateRequest rotate;
};

absl::Status RotateAuthority(const AuthorityOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  ASSIGN_OR_RETURN(const v1::AuthorityRotateResponse rotated,
                   link->AuthorityRotate(options.rotate));
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(ProtoJson(rotated));
    return absl::OkStatus();
  }
  context.out() << "new authority " << absl::BytesToHexString(rotated.sha256())
                << "; the server shows it from " << TimeText(rotated.serving_from_us()) << "\n";
  return absl::OkStatus();
}

}  // namespace

void RegisterAuthority(CLI::App& app, CommandContext& context) {
  CLI::App* const authority =
      app.add_subcommand("authority", "The key that signs all certificates of a federation");
  authority->require_subcommand(1);
  auto options = std::make_shared<AuthorityOptions>();
  CLI::App* const rotate = authority->add_subcommand(
      "rotate", "Make the next one; nodes follow by themselves within two lives of a certificate");
  AddServerOption(rotate, options->server);
  AddFormatOption(rotate, options->format);
  rotate->add_flag_function(
      "--at-once", [options](int64_t) { options->rotate.set_at_once(true); },
      "The old key is known to others: trust it no more; every device must join again");
  rotate->footer("Example:\n  fedge authority rotate");
  context.AddCommand(rotate, [options, &context] { return RotateAuthority(*options, context); });
}

}  // namespace fedge
