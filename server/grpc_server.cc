#include "server/grpc_server.h"

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/support/server_interceptor.h>

#include <chrono>
#include <cstdlib>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/address.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "server/connection_gate.h"
#include "server/device_requests.h"
#include "server/enrollment_service.h"
#include "server/federation_service.h"
#include "server/grpc_gate.h"
#include "server/grpc_security.h"
#include "server/membership.h"
#include "server/work_queue.h"

namespace fedge {
namespace {

constexpr int kMaxMessageBytes = 2 << 20;
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

// What one listener gives a connection.
struct Limits {
  const char* name;
  int message_bytes;
  size_t transport_bytes;  // of all connections
  int streams;
  int age_ms, grace_ms;  // of a connection; then of the calls that are still open
};
constexpr Limits kFleetLimits{"fedge-fleet", kMaxMessageBytes, size_t{256} << 20,
                              100,           600'000,          60'000};
// Anyone may come here, for one small call.
constexpr Limits kEnrollmentLimits{"fedge-enrollment", 16 << 10, size_t{32} << 20, 2, 8000, 4000};

// Peers that say nothing, stop in the middle, or vanish are let go after seconds; with gRPC's
// defaults they may stay for minutes or for ever.
void SetLimits(const Limits& limits, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(limits.message_bytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 8192);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, limits.streams);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, limits.age_ms);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, limits.grace_ms);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 8000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 4000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  // Two servers on one port would share its connections silently.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  grpc::ResourceQuota quota(limits.name);
  quota.Resize(limits.transport_bytes);
  builder.SetResourceQuota(quota);
}

}  // namespace

absl::Status CheckListenAddress(absl::string_view listen, absl::string_view field) {
  return ParseHostPort(listen, absl::StrCat(field, ":"), 0).status();
}

absl::Status CheckLoopback(absl::string_view listen) {
  ASSIGN_OR_RETURN(const HostPort address, ParseHostPort(listen, "listen:", 0));
  if (IsLoopback(address.host)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("listen: ", listen, ": --insecure is for this machine alone (127.0.0.1, [::1] ",
                   "or localhost); without it, devices join by token"));
}

struct GrpcServer::State {
  State(DeviceRequests& device_requests, const GrpcServerOptions& chosen)
      : requests(device_requests),
        options(chosen),
        queue(options.worker_threads, options.max_pending),
        calls(std::make_shared<LiveCalls>()) {}

  absl::Status Start() {
    if (options.membership == nullptr) return StartInsecure();
    ASSIGN_OR_RETURN(gate, OpenGate(options.listen, kFleetGate));
    ASSIGN_OR_RETURN(enroll_gate, OpenGate(options.enroll_listen, kEnrollmentGate));
    if (gate != nullptr) port = gate->port();
    if (enroll_gate != nullptr) enroll_port = enroll_gate->port();
    options.membership->AddRevocationListener(
        [calls = std::weak_ptr<LiveCalls>(calls)](absl::string_view subject) {
          if (const std::shared_ptr<LiveCalls> live = calls.lock()) live->End(subject);
        });
    RETURN_IF_ERROR(StartFleet());
    return enroll_gate == nullptr ? absl::OkStatus() : StartEnrollment();
  }

  absl::Status StartInsecure() {
    grpc::ServerBuilder builder;
    SetLimits(kFleetLimits, builder);
    service = MakeFederationService(requests, queue, nullptr);
    builder.RegisterService(service.get());
    if (!options.listen.empty()) {
      builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port);
    }
    server = builder.BuildAndStart();
    if (server == nullptr || (!options.listen.empty() && port == 0)) {
      return CannotListen(kFleetGate.field, options.listen);
    }
    server->GetHealthCheckService()->SetServingStatus(kServiceName, true);
    return absl::OkStatus();
  }

  absl::Status StartFleet() {
    grpc::ServerBuilder builder;
    SetLimits(kFleetLimits, builder);
    service = MakeFederationService(requests, queue, gate.get());
    identity = MakeIdentityService(*options.membership, queue, gate.get());
    builder.RegisterService(service.get());
    builder.RegisterService(identity.get());
    std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> factories;
    factories.push_back(calls->MakeInterceptors());
    builder.experimental().SetInterceptorCreators(std::move(factories));
    server = StartBehind(gate.get(), builder,
                         MakeTlsCredentials(ListenerKind::kFleet, *options.membership));
    if (server == nullptr) return absl::InternalError("listen: gRPC does not start");
    server->GetHealthCheckService()->SetServingStatus(kServiceName, true);
    return absl::OkStatus();
  }

  absl::Status StartEnrollment() {
    grpc::ServerBuilder builder;
    SetLimits(kEnrollmentLimits, builder);
    enrollment = MakeEnrollmentService(
        *options.membership, queue, options.manifest_key, [this] { return port; },
        enroll_gate.get());
    builder.RegisterService(enrollment.get());
    enroll_server = StartBehind(enroll_gate.get(), builder,
                                MakeTlsCredentials(ListenerKind::kEnrollment, *options.membership));
    if (enroll_server == nullptr) {
      return absl::InternalError("enroll_listen: gRPC does not start");
    }
    return absl::OkStatus();
  }

  DeviceRequests& requests;
  const GrpcServerOptions options;
  WorkQueue queue;  // outlives the servers, as what follows: calls that end need it
  const std::shared_ptr<LiveCalls> calls;
  std::unique_ptr<ConnectionGate> gate, enroll_gate;
  std::unique_ptr<grpc::Service> service, identity, enrollment;
  std::unique_ptr<grpc::Server> server, enroll_server;
  int port = 0;
  int enroll_port = 0;
  std::once_flag shut_down;
};

GrpcServer::GrpcServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

GrpcServer::~GrpcServer() { Shutdown(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(DeviceRequests& requests,
                                                              const GrpcServerOptions& options) {
  QuietGrpcLog();
  if (!options.listen.empty()) {
    RETURN_IF_ERROR(CheckListenAddress(options.listen));
    if (options.membership == nullptr) RETURN_IF_ERROR(CheckLoopback(options.listen));
  }
  if (!options.enroll_listen.empty()) {
    RETURN_IF_ERROR(CheckListenAddress(options.enroll_listen, "enroll_listen"));
  }
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  // From here on the destructor ends what runs, in order.
  std::unique_ptr<GrpcServer> server(new GrpcServer(std::make_unique<State>(requests, options)));
  RETURN_IF_ERROR(server->state_->Start());
  return server;
}

int GrpcServer::port() const { return state_->port; }
int GrpcServer::enroll_port() const { return state_->enroll_port; }

std::shared_ptr<grpc::Channel> GrpcServer::InProcessChannel() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  return state_->server->InProcessChannel(arguments);
}

void GrpcServer::Shutdown(absl::Duration grace) {
  std::call_once(state_->shut_down, [&] {
    const auto deadline = std::chrono::system_clock::now() +
                          std::chrono::milliseconds(absl::ToInt64Milliseconds(grace));
    for (const auto& gate : {state_->gate.get(), state_->enroll_gate.get()}) {
      if (gate != nullptr) gate->Stop();
    }
    if (state_->server == nullptr) return;  // it did not start
    state_->server->GetHealthCheckService()->Shutdown();
    if (state_->enroll_server != nullptr) state_->enroll_server->Shutdown(deadline);
    state_->server->Shutdown(deadline);
    if (state_->enroll_server != nullptr) state_->enroll_server->Wait();
    state_->server->Wait();
  });
}

}  // namespace fedge
