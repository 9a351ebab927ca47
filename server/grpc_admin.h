// AdminService: on a UNIX socket that only the server's user may open, and on TCP for operators
// with certificates.
#ifndef FEDGE_SERVER_GRPC_ADMIN_H_
#define FEDGE_SERVER_GRPC_ADMIN_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace fedge {

struct AdminContext;

// One listener. Thread-safe.
class GrpcAdmin {
 public:
  // A socket left by a server that died is replaced; the state folder's lock keeps two servers
  // apart. InvalidArgument: the path is too long for a socket. FailedPrecondition: it cannot be
  // listened on. What `context` points to must outlive this object.
  static absl::StatusOr<std::unique_ptr<GrpcAdmin>> ListenOnSocket(const AdminContext& context,
                                                                   const std::string& path);
  // TLS, for who shows an operator's certificate (access_policy.h); `context` has a membership.
  // FailedPrecondition: `address` ("host:port") cannot be listened on.
  static absl::StatusOr<std::unique_ptr<GrpcAdmin>> ListenOnPort(const AdminContext& context,
                                                                 const std::string& address);
  ~GrpcAdmin();  // Shutdown

  int port() const;  // 0: a socket

  // Open streams end, other calls are answered; then the socket goes.
  void Shutdown();

 private:
  struct State;
  explicit GrpcAdmin(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_GRPC_ADMIN_H_
