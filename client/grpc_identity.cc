#include "client/grpc_identity.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <chrono>
#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "fedge/v1/identity.grpc.pb.h"

namespace fedge {
namespace {

using grpc::experimental::TlsCustomVerificationCheckRequest;

constexpr std::chrono::seconds kCallDeadline(20);

// Whether a server's certificate (the first) is good; the rest is what it sent along.
using ChainCheck = std::function<absl::Status(const std::vector<Certificate>& chain)>;

absl::string_view View(grpc::string_ref text) { return {text.data(), text.size()}; }

absl::Status CheckServer(const Certificate& server, const std::vector<Certificate>& authorities) {
  if (server.identity().kind != PeerKind::kServer) {
    return absl::UnauthenticatedError(
        absl::StrCat("what answers is ", server.identity().Uri(), ", not a server"));
  }
  return VerifyCertificate(server, authorities, absl::InfinitePast(), DateCheck::kIgnored);
}

class ServerVerifier : public grpc::experimental::ExternalCertificateVerifier {
 public:
  ServerVerifier(ChainCheck check, std::shared_ptr<ServerCheck> result)
      : check_(std::move(check)), result_(std::move(result)) {}

  bool Verify(TlsCustomVerificationCheckRequest* request, std::function<void(grpc::Status)>,
              grpc::Status* sync_status) override {
    const absl::Status status = Check(View(request->peer_cert_full_chain()));
    if (result_ != nullptr) result_->Set(status);
    if (!status.ok()) {
      *sync_status = grpc::Status(grpc::StatusCode::UNAUTHENTICATED, std::string(status.message()));
    }
    return true;  // done, no callback
  }
  void Cancel(TlsCustomVerificationCheckRequest*) override {}

 private:
  absl::Status Check(absl::string_view pem) const {
    const absl::StatusOr<std::vector<Certificate>> chain = Certificate::ListFromPem(pem);
    if (!chain.ok()) {
      return absl::UnauthenticatedError("what answers is not the server of a federation");
    }
    return check_(*chain);
  }

  const ChainCheck check_;
  const std::shared_ptr<ServerCheck> result_;
};

std::shared_ptr<grpc::ChannelCredentials> MakeCredentials(const NodeIdentity* identity,
                                                          ChainCheck check,
                                                          std::shared_ptr<ServerCheck> result) {
  using grpc::experimental::StaticDataCertificateProvider;
  grpc::experimental::TlsChannelCredentialsOptions options;
  if (identity != nullptr) {
    options.set_certificate_provider(std::make_shared<StaticDataCertificateProvider>(
        std::vector<grpc::experimental::IdentityKeyCertPair>{
            {identity->key.Pem(), identity->certificate.Pem()}}));
    options.watch_identity_key_cert_pairs();
  }
  options.set_verify_server_certs(false);  // the verifier does, without names and dates
  options.set_check_call_host(false);
  options.set_certificate_verifier(
      grpc::experimental::ExternalCertificateVerifier::Create<ServerVerifier>(std::move(check),
                                                                              std::move(result)));
  return grpc::experimental::TlsCredentials(options);
}

grpc::ChannelArguments OneCallArguments() {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  // Not the connection of another identity to the same address.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return arguments;
}

absl::Status ToStatus(const grpc::Status& status, const std::string& what,
                      const std::string& address, const ServerCheck& check) {
  if (status.ok()) return absl::OkStatus();
  const absl::Status server = check.Get();
  if (absl::IsUnauthenticated(server)) {
    return absl::UnauthenticatedError(absl::StrCat(what, ": ", address, ": ", server.message()));
  }
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    return absl::UnavailableError(
        absl::StrCat(what, ": no server at ", address, " (", status.error_message(),
                     "); is fedge-server running there, and is the port open from here?"));
  }
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      absl::StrCat(what, ": ", status.error_message()));
}

}  // namespace

void ServerCheck::Set(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  status_ = std::move(status);
}

absl::Status ServerCheck::Get() const {
  absl::MutexLock lock(&mutex_);
  return status_;
}

std::shared_ptr<grpc::ChannelCredentials> MakeNodeCredentials(const NodeIdentity& identity,
                                                              std::shared_ptr<ServerCheck> check) {
  return MakeCredentials(
      &identity,
      [authorities = identity.authorities](const std::vector<Certificate>& chain) {
        return CheckServer(chain.front(), authorities);
      },
      std::move(check));
}

absl::StatusOr<v1::EnrollResponse> EnrollOverTls(const std::string& address, const JoinToken& token,
                                                 const v1::EnrollRequest& request) {
  const auto check = std::make_shared<ServerCheck>();
  const auto is_tokens = [fingerprint = token.authority](const std::vector<Certificate>& chain) {
    for (const Certificate& authority : chain) {
      if (authority.Fingerprint() == fingerprint) return CheckServer(chain.front(), {authority});
    }
    return absl::UnauthenticatedError(
        "the server there is not the one that made this token (another federation's, or its "
        "authority has changed since: ask for a new token)");
  };
  const std::shared_ptr<grpc::Channel> channel = grpc::CreateCustomChannel(
      address, MakeCredentials(nullptr, is_tokens, check), OneCallArguments());
  const auto stub = v1::EnrollmentService::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kCallDeadline);
  v1::EnrollResponse response;
  RETURN_IF_ERROR(ToStatus(stub->Enroll(&context, request, &response), "join", address, *check));
  return response;
}

absl::StatusOr<v1::NodeCertificate> RenewOverTls(const NodeIdentity& identity,
                                                 const v1::RenewRequest& request) {
  const auto check = std::make_shared<ServerCheck>();
  const std::shared_ptr<grpc::Channel> channel = grpc::CreateCustomChannel(
      identity.server, MakeNodeCredentials(identity, check), OneCallArguments());
  const auto stub = v1::IdentityService::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kCallDeadline);
  v1::RenewResponse response;
  RETURN_IF_ERROR(
      ToStatus(stub->Renew(&context, request, &response), "renewal", identity.server, *check));
  return std::move(*response.mutable_certificate());
}

}  // namespace fedge
