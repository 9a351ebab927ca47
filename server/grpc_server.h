// The gRPC transport: the fleet's listener and the one for enrolment, with the settings that keep
// slow or hostile peers from holding the server. Operators have a listener of their own.
#ifndef FEDGE_SERVER_GRPC_SERVER_H_
#define FEDGE_SERVER_GRPC_SERVER_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace grpc {
class Channel;
}  // namespace grpc

namespace fedge {

class DeviceRequests;
class Membership;

struct GrpcServerOptions {
  // "host:port"; port 0 picks a free one; empty: no port, in-process channels only.
  std::string listen = "127.0.0.1:9480";
  // With it, nodes need a certificate of the federation on `listen`, and get one on
  // `enroll_listen`. Without: plaintext, nodes are who they say, and only this machine may call.
  Membership* membership = nullptr;
  std::string enroll_listen = {};
  std::string manifest_key = {};  // what who joins is told to trust; empty: nothing
  int worker_threads = 4;         // for blocking work
  size_t max_pending = 20'000;    // requests waiting for a worker; more are turned away
};

// InvalidArgument unless `listen` is "host:port"; messages begin with `field`.
absl::Status CheckListenAddress(absl::string_view listen, absl::string_view field = "listen");
// InvalidArgument unless only programs of this machine reach `listen`.
absl::Status CheckLoopback(absl::string_view listen);

// Thread-safe.
class GrpcServer {
 public:
  // InvalidArgument: no "host:port", or plaintext beyond this machine. FailedPrecondition: the port
  // cannot be listened on (in use, not allowed, no such address). `requests` must outlive the
  // server.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(DeviceRequests& requests,
                                                           const GrpcServerOptions& options);
  ~GrpcServer();  // Shutdown(0)

  int port() const;         // 0 when it listens on none
  int enroll_port() const;  // 0 without enrolment
  std::shared_ptr<grpc::Channel> InProcessChannel();
  // No new calls; open ones get `grace` to end, then are cancelled. Returns when all have ended.
  void Shutdown(absl::Duration grace);

 private:
  struct State;
  explicit GrpcServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_GRPC_SERVER_H_
