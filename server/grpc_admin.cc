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

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "server/admin_context.h"
#include "server/admin_service.h"

namespace fedge {
namespace {

constexpr size_t kMaxSocketPath = sizeof(sockaddr_un::sun_path) - 1;
constexpr int kMaxThreads = 64;  // calls at a time, streams included
constexpr int kMaxMessageBytes = 16 << 20;
constexpr auto kGrace = std::chrono::seconds(1);

}  // namespace

struct GrpcAdmin::State {
  State(const AdminContext& context, const std::string& socket)
      : path(socket), service(MakeAdminService(context, stopping)) {}

  const std::string path;
  std::atomic<bool> stopping{false};
  std::unique_ptr<grpc::Service> service;
  std::unique_ptr<grpc::Server> server;
  std::once_flag shut_down;
};

GrpcAdmin::GrpcAdmin(std::unique_ptr<State> state) : state_(std::move(state)) {}

GrpcAdmin::~GrpcAdmin() { Shutdown(); }

absl::StatusOr<std::unique_ptr<GrpcAdmin>> GrpcAdmin::Start(const AdminContext& context,
                                                            const std::string& path) {
  if (path.size() > kMaxSocketPath) {
    return absl::InvalidArgumentError(absl::StrCat(
        "admin_listen: the path of a socket has at most ", kMaxSocketPath, " bytes, '", path,
        "' has ", path.size(), "; operators are not served; set admin_listen to a shorter one"));
  }
  auto state = std::make_unique<State>(context, path);
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  grpc::ResourceQuota quota("fedge-admin");
  quota.SetMaxThreads(kMaxThreads);
  builder.SetResourceQuota(quota);
  builder.RegisterService(state->service.get());
  builder.AddListeningPort(absl::StrCat("unix:", path), grpc::InsecureServerCredentials());
  // The mode must be right from the first moment on. Files that other threads make meanwhile are
  // only more private than usual.
  const mode_t before = umask(0177);
  state->server = builder.BuildAndStart();
  umask(before);
  if (state->server == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("admin_listen: cannot listen on unix:", path,
                     ": is the folder there, and writable? Choose another path with admin_listen"));
  }
  return std::unique_ptr<GrpcAdmin>(new GrpcAdmin(std::move(state)));
}

void GrpcAdmin::Shutdown() {
  std::call_once(state_->shut_down, [&] {
    state_->stopping = true;
    state_->server->Shutdown(std::chrono::system_clock::now() + kGrace);
    state_->server->Wait();
    unlink(state_->path.c_str());
  });
}

}  // namespace fedge
