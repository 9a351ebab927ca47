#include "client/tls_probe.h"

#include <netdb.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/address.h"
#include "common/base/status.h"

namespace fedge {
namespace {

struct Free {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(SSL* ssl) const { SSL_free(ssl); }
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* x509) const { X509_free(x509); }
  void operator()(addrinfo* address) const { freeaddrinfo(address); }
};

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  int fd() const { return fd_; }

 private:
  int fd_;
};

absl::StatusOr<Socket> Connect(const std::string& server, absl::Duration timeout) {
  ASSIGN_OR_RETURN(const HostPort address, ParseHostPort(server, "server"));
  std::string host = address.host;
  if (!host.empty() && host[0] == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), absl::StrCat(address.port).c_str(), &hints, &found);
  if (error != 0) return absl::UnavailableError(gai_strerror(error));
  const std::unique_ptr<addrinfo, Free> owned(found);
  const timeval limit = absl::ToTimeval(timeout);
  int why = 0;
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
    Socket one(socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (one.fd() < 0) continue;
    setsockopt(one.fd(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));  // of connect, too
    setsockopt(one.fd(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    if (connect(one.fd(), at->ai_addr, at->ai_addrlen) == 0) return one;
    why = errno;
  }
  return absl::UnavailableError(
      absl::StrCat("no connection: ", why == EINPROGRESS ? "no answer" : strerror(why)));
}

std::string LastTlsError() {
  const unsigned long error = ERR_get_error();
  const char* const reason = error == 0 ? nullptr : ERR_reason_error_string(error);
  return reason == nullptr ? "the connection ended" : reason;
}

std::string PemOf(X509* x509) {
  const std::unique_ptr<BIO, Free> bio(BIO_new(BIO_s_mem()));
  if (bio == nullptr || PEM_write_bio_X509(bio.get(), x509) != 1) return "";
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<size_t>(size));
}

absl::Status CheckShown(SSL* ssl, const NodeIdentity& identity, TlsFinding& finding) {
  const std::unique_ptr<X509, Free> shown(SSL_get1_peer_certificate(ssl));
  const absl::StatusOr<Certificate> server =
      Certificate::FromPem(shown == nullptr ? std::string() : PemOf(shown.get()));
  if (!server.ok() || server->identity().kind != PeerKind::kServer) {
    return absl::UnauthenticatedError("what answers is not the server of a federation");
  }
  finding.server = *server;
  return VerifyCertificate(*server, identity.authorities, absl::InfinitePast(),
                           DateCheck::kIgnored);
}

}  // namespace

TlsFinding ProbeTls(const NodeIdentity& identity, absl::Duration timeout) {
  TlsFinding finding;
  absl::StatusOr<Socket> connection = Connect(identity.server, timeout);
  if (!connection.ok()) {
    finding.status = connection.status();
    return finding;
  }
  ERR_clear_error();
  const std::unique_ptr<SSL_CTX, Free> context(SSL_CTX_new(TLS_client_method()));
  SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION);
  const unsigned char protocols[] = "\x02h2";
  SSL_CTX_set_alpn_protos(context.get(), protocols, 3);
  SSL_CTX_use_certificate(context.get(), identity.certificate.handle());
  SSL_CTX_use_PrivateKey(context.get(), identity.key.handle());
  const std::unique_ptr<SSL, Free> ssl(SSL_new(context.get()));
  SSL_set_fd(ssl.get(), connection->fd());
  if (SSL_connect(ssl.get()) != 1) {
    finding.status = absl::AbortedError(absl::StrCat("no TLS handshake: ", LastTlsError()));
    return finding;
  }
  finding.version = SSL_get_version(ssl.get());
  finding.status = CheckShown(ssl.get(), identity, finding);
  if (!finding.status.ok()) return finding;
  // In TLS 1.3 the server judges our certificate after the handshake: its first bytes, or its end.
  char byte = 0;
  if (SSL_read(ssl.get(), &byte, 1) <= 0) {
    finding.status = absl::PermissionDeniedError(
        absl::StrCat("the server does not take this device's certificate (", LastTlsError(), ")"));
  }
  return finding;
}

}  // namespace fedge
