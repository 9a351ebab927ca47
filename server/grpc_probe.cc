#include "server/grpc_probe.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <chrono>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {

namespace {

// Whoever answers: what it says is not secret and decides nothing.
std::shared_ptr<grpc::ChannelCredentials> AnyTls() {
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_verify_server_certs(false);
  options.set_check_call_host(false);
  options.set_certificate_verifier(std::make_shared<grpc::experimental::NoOpCertificateVerifier>());
  return grpc::experimental::TlsCredentials(options);
}

absl::Status Probe(const std::string& address,
                   const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                   absl::Duration timeout) {
  const auto deadline = std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout);
  grpc::GenericStub stub(grpc::CreateChannel(address, credentials));
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

}  // namespace

absl::Status ProbeHealth(const std::string& address, absl::Duration timeout) {
  const absl::Status plain = Probe(address, grpc::InsecureChannelCredentials(), timeout);
  if (plain.ok() || Probe(address, AnyTls(), timeout).ok()) return absl::OkStatus();
  return plain;
}

}  // namespace fedge
