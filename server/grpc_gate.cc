#include "server/grpc_gate.h"

#include <grpcpp/server_context.h>

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace fedge {
namespace {

class WorkInterceptor : public grpc::experimental::Interceptor {
 public:
  WorkInterceptor(ConnectionGate& gate, grpc::experimental::ServerRpcInfo* info)
      : gate_(gate), info_(info) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    using grpc::experimental::InterceptionHookPoints;
    if (!work_ && methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_MESSAGE)) {
      work_.emplace(&gate_, info_->server_context()->peer());
    }
    methods->Proceed();
  }

 private:
  ConnectionGate& gate_;
  grpc::experimental::ServerRpcInfo* const info_;
  std::optional<ConnectionGate::Work> work_;
};

class WorkInterceptors : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit WorkInterceptors(ConnectionGate& gate) : gate_(gate) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    return new WorkInterceptor(gate_, info);
  }

 private:
  ConnectionGate& gate_;
};

}  // namespace

absl::Status CannotListen(absl::string_view field, absl::string_view listen) {
  return absl::FailedPreconditionError(
      absl::StrCat(field, ": cannot listen on ", listen,
                   ": the port is in use or the address is not this machine's; choose another"));
}

absl::StatusOr<std::unique_ptr<ConnectionGate>> OpenGate(const std::string& listen,
                                                         const GateKind& kind) {
  if (listen.empty()) return nullptr;
  ConnectionGateOptions options;
  options.listen = listen;
  options.name = kind.field;
  options.calls_pay = kind.calls_pay;
  options.max_connections = ConnectionsWithin(kind.descriptors);
  absl::StatusOr<std::unique_ptr<ConnectionGate>> gate = ConnectionGate::Listen(std::move(options));
  if (!gate.ok()) return CannotListen(kind.field, listen);
  return gate;
}

std::unique_ptr<grpc::Server> StartBehind(
    ConnectionGate* gate, grpc::ServerBuilder& builder,
    const std::shared_ptr<grpc::ServerCredentials>& credentials) {
  using Builder = grpc::ServerBuilder::experimental_type;
  std::shared_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor;
  if (gate != nullptr) {
    acceptor = builder.experimental().AddExternalConnectionAcceptor(
        Builder::ExternalConnectionType::FROM_FD, credentials);
  }
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (gate == nullptr || server == nullptr) return server;
  gate->Start([acceptor](int fd) {
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
    connection.fd = fd;
    acceptor->HandleNewConnection(&connection);
  });
  return server;
}

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeWorkInterceptors(
    ConnectionGate& gate) {
  return std::make_unique<WorkInterceptors>(gate);
}

}  // namespace fedge
