#include "tools/fedge/grpc_admin_link.h"

#include <grpc/support/log.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/grpc_identity.h"
#include "client/node_identity.h"
#include "common/base/env.h"
#include "common/base/status.h"
#include "fedge/v1/admin.grpc.pb.h"

namespace fedge {
namespace {

using std::chrono::system_clock;

constexpr auto kConnect = std::chrono::seconds(3);
constexpr auto kCall = std::chrono::minutes(10);  // a new run may load a large model
constexpr auto kLook = std::chrono::milliseconds(50);
constexpr int kMaxMessageBytes = 16 << 20;

absl::Status Away(const std::string& server) {
  return absl::UnavailableError(
      absl::StrCat("no server answers at ", server,
                   absl::StartsWith(server, "unix:")
                       ? "; start fedge-server, or name its socket with --server "
                         "unix:STATE_DIR/admin.sock (only "
                         "the user it runs as may open it)"
                       : "; is admin_tcp_listen set there, and is the certificate of "
                         "--identity an operator's, still valid?"));
}

// The file holds the key, the operator's certificate, then the authorities'.
absl::StatusOr<NodeIdentity> LoadIdentity(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string pem, ReadPrivateFile(path, *Env::Posix()));
  absl::StatusOr<PrivateKey> key = PrivateKey::FromPem(pem);
  absl::StatusOr<std::vector<Certificate>> certificates = Certificate::ListFromPem(pem);
  if (!key.ok() || !certificates.ok() || certificates->size() < 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": not a file of `fedge operator certify` (key, certificate, authorities)"));
  }
  return NodeIdentity{
      *std::move(key), certificates->front(), {certificates->begin() + 1, certificates->end()}, ""};
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> CredentialsFor(
    const ServerOption& server, std::shared_ptr<ServerCheck> check) {
  if (absl::StartsWith(server.address, "unix:")) return grpc::InsecureChannelCredentials();
  if (server.identity.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--server ", server.address,
                     ": over the network the server wants a certificate: --identity ",
                     "FILE (`fedge operator certify` on the server makes one), or use --server "
                     "unix:PATH there"));
  }
  ASSIGN_OR_RETURN(const NodeIdentity identity, LoadIdentity(server.identity));
  return MakeNodeCredentials(identity, std::move(check));
}

absl::Status ToStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

// Ends a call when somebody asks for it: reading blocks.
class Canceller {
 public:
  Canceller(grpc::ClientContext& context, const std::function<bool()>& interrupted) {
    if (!interrupted) return;
    thread_ = std::thread([this, &context, &interrupted] {
      while (!done_ && !interrupted()) std::this_thread::sleep_for(kLook);
      if (!done_) context.TryCancel();
    });
  }
  ~Canceller() {
    done_ = true;
    if (thread_.joinable()) thread_.join();
  }

 private:
  std::atomic<bool> done_{false};
  std::thread thread_;
};

template <typename Message>
absl::Status ReadAll(grpc::ClientContext& context, grpc::ClientReader<Message>& reader,
                     absl::FunctionRef<bool(const Message&)> take,
                     const std::function<bool()>& interrupted) {
  Message message;
  {
    const Canceller canceller(context, interrupted);
    while (reader.Read(&message)) {
      if (!take(message)) context.TryCancel();
    }
  }
  const grpc::Status status = reader.Finish();
  if (status.error_code() == grpc::StatusCode::CANCELLED) return absl::OkStatus();
  return ToStatus(status);
}

}  // namespace

struct AdminLink::State {
  std::unique_ptr<v1::AdminService::Stub> stub;

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::AdminService::Stub::*method)(grpc::ClientContext*,
                                                                               const Request&,
                                                                               Response*),
                                const Request& request) {
    grpc::ClientContext context;
    context.set_deadline(system_clock::now() + kCall);
    Response response;
    RETURN_IF_ERROR(ToStatus((stub.get()->*method)(&context, request, &response)));
    return response;
  }
};

AdminLink::AdminLink(std::unique_ptr<State> state) : state_(std::move(state)) {}

AdminLink::~AdminLink() = default;

