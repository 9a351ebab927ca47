// A server with a federation of its own on 127.0.0.1, and devices that join it.
#ifndef FEDGE_TESTS_INTEGRATION_IDENTITY_IDENTITY_RIG_H_
#define FEDGE_TESTS_INTEGRATION_IDENTITY_IDENTITY_RIG_H_

#include <grpcpp/grpcpp.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/node_identity.h"
#include "client/server_link.h"
#include "server/admin_context.h"
#include "server/event_log.h"
#include "server/grpc_admin.h"
#include "server/grpc_server.h"
#include "server/membership.h"
#include "tests/server/federation_test_rig.h"

namespace fedge::testing {

// Real time, moved: TLS itself looks at the machine's clock.
class ShiftedClock : public Clock {
 public:
  absl::Time Now() override { return Real()->Now() + shift; }
  absl::Duration Monotonic() override { return Real()->Monotonic() + shift; }
  void Sleep(absl::Duration duration) override { Real()->Sleep(duration); }
  absl::Duration shift = absl::ZeroDuration();
};

template <typename T>
T Get(absl::StatusOr<T> result) {
  FEDGE_CHECK(result.ok(), result.status().message());
  return *std::move(result);
}

class IdentityRig {
 public:
  explicit IdentityRig(absl::Duration node_lifetime = absl::Hours(24 * 7))
      : node_lifetime_(node_lifetime) {
    Start();
  }

  void Start() {
    membership = Get(Membership::Open({.dir = dir.File("identity"),
                                       .node_lifetime = node_lifetime_,
                                       .env = Env::Posix(),
                                       .clock = &clock}));
    GrpcServerOptions options;
    options.listen = absl::StrCat("127.0.0.1:", fleet_port_);
    options.enroll_listen = "127.0.0.1:0";
    options.membership = membership.get();
    options.manifest_key = manifest_key;
    server = Get(GrpcServer::Start(*federation.core, options));
    fleet_port_ = server->port();
    membership->set_address(absl::StrCat("127.0.0.1:", server->enroll_port()));
    AdminContext context;  // of what operators ask, logs and tokens are there
    context.events = &events;
    context.membership = membership.get();
    admin = Get(GrpcAdmin::ListenOnPort(context, "127.0.0.1:0"));
  }
  void Restart() {
    admin.reset();
    server.reset();
    membership.reset();
    Start();
  }

  std::string Token(TokenRequest request = {}) {
    TokenRecord record;
    return Get(membership->CreateToken(request, &record));
  }
  absl::StatusOr<JoinedNode> TryJoin(const std::string& node, const std::string& token) {
    return JoinFederation({.url = "", .token = token, .node_id = node, .state_dir = dir.File(node)},
                          *Env::Posix(), device_clock);
  }
  JoinedNode Join(const std::string& node) { return Get(TryJoin(node, Token())); }
  NodeIdentity Identity(const std::string& node) {
    return Get(IdentityFolder(dir.File(node), Env::Posix()).Load());
  }
  absl::StatusOr<ServerLink> TryLink(const std::string& node) {
    return OpenServerLink({.server = "", .state_dir = dir.File(node), .node_id = "", .grpc = {}},
                          *Env::Posix(), device_clock);
  }
  ServerLink Link(const std::string& node) { return Get(TryLink(node)); }
  absl::StatusOr<v1::CheckInResponse> CheckIn(const ServerLink& link, const std::string& node) {
    return link.link->CheckIn(federation.CheckInRequest(node));
  }

  // Who may look.
  NodeIdentity Operator() {
    PrivateKey key = Get(PrivateKey::Generate());
    Certificate certificate = Get(membership->authority().Issue(
        key.public_key(), PeerKind::kAdminRead, "ops", absl::Hours(1)));
    return {std::move(key), std::move(certificate), {}, ""};
  }
  std::shared_ptr<grpc::Channel> OperatorChannel() {
    namespace tls = grpc::experimental;
    const NodeIdentity identity = Operator();
    tls::TlsChannelCredentialsOptions options;
    options.set_verify_server_certs(false);
    options.set_check_call_host(false);
    options.set_certificate_verifier(std::make_shared<tls::NoOpCertificateVerifier>());
    options.set_certificate_provider(std::make_shared<tls::StaticDataCertificateProvider>(
        std::vector<tls::IdentityKeyCertPair>{{identity.key.Pem(), identity.certificate.Pem()}}));
    options.watch_identity_key_cert_pairs();
    return grpc::CreateChannel(absl::StrCat("127.0.0.1:", admin->port()),
                               tls::TlsCredentials(options));
  }

  const std::string manifest_key = std::string(32, 'k');
  TemporaryDir dir;
  ShiftedClock clock;         // the server's
  ShiftedClock device_clock;  // the devices'
  FederationRig federation;
  std::unique_ptr<Membership> membership;
  std::unique_ptr<GrpcServer> server;
  EventLog events{Clock::Real()};
  std::unique_ptr<GrpcAdmin> admin;  // operators, over TCP

 private:
  const absl::Duration node_lifetime_;
  int fleet_port_ = 0;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_INTEGRATION_IDENTITY_IDENTITY_RIG_H_
