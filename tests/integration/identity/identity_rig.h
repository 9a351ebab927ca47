// A server with a federation of its own on 127.0.0.1, and devices that join it.
#ifndef FEDGE_TESTS_INTEGRATION_IDENTITY_IDENTITY_RIG_H_
#define FEDGE_TESTS_INTEGRATION_IDENTITY_IDENTITY_RIG_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/node_identity.h"
#include "client/server_link.h"
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
  }
  void Restart() {
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

  const std::string manifest_key = std::string(32, 'k');
  TemporaryDir dir;
  ShiftedClock clock;         // the server's
  ShiftedClock device_clock;  // the devices'
  FederationRig federation;
  std::unique_ptr<Membership> membership;
  std::unique_ptr<GrpcServer> server;

 private:
  const absl::Duration node_lifetime_;
  int fleet_port_ = 0;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_INTEGRATION_IDENTITY_IDENTITY_RIG_H_
