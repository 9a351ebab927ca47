#include "server/grpc_admin.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/service_type.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "server/admin_context.h"
#include "server/admin_service.h"
#include "server/grpc_gate.h"
#include "server/grpc_security.h"
#include "server/membership.h"

namespace fedge {
namespace {

constexpr size_t kMaxSocketPath = sizeof(sockaddr_un::sun_path) - 1;
constexpr int kMaxThreads = 64;  // calls at a time, streams included
constexpr int kMaxMessageBytes = 16 << 20;
constexpr auto kGrace = std::chrono::seconds(1);

// Operators' programs that are gone are let go; a stream that is open and answers pings stays.
void SetNetworkLimits(grpc::ServerBuilder& builder) {
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 8000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 4000);
}

}  // namespace

struct GrpcAdmin::State {
  explicit State(const AdminContext& context) : service(MakeAdminService(context, stopping)) {}

  // On `path`, or behind `gate`; a null server if it cannot.
  void Listen(const std::shared_ptr<grpc::ServerCredentials>& credentials) {
    grpc::ServerBuilder builder;
    std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> factories;
    factories.push_back(calls->MakeInterceptors());
    if (gate != nullptr) {
      factories.push_back(MakeWorkInterceptors(*gate));
      SetNetworkLimits(builder);
    } else {
      builder.AddListeningPort(absl::StrCat("unix:", path), credentials);
    }
    builder.experimental().SetInterceptorCreators(std::move(factories));
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.SetMaxSendMessageSize(kMaxMessageBytes);
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 8192);
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 5000);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    grpc::ResourceQuota quota("fedge-admin");
    quota.SetMaxThreads(kMaxThreads);
    builder.SetResourceQuota(quota);
    builder.RegisterService(service.get());
    server = StartBehind(gate.get(), builder, credentials);
  }

  std::string path;                      // of the socket; empty: TCP
  std::unique_ptr<ConnectionGate> gate;  // of TCP
  const std::shared_ptr<LiveCalls> calls = std::make_shared<LiveCalls>();
  std::atomic<bool> stopping{false};
  std::unique_ptr<grpc::Service> service;
  std::unique_ptr<grpc::Server> server;
  std::once_flag shut_down;
};

GrpcAdmin::GrpcAdmin(std::unique_ptr<State> state) : state_(std::move(state)) {}

GrpcAdmin::~GrpcAdmin() { Shutdown(); }

int GrpcAdmin::port() const { return state_->gate == nullptr ? 0 : state_->gate->port(); }

absl::StatusOr<std::unique_ptr<GrpcAdmin>> GrpcAdmin::ListenOnSocket(const AdminContext& context,
                                                                     const std::string& path) {
  if (path.size() > kMaxSocketPath) {
    return absl::InvalidArgumentError(absl::StrCat(
        "admin_listen: the path of a socket has at most ", kMaxSocketPath, " bytes, '", path,
        "' has ", path.size(), "; operators are not served; set admin_listen to a shorter one"));
  }
  auto state = std::make_unique<State>(context);
  state->path = path;
  // The mode must be right from the first moment on. Files that other threads make meanwhile are
  // only more private than usual.
  const mode_t before = umask(0177);
  state->Listen(grpc::InsecureServerCredentials());
  umask(before);
  if (state->server == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("admin_listen: cannot listen on unix:", path,
                     ": is the folder there, and writable? Choose another path with admin_listen"));
  }
  return std::unique_ptr<GrpcAdmin>(new GrpcAdmin(std::move(state)));
}

absl::StatusOr<std::unique_ptr<GrpcAdmin>> GrpcAdmin::ListenOnPort(const AdminContext& context,
                                                                   const std::string& address) {
  auto state = std::make_unique<State>(context);
  ASSIGN_OR_RETURN(state->gate, OpenGate(address, kAdminGate));
  context.membership->AddRevocationListener(
      [calls = std::weak_ptr<LiveCalls>(state->calls)](absl::string_view subject) {
        if (const std::shared_ptr<LiveCalls> live = calls.lock()) live->End(subject);
      });
  state->Listen(MakeTlsCredentials(ListenerKind::kAdmin, *context.membership));
  if (state->server == nullptr) return CannotListen(kAdminGate.field, address);
  return std::unique_ptr<GrpcAdmin>(new GrpcAdmin(std::move(state)));
}

void GrpcAdmin::Shutdown() {
  std::call_once(state_->shut_down, [&] {
    state_->stopping = true;
    if (state_->gate != nullptr) state_->gate->Stop();
    if (state_->server == nullptr) return;
    state_->server->Shutdown(std::chrono::system_clock::now() + kGrace);
    state_->server->Wait();
    if (!state_->path.empty()) unlink(state_->path.c_str());
  });
}

}  // namespace fedge
