#include "tests/robustness/toy_link.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "client/grpc_link.h"
#include "common/base/status.h"

namespace fedge::robustness {
namespace {

constexpr uint64_t kChunkBytes = 512;  // several chunks an update

}  // namespace

Journal::Journal(const std::string& path)
    : fd_(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644)) {
  FEDGE_CHECK(fd_ >= 0, path);
}

Journal::~Journal() { close(fd_); }

void Journal::Write(const std::string& line) {
  FEDGE_CHECK(write(fd_, line.data(), line.size()) == static_cast<ssize_t>(line.size()));
}

std::unique_ptr<FederationLink> ConnectTo(int port) {
  // gRPC moves a connection on while calls wait for it, and otherwise every 5 s: calls that fail at
  // once and are repeated would wait that long for a server that is back.
  setenv("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "20", 1);
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 10);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 20);
  const std::string address = absl::StrCat("127.0.0.1:", port);
  GrpcLinkOptions options;
  options.call_deadline = absl::Seconds(2);
  options.transfer_deadline = absl::Seconds(5);
  options.chunk_bytes = kChunkBytes;
  return MakeGrpcLink(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments), address,
      options);
}

}  // namespace fedge::robustness
