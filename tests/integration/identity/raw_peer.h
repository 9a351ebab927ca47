// A peer below gRPC: a socket, with TLS or without, that does what no honest client does.
#ifndef FEDGE_TESTS_INTEGRATION_IDENTITY_RAW_PEER_H_
#define FEDGE_TESTS_INTEGRATION_IDENTITY_RAW_PEER_H_

#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "client/node_identity.h"
#include "common/base/clock.h"

namespace fedge::testing {

class RawPeer {
 public:
  // `source`: the address it comes from, one of 127.0.0.0/8.
  explicit RawPeer(int port, const char* source = "127.0.0.1")
      : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    inet_pton(AF_INET, source, &address.sin_addr);
    connected_ = bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (!connected_) return;
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
    started_ = Clock::Real()->Monotonic();
  }
  ~RawPeer() {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
    close(fd_);
  }
  RawPeer(const RawPeer&) = delete;
  RawPeer& operator=(const RawPeer&) = delete;

  bool connected() const { return connected_; }

  // `identity`: null shows no certificate. False: the handshake failed.
  bool StartTls(const NodeIdentity* identity, int max_version = TLS1_3_VERSION) {
    context_ = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_max_proto_version(context_, max_version);
    const unsigned char protocols[] = "\x02h2";
    SSL_CTX_set_alpn_protos(context_, protocols, 3);
    if (identity != nullptr) {
      SSL_CTX_use_certificate(context_, identity->certificate.handle());
      SSL_CTX_use_PrivateKey(context_, identity->key.handle());
    }
    ssl_ = SSL_new(context_);
    SSL_set_fd(ssl_, fd_);
    return SSL_connect(ssl_) == 1;
  }
  const char* tls_version() const { return SSL_get_version(ssl_); }

  bool Send(absl::string_view bytes) {
    const int size = static_cast<int>(bytes.size());
    if (ssl_ != nullptr) {
      std::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes to a socket that may be closed by now
      return SSL_write(ssl_, bytes.data(), size) == size;
    }
    return send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == size;
  }

  // Reads and forgets for up to `wait`; true once the server has ended the connection.
  bool IsClosedWithin(absl::Duration wait) {
    const absl::Duration end = Clock::Real()->Monotonic() + wait;
    char buffer[4096];
    for (;;) {
      const int64_t left = absl::ToInt64Milliseconds(end - Clock::Real()->Monotonic());
      if (left <= 0) return false;
      pollfd poller = {fd_, POLLIN, 0};
      if ((ssl_ == nullptr || SSL_pending(ssl_) == 0) &&
          poll(&poller, 1, static_cast<int>(left)) <= 0) {
        return false;
      }
      const ssize_t got = ssl_ != nullptr ? SSL_read(ssl_, buffer, sizeof(buffer))
                                          : recv(fd_, buffer, sizeof(buffer), 0);
      if (got <= 0) return true;
    }
  }
  absl::Duration age() const { return Clock::Real()->Monotonic() - started_; }

 private:
  const int fd_;
  bool connected_ = false;
  absl::Duration started_;
  SSL_CTX* context_ = nullptr;
  SSL* ssl_ = nullptr;
};

// One frame of HTTP/2 (RFC 9113, section 4.1).
inline std::string Http2Frame(uint8_t type, uint8_t flags, uint32_t stream,
                              absl::string_view payload) {
  const auto byte = [](uint64_t value) { return static_cast<char>(value & 0xFF); };
  const size_t size = payload.size();
  std::string frame = {byte(size >> 16),   byte(size >> 8),   byte(size),
                       byte(type),         byte(flags),       byte(stream >> 24),
                       byte(stream >> 16), byte(stream >> 8), byte(stream)};
  return frame.append(payload.data(), payload.size());
}

inline constexpr absl::string_view kHttp2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_INTEGRATION_IDENTITY_RAW_PEER_H_
