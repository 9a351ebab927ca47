// fedge operator: certificates with which people and programs operate a server over the network.
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/env.h"
#include "common/base/status.h"
#include "common/security/certificate_issuer.h"
#include "common/security/keys.h"
#include "tools/fedge/admin_output.h"
#include "tools/fedge/commands.h"
#include "tools/fedge/grpc_admin_link.h"
#include "tools/fedge/proto_json.h"
#include "tools/fedge/server_option.h"
#include "tools/fedge/table.h"

namespace fedge {
namespace {

struct OperatorOptions {
  ServerOption server;
  OutputFormat format = OutputFormat::kText;
  std::string name, out;
  bool read_only = false;
  uint32_t days = 90;
};

// The key is made here and goes nowhere but into the file.
absl::Status CertifyOperator(const OperatorOptions& options, CommandContext& context) {
  Env& env = *Env::Posix();
  const std::string path = options.out.empty() ? options.name + ".pem" : options.out;
  if (env.Exists(path)) {
    return absl::AlreadyExistsError(
        absl::StrCat(path, ": exists and is not replaced; choose another file with --out"));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  ASSIGN_OR_RETURN(const PrivateKey key, PrivateKey::Generate());
  v1::OperatorCertifyRequest request;
  request.set_name(options.name);
  request.set_may_write(!options.read_only);
  request.set_lifetime_seconds(uint64_t{options.days} * 24 * 3600);
  ASSIGN_OR_RETURN(*request.mutable_certificate_request(), MakeCertificateRequest(key));
  ASSIGN_OR_RETURN(const v1::OperatorCertifyResponse response, link->OperatorCertify(request));
  RETURN_IF_ERROR(WritePrivateFile(
      path, absl::StrCat(key.Pem(), response.certificate_pem(), response.authorities_pem()), env));
  if (options.format == OutputFormat::kJson) {
    context.PrintJson({{"identity", path},
                       {"name", options.name},
                       {"may_write", !options.read_only},
                       {"days", options.days}});
    return absl::OkStatus();
  }
  context.out() << path << ": key and certificate of '" << options.name << "', who may "
                << (options.read_only ? "look" : "look and change") << " for " << options.days
                << " days; use it with --server HOST:PORT --identity " << path << "\n";
  return absl::OkStatus();
}

absl::Status RevokeOperator(const OperatorOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  v1::OperatorRevokeRequest request;
  request.set_name(options.name);
  ASSIGN_OR_RETURN(const v1::OperatorRevokeResponse done, link->OperatorRevoke(request));
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(ProtoJson(done));
    return absl::OkStatus();
  }
  context.out() << "operator '" << options.name
                << "' is let in no more over the network; certify the person under another name "
                   "if that is wanted\n";
  return absl::OkStatus();
}

absl::Status ListOperators(const OperatorOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminLink> link, AdminLink::Connect(options.server));
  ASSIGN_OR_RETURN(const v1::OperatorListResponse operators, link->OperatorList({}));
  if (options.format == OutputFormat::kJson) {
    context.PrintJson(ProtoJson(operators));
    return absl::OkStatus();
  }
  Table table({"operator", "may", "certified", "expires", "state"});
  for (const v1::OperatorInfo& one : operators.operators()) {
    table.Add({one.name(), one.may_write() ? "look and change" : "look", TimeText(one.made_us()),
               TimeText(one.expires_us()), one.revoked() ? "revoked" : "valid"});
  }
  table.Print(context.out());
  return absl::OkStatus();
}

}  // namespace

void RegisterOperator(CLI::App& app, CommandContext& context) {
  CLI::App* const operators =
      app.add_subcommand("operator", "Who may operate a server over the network");
  operators->require_subcommand(1);
  auto options = std::make_shared<OperatorOptions>();
  CLI::App* const certify = operators->add_subcommand(
      "certify", "Make a key and a certificate, for a server with admin_tcp_listen");
  certify->add_option("name", options->name, "Who it is")->required()->type_name("NAME");
  AddServerOption(certify, options->server);
  AddFormatOption(certify, options->format);
  certify->add_flag("--read-only", options->read_only, "May look, not change");
  certify->add_option("--days", options->days, "Life of the certificate (default: 90)")
      ->check(CLI::Range(1, 365));
  certify->add_option("--out", options->out, "Where to (default: NAME.pem)")->type_name("FILE");
  certify->footer(
      "Example:\n  fedge operator certify alice --out alice.pem\n  fedge run list --server "
      "server.example:9483 --identity alice.pem");
  context.AddCommand(certify, [options, &context] { return CertifyOperator(*options, context); });

  auto revoke_options = std::make_shared<OperatorOptions>();
  CLI::App* const revoke = operators->add_subcommand(
      "revoke", "Let an operator in no more over the network; open calls are cut off");
  revoke->add_option("name", revoke_options->name, "Who it is")->required()->type_name("NAME");
  AddServerOption(revoke, revoke_options->server);
  AddFormatOption(revoke, revoke_options->format);
  revoke->footer("Example:\n  fedge operator revoke alice");
  context.AddCommand(
      revoke, [revoke_options, &context] { return RevokeOperator(*revoke_options, context); });

  auto list_options = std::make_shared<OperatorOptions>();
  CLI::App* const list =
      operators->add_subcommand("list", "Whose certificates are not over yet, and what they may");
  AddServerOption(list, list_options->server);
  AddFormatOption(list, list_options->format);
  list->footer("Example:\n  fedge operator list");
  context.AddCommand(list,
                     [list_options, &context] { return ListOperators(*list_options, context); });
}

}  // namespace fedge
