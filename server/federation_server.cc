#include "server/federation_server.h"

#include <unistd.h>

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/address.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "server/admin_context.h"
#include "server/fleet_metrics.h"
#include "server/run_setup.h"

namespace fedge {
namespace {

constexpr char kDefaultListen[] = "127.0.0.1:9480";
constexpr char kAdminSocket[] = "admin.sock";
constexpr uint32_t kMaxCertificateHours = 2160;

std::string ListenAddress(const v1::ServerConfig& config) {
  return config.has_listen() ? config.listen() : kDefaultListen;
}

// Of a checked `listen`.
absl::StatusOr<HostPort> ListenHostPort(const v1::ServerConfig& config) {
  return ParseHostPort(ListenAddress(config), "listen:", 0);
}

absl::Status CheckListeners(const v1::ServerConfig& config) {
  RETURN_IF_ERROR(CheckListenAddress(ListenAddress(config)));
  if (config.has_metrics_listen()) {
    RETURN_IF_ERROR(CheckListenAddress(config.metrics_listen(), "metrics_listen"));
  }
  if (config.has_admin_tcp_listen()) {
    RETURN_IF_ERROR(CheckListenAddress(config.admin_tcp_listen(), "admin_tcp_listen"));
    if (config.insecure()) {
      return absl::InvalidArgumentError(
          "admin_tcp_listen: needs certificates; leave out insecure, or use the UNIX socket");
    }
  }
  if (config.insecure()) return CheckLoopback(ListenAddress(config));
  if (config.has_enroll_listen()) {
    RETURN_IF_ERROR(CheckListenAddress(config.enroll_listen(), "enroll_listen"));
  }
  if (config.has_certificate_hours() &&
      (config.certificate_hours() < 1 || config.certificate_hours() > kMaxCertificateHours)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "certificate_hours: ", config.certificate_hours(), " is not 1 to ", kMaxCertificateHours));
  }
  return absl::OkStatus();
}

