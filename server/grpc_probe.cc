#include "server/grpc_probe.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {

absl::Status ProbeHealth(const std::string& address, absl::Duration timeout) {
  const auto deadline = std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout);
  grpc::GenericStub stub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(deadline);
  grpc::CompletionQueue queue;
  // Debian ships no generated code for grpc.health.v1: an empty HealthCheckRequest (the whole
  // server) is no bytes, and SERVING is field 1 = 1.
  grpc::ByteBuffer request, response;
  grpc::Slice empty;
  request = grpc::ByteBuffer(&empty, 1);
  grpc::Status status;
  const auto call =
      stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", request, &queue);
  call->StartCall();
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  queue.Shutdown();
  if (!status.ok()) {
    return absl::UnavailableError(absl::StrCat(address, ": ", status.error_message()));
  }
  grpc::Slice body;
  if (!response.DumpToSingleSlice(&body).ok()) return absl::InternalError("unreadable answer");
  constexpr absl::string_view kServing("\x08\x01", 2);
  if (absl::string_view(reinterpret_cast<const char*>(body.begin()), body.size()) != kServing) {
    return absl::UnavailableError(absl::StrCat(address, ": answers, but does not serve"));
  }
  return absl::OkStatus();
}

}  // namespace fedge
