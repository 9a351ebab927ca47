#include "server/grpc_security.h"

#include <grpc/grpc.h>
#include <grpcpp/security/auth_metadata_processor.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <cstdlib>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr unsigned int kWatchSeconds = 1;

// gRPC 1.51 has no setting for the lowest version of TLS and begins at 1.2. A certificate on an
// elliptic curve and a list of 1.2's ciphers with none for it leave 1.3 alone. gRPC reads the
// variable once, before its first handshake.
void AllowOnlyTls13() {
  static std::once_flag once;
  std::call_once(once, [] { setenv("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES256-GCM-SHA384", 1); });
}

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

absl::string_view View(grpc::string_ref text) { return {text.data(), text.size()}; }

bool IsWelcome(ListenerKind listener, PeerKind kind) {
  if (listener == ListenerKind::kFleet) return kind == PeerKind::kNode;
  return kind == PeerKind::kAdminRead || kind == PeerKind::kAdminWrite;
}

// After TLS accepted a peer's certificate, before anything is read from it.
class PeerVerifier : public grpc::experimental::ExternalCertificateVerifier {
 public:
  PeerVerifier(ListenerKind listener, Membership* membership)
      : listener_(listener), membership_(membership) {}

  bool Verify(grpc::experimental::TlsCustomVerificationCheckRequest* request,
              std::function<void(grpc::Status)>, grpc::Status* sync_status) override {
    *sync_status = ToGrpc(Check(View(request->peer_cert())));
    return true;  // done, no callback
  }
  void Cancel(grpc::experimental::TlsCustomVerificationCheckRequest*) override {}

 private:
  absl::Status Check(absl::string_view pem) const {
    const absl::StatusOr<Certificate> certificate = Certificate::FromPem(pem);
    if (!certificate.ok()) return absl::UnauthenticatedError(certificate.status().message());
    if (!IsWelcome(listener_, certificate->identity().kind)) {
      return absl::UnauthenticatedError(absl::StrCat(certificate->identity().Uri(), ": not on the ",
                                                     ListenerName(listener_), " listener"));
    }
    return membership_->CheckPeer(*certificate);
  }

  const ListenerKind listener_;
  Membership* const membership_;
};

// Before each call: a connection outlives revocations and ends of certificates.
class CallGuard : public grpc::AuthMetadataProcessor {
 public:
  CallGuard(ListenerKind listener, Membership* membership)
      : listener_(listener), membership_(membership) {}