// What needs no file: asked first, before a big model is loaded or anything is made.
absl::Status CheckFields(const v1::ServerConfig& config) {
  RETURN_IF_ERROR(MakeRunPlan(config, LoraSpec(), Digest()).status());
  RETURN_IF_ERROR(CheckListeners(config));
  const std::string& admin = config.admin_listen();
  if (config.has_admin_listen() && admin != "off" &&
      (!absl::StartsWith(admin, "unix:") || admin == "unix:")) {
    return absl::InvalidArgumentError(
        absl::StrCat("admin_listen: '", admin, "' is not unix:PATH or off"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Membership>> OpenMembership(const v1::ServerConfig& config,
                                                           const FederationServerOptions& options) {
  MembershipOptions membership;
  membership.dir = JoinPath(StateDirOf(config), "identity");
  membership.env = options.env;
  membership.clock = options.clock;
  if (config.has_certificate_hours()) {
    membership.node_lifetime = absl::Hours(config.certificate_hours());
  }
  return Membership::Open(std::move(membership));
}

// The port after that of `listen`, any if that is any.
absl::StatusOr<std::string> EnrollListen(const v1::ServerConfig& config) {
  if (config.has_enroll_listen()) return config.enroll_listen();
  ASSIGN_OR_RETURN(HostPort address, ListenHostPort(config));
  if (address.port != 0) ++address.port;
  return address.Text();
}

// What devices reach this machine by, as far as it can know.
absl::StatusOr<std::string> PublicHost(const v1::ServerConfig& config) {
  if (config.has_public_host()) return config.public_host();
  ASSIGN_OR_RETURN(const HostPort address, ListenHostPort(config));
  if (address.host != "0.0.0.0" && address.host != "[::]") return address.host;
  char name[256] = {};
  return std::string(gethostname(name, sizeof(name) - 1) == 0 ? name : "localhost");
}

}  // namespace

absl::Status CheckServerConfig(const v1::ServerConfig& config, Env& env) {
  RETURN_IF_ERROR(CheckFields(config));
  BaseModels models("", env);
  return SetUpRun(config, models, 1, env).status();
}

absl::StatusOr<std::unique_ptr<FederationServer>> FederationServer::Start(
    const v1::ServerConfig& config, const FederationServerOptions& options) {
  RETURN_IF_ERROR(CheckFields(config));
  std::unique_ptr<FederationServer> server(new FederationServer(options.clock));
  FederationOptions federation_options;
  federation_options.env = options.env;
  federation_options.clock = options.clock;
  federation_options.events = options.events;
  federation_options.log = &server->events_;
  federation_options.threads = options.threads;
  ASSIGN_OR_RETURN(server->federation_, Federation::Open(config, federation_options));
  if (FederationCore* const core = server->federation_->configured()) {
    server->core_id_ = core->plan().run_id;
  }
  GrpcServerOptions grpc_options;
  grpc_options.listen = ListenAddress(config);
  if (!config.insecure()) {
    ASSIGN_OR_RETURN(server->membership_, OpenMembership(config, options));
    grpc_options.membership = server->membership_.get();
    ASSIGN_OR_RETURN(grpc_options.enroll_listen, EnrollListen(config));
    grpc_options.manifest_key = server->federation_->signing_key().public_key();
  }
  ASSIGN_OR_RETURN(server->grpc_, GrpcServer::Start(*server->federation_, grpc_options));
  if (server->membership_ != nullptr) {
    ASSIGN_OR_RETURN(const std::string host, PublicHost(config));
    server->membership_->set_address(HostPort{host, server->grpc_->enroll_port()}.Text());
  }
  RETURN_IF_ERROR(server->ListenForOperators(config));
  if (config.has_admin_tcp_listen()) {
    ASSIGN_OR_RETURN(server->admin_tcp_, GrpcAdmin::ListenOnPort(server->MakeAdminContext(),
                                                                 config.admin_tcp_listen()));
  }
  RETURN_IF_ERROR(server->ListenForMetrics(config));
  return server;
}

AdminContext FederationServer::MakeAdminContext() {
  AdminContext context;
  context.federation = federation_.get();
  context.directory = &federation_->directory();
  context.events = &events_;
  context.membership = membership_.get();
  return context;
}

absl::Status FederationServer::ListenForMetrics(const v1::ServerConfig& config) {
  if (!config.has_metrics_listen()) return absl::OkStatus();
  auto metrics = std::make_shared<FleetMetrics>(MakeAdminContext(), StateDirOf(config));
  ASSIGN_OR_RETURN(metrics_, MetricsListener::Start(config.metrics_listen(), std::move(metrics)));
  return absl::OkStatus();
}

absl::Status FederationServer::ListenForOperators(const v1::ServerConfig& config) {
  std::string path = JoinPath(StateDirOf(config), kAdminSocket);
  if (config.has_admin_listen()) {
    if (config.admin_listen() == "off") return absl::OkStatus();
    path = std::string(absl::StripPrefix(config.admin_listen(), "unix:"));
  }
  absl::StatusOr<std::unique_ptr<GrpcAdmin>> admin =
      GrpcAdmin::ListenOnSocket(MakeAdminContext(), path);
  if (admin.ok()) {
    admin_ = *std::move(admin);
    admin_address_ = absl::StrCat("unix:", path);
    return absl::OkStatus();
  }
  // Devices can do without operators, unless these were asked for.
  if (config.has_admin_listen()) return admin.status();
  LogWarning(admin.status().message());
  return absl::OkStatus();
}

FederationServer::~FederationServer() { Shutdown(absl::ZeroDuration()); }

void FederationServer::Shutdown(absl::Duration grace) {
  metrics_.reset();
  if (admin_tcp_ != nullptr) admin_tcp_->Shutdown();
  if (admin_ != nullptr) admin_->Shutdown();
  if (grpc_ != nullptr) grpc_->Shutdown(grace);
  if (federation_ != nullptr) federation_->Stop();
}

}  // namespace fedge
