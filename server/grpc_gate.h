// gRPC servers behind a ConnectionGate: the listeners that strangers reach.
#ifndef FEDGE_SERVER_GRPC_GATE_H_
#define FEDGE_SERVER_GRPC_GATE_H_

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/server_interceptor.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/connection_gate.h"

namespace fedge {

// One listener: its field in the configuration, its share of the process's file descriptors.
// Each has its own: strangers who fill the one where devices join keep no node from its work.
struct GateKind {
  const char* field;
  double descriptors;
  bool calls_pay;
};
inline constexpr GateKind kFleetGate{"listen", 0.5, true};
// A call costs a stranger nothing there, so it pays for nothing.
inline constexpr GateKind kEnrollmentGate{"enroll_listen", 0.125, false};
inline constexpr GateKind kAdminGate{"admin_tcp_listen", 0.0625, true};

// FailedPrecondition, with a remedy.
absl::Status CannotListen(absl::string_view field, absl::string_view listen);

// Listens on "host:port"; null for an empty address. FailedPrecondition: it cannot be listened on.
absl::StatusOr<std::unique_ptr<ConnectionGate>> OpenGate(const std::string& listen,
                                                         const GateKind& kind);

// The running server, behind `gate`, which must outlive it, unless that is null; null: gRPC does
// not start.
std::unique_ptr<grpc::Server> StartBehind(
    ConnectionGate* gate, grpc::ServerBuilder& builder,
    const std::shared_ptr<grpc::ServerCredentials>& credentials);

// For ServerBuilder: each call is ConnectionGate::Work from its first message to its end, a stream
// for as long as it is open. For services that do not say so themselves. The gate must outlive the
// server.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeWorkInterceptors(
    ConnectionGate& gate);

}  // namespace fedge

#endif  // FEDGE_SERVER_GRPC_GATE_H_