  bool IsBlocking() const override { return false; }

  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext* context, OutputMetadata*,
                       OutputMetadata*) override {
    const auto path = metadata.find(":path");
    const absl::string_view method =
        path == metadata.end() ? absl::string_view() : View(path->second);
    return ToGrpc(Check(context->FindPropertyValues(GRPC_X509_PEM_CERT_PROPERTY_NAME), method));
  }

 private:
  absl::Status Check(const std::vector<grpc::string_ref>& pems, absl::string_view method) const {
    if (pems.empty()) return CheckAccess(listener_, std::nullopt, method);
    const absl::StatusOr<Certificate> certificate = Certificate::FromPem(View(pems.front()));
    if (!certificate.ok()) return absl::UnauthenticatedError(certificate.status().message());
    RETURN_IF_ERROR(membership_->CheckPeer(*certificate));
    return CheckAccess(listener_, certificate->identity(), method);
  }

  const ListenerKind listener_;
  Membership* const membership_;
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> MakeTlsCredentials(ListenerKind listener,
                                                            Membership& membership) {
  using grpc::experimental::FileWatcherCertificateProvider;
  AllowOnlyTls13();
  const CertificateAuthority::TlsFiles& files = membership.authority().files();
  const bool asks = listener != ListenerKind::kEnrollment;
  grpc::experimental::TlsServerCredentialsOptions options(
      std::make_shared<FileWatcherCertificateProvider>(
          files.key, files.chain, asks ? files.authorities : "", kWatchSeconds));
  options.watch_identity_key_cert_pairs();
  if (asks) {
    options.watch_root_certs();
    options.set_certificate_verifier(
        grpc::experimental::ExternalCertificateVerifier::Create<PeerVerifier>(listener,
                                                                              &membership));
  }
  options.set_cert_request_type(asks ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                     : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  std::shared_ptr<grpc::ServerCredentials> credentials =
      grpc::experimental::TlsServerCredentials(options);
  credentials->SetAuthMetadataProcessor(std::make_shared<CallGuard>(listener, &membership));
  return credentials;
}

namespace {

std::optional<PeerIdentity> CertifiedPeer(const grpc::ServerContextBase& context) {
  const std::shared_ptr<const grpc::AuthContext> auth = context.auth_context();
  if (auth == nullptr) return std::nullopt;
  for (const grpc::string_ref& uri : auth->FindPropertyValues(GRPC_PEER_SPIFFE_ID_PROPERTY_NAME)) {
    absl::StatusOr<PeerIdentity> peer = ParsePeerUri(View(uri));
    if (peer.ok()) return *std::move(peer);
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::string> CertifiedNode(const grpc::ServerContextBase& context) {
  const std::optional<PeerIdentity> peer = CertifiedPeer(context);
  if (!peer || peer->kind != PeerKind::kNode) return std::nullopt;
  return peer->name;
}

std::string CertifiedOperator(const grpc::ServerContextBase& context) {
  const std::optional<PeerIdentity> peer = CertifiedPeer(context);
  const bool is_operator =
      peer && (peer->kind == PeerKind::kAdminRead || peer->kind == PeerKind::kAdminWrite);
  return is_operator ? peer->name : "";
}

class LiveCalls::Interceptor : public grpc::experimental::Interceptor {
 public:
  Interceptor(LiveCalls* calls, grpc::experimental::ServerRpcInfo* info)
      : calls_(calls), info_(info) {}
  ~Interceptor() override { calls_->Remove(this); }

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    using grpc::experimental::InterceptionHookPoints;
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_INITIAL_METADATA)) {
      grpc::ServerContextBase* const context = info_->server_context();
      if (const std::optional<PeerIdentity> peer = CertifiedPeer(*context)) {
        calls_->Add(this, RevocationSubject(*peer), context->c_call());
      }
    } else if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      calls_->Remove(this);
    }
    methods->Proceed();
  }

 private:
  LiveCalls* const calls_;
  grpc::experimental::ServerRpcInfo* const info_;
};

class LiveCalls::Factory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit Factory(LiveCalls* calls) : calls_(calls) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    return new Interceptor(calls_, info);
  }

 private:
  LiveCalls* const calls_;
};

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>
LiveCalls::MakeInterceptors() {
  return std::make_unique<Factory>(this);
}

LiveCalls::~LiveCalls() {
  absl::MutexLock lock(&mutex_);
  for (auto& [key, call] : calls_) grpc_call_unref(call.call);
}

void LiveCalls::Add(const void* key, std::string subject, grpc_call* call) {
  grpc_call_ref(call);
  absl::MutexLock lock(&mutex_);
  calls_[key] = {std::move(subject), call};
}

void LiveCalls::Remove(const void* key) {
  grpc_call* call = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    const auto it = calls_.find(key);
    if (it == calls_.end()) return;
    call = it->second.call;
    calls_.erase(it);
  }
  grpc_call_unref(call);
}

size_t LiveCalls::End(absl::string_view subject) {
  std::vector<grpc_call*> ended;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [key, call] : calls_) {
      if (call.subject != subject) continue;
      grpc_call_ref(call.call);
      ended.push_back(call.call);
    }
  }
  // Not under the lock: what the end of a call sets off may run here, and removes it.
  for (grpc_call* const call : ended) {
    grpc_call_cancel_with_status(call, GRPC_STATUS_UNAUTHENTICATED, "revoked by an operator",
                                 nullptr);
    grpc_call_unref(call);
  }
  return ended.size();
}

}  // namespace fedge
