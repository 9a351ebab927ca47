// The gRPC transport: FederationService, health and reflection on one port, with the settings that
// keep slow or hostile peers from holding the server.
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

class FederationCore;

struct GrpcServerOptions {
  // "host:port"; port 0 picks a free one; empty: no port, in-process channels only. Plaintext.
  std::string listen = "127.0.0.1:9480";
  int worker_threads = 4;       // for blocking work
  size_t max_pending = 20'000;  // requests waiting for a worker; more are turned away
};

// InvalidArgument unless `listen` is "host:port".
absl::Status CheckListenAddress(absl::string_view listen);

// Thread-safe.
class GrpcServer {
 public:
  // InvalidArgument: no "host:port". FailedPrecondition: the port cannot be listened on (in use,
  // not allowed, no such address). `core` must outlive the server.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(FederationCore& core,
                                                           const GrpcServerOptions& options);
  ~GrpcServer();  // Shutdown(0)

  int port() const;  // 0 when it listens on none
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
