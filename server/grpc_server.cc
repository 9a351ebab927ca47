#include "server/grpc_server.h"

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/resource_quota.h>

#include <chrono>
#include <cstdlib>
#include <mutex>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "server/federation_core.h"
#include "server/federation_service.h"
#include "server/work_queue.h"

namespace fedge {
namespace {

constexpr int kMaxMessageBytes = 2 << 20;
constexpr size_t kMaxTransportBytes = size_t{256} << 20;
constexpr char kServiceName[] = "fedge.v1.FederationService";

// gRPC's own lines would stand beside our one clear line; GRPC_VERBOSITY brings them back.
void QuietGrpcLog() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (std::getenv("GRPC_VERBOSITY") != nullptr) return;
    gpr_set_log_function([](gpr_log_func_args* args) {
      LogLine(LogLevel::kDebug, absl::StrCat("grpc: ", args->message));
    });
  });
}

// Peers that say nothing, stop in the middle, or vanish are let go after seconds; with gRPC's
// defaults they may stay for minutes or for ever.
void SetLimits(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 8192);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, 30'000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, 600'000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, 60'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 8000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 4000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  // Two servers on one port would share its connections silently.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  grpc::ResourceQuota quota("fedge-server");
  quota.Resize(kMaxTransportBytes);
  builder.SetResourceQuota(quota);
}

}  // namespace

absl::Status CheckListenAddress(absl::string_view listen) {
  const size_t colon = listen.rfind(':');
  int port = 0;
  if (colon == absl::string_view::npos || colon == 0 ||
      !absl::SimpleAtoi(listen.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("listen: '", listen, "' is not host:port with a port of 0 to 65535"));
  }
  return absl::OkStatus();
}

struct GrpcServer::State {
  State(FederationCore& core, const GrpcServerOptions& options)
      : queue(options.worker_threads, options.max_pending),
        service(MakeFederationService(core, queue)) {}

  WorkQueue queue;  // outlives the server: calls that end need it
  std::unique_ptr<grpc::Service> service;
  std::unique_ptr<grpc::Server> server;
  int port = 0;
  std::once_flag shut_down;
};

GrpcServer::GrpcServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

GrpcServer::~GrpcServer() { Shutdown(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(FederationCore& core,
                                                              const GrpcServerOptions& options) {
  QuietGrpcLog();
  if (!options.listen.empty()) RETURN_IF_ERROR(CheckListenAddress(options.listen));
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();

  auto state = std::make_unique<State>(core, options);
  grpc::ServerBuilder builder;
  SetLimits(builder);
  builder.RegisterService(state->service.get());
  if (!options.listen.empty()) {
    builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &state->port);
  }
  state->server = builder.BuildAndStart();
  if (state->server == nullptr || (!options.listen.empty() && state->port == 0)) {
    return absl::FailedPreconditionError(
        absl::StrCat("listen: cannot listen on ", options.listen,
                     ": the port is in use or the address is not this machine's; choose another "
                     "with --listen"));
  }
  state->server->GetHealthCheckService()->SetServingStatus(kServiceName, true);
  return std::unique_ptr<GrpcServer>(new GrpcServer(std::move(state)));
}

int GrpcServer::port() const { return state_->port; }

std::shared_ptr<grpc::Channel> GrpcServer::InProcessChannel() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  return state_->server->InProcessChannel(arguments);
}

void GrpcServer::Shutdown(absl::Duration grace) {
  std::call_once(state_->shut_down, [&] {
    state_->server->GetHealthCheckService()->Shutdown();
    state_->server->Shutdown(std::chrono::system_clock::now() +
                             std::chrono::milliseconds(absl::ToInt64Milliseconds(grace)));
    state_->server->Wait();
  });
}

}  // namespace fedge