absl::StatusOr<std::unique_ptr<AdminLink>> AdminLink::Connect(const ServerOption& server) {
  gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
  auto check = std::make_shared<ServerCheck>();
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ChannelCredentials> credentials,
                   CredentialsFor(server, check));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  const std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(server.address, credentials, arguments);
  const auto deadline = system_clock::now() + kConnect;
  for (;;) {
    const grpc_connectivity_state now = channel->GetState(/*try_to_connect=*/true);
    if (now == GRPC_CHANNEL_READY) break;
    const bool failed = now == GRPC_CHANNEL_TRANSIENT_FAILURE || now == GRPC_CHANNEL_SHUTDOWN;
    if (!failed && channel->WaitForStateChange(now, deadline)) continue;
    const absl::Status found = check->Get();  // of who is there
    return found.ok() || absl::IsUnknown(found) ? Away(server.address) : found;
  }
  auto state = std::make_unique<State>();
  state->stub = v1::AdminService::NewStub(channel);
  return std::unique_ptr<AdminLink>(new AdminLink(std::move(state)));
}

#define FEDGE_ADMIN_CALL(Name, Request, Response)                                           \
  absl::StatusOr<v1::Response> AdminLink::Name(const v1::Request& request) {                \
    return state_->Call<v1::Request, v1::Response>(&v1::AdminService::Stub::Name, request); \
  }
FEDGE_ADMIN_CALL(RunCreate, RunCreateRequest, RunCreateResponse)
FEDGE_ADMIN_CALL(RunClone, RunCloneRequest, RunCreateResponse)
FEDGE_ADMIN_CALL(RunList, RunListRequest, RunListResponse)
FEDGE_ADMIN_CALL(RunShow, RunShowRequest, RunShowResponse)
FEDGE_ADMIN_CALL(RunPause, RunRef, RunInfo)
FEDGE_ADMIN_CALL(RunResume, RunRef, RunInfo)
FEDGE_ADMIN_CALL(RunStop, RunRef, RunInfo)
FEDGE_ADMIN_CALL(NodeList, NodeListRequest, NodeListResponse)
FEDGE_ADMIN_CALL(NodeShow, NodeShowRequest, NodeShowResponse)
FEDGE_ADMIN_CALL(ModelList, ModelRef, ModelListResponse)
FEDGE_ADMIN_CALL(ModelShow, ModelRef, ModelInfo)
FEDGE_ADMIN_CALL(ModelPromote, ModelDecision, ModelInfo)
FEDGE_ADMIN_CALL(ModelRollback, ModelDecision, ModelInfo)
FEDGE_ADMIN_CALL(AuditList, AuditListRequest, AuditListResponse)
FEDGE_ADMIN_CALL(NodeRevoke, NodeRevokeRequest, NodeRevokeResponse)
FEDGE_ADMIN_CALL(TokenCreate, TokenCreateRequest, TokenCreateResponse)
FEDGE_ADMIN_CALL(TokenList, TokenListRequest, TokenListResponse)
FEDGE_ADMIN_CALL(TokenRevoke, TokenRevokeRequest, TokenRevokeResponse)
FEDGE_ADMIN_CALL(AuthorityRotate, AuthorityRotateRequest, AuthorityRotateResponse)
FEDGE_ADMIN_CALL(OperatorCertify, OperatorCertifyRequest, OperatorCertifyResponse)
FEDGE_ADMIN_CALL(OperatorRevoke, OperatorRevokeRequest, OperatorRevokeResponse)
FEDGE_ADMIN_CALL(OperatorList, OperatorListRequest, OperatorListResponse)
#undef FEDGE_ADMIN_CALL

absl::Status AdminLink::ModelFetch(const v1::ModelRef& request,
                                   absl::FunctionRef<bool(const v1::ModelPart&)> take) {
  grpc::ClientContext context;
  context.set_deadline(system_clock::now() + kCall);
  const auto reader = state_->stub->ModelFetch(&context, request);
  return ReadAll(context, *reader, take, {});
}

absl::Status AdminLink::RunWatch(const v1::RunRef& request,
                                 absl::FunctionRef<bool(const v1::RunInfo&)> take,
                                 const std::function<bool()>& interrupted) {
  grpc::ClientContext context;
  const auto reader = state_->stub->RunWatch(&context, request);
  return ReadAll(context, *reader, take, interrupted);
}

absl::Status AdminLink::Logs(const v1::LogsRequest& request,
                             absl::FunctionRef<bool(const v1::Event&)> take,
                             const std::function<bool()>& interrupted) {
  grpc::ClientContext context;
  const auto reader = state_->stub->Logs(&context, request);
  return ReadAll(context, *reader, take, interrupted);
}

}  // namespace fedge
