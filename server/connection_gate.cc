#include "server/connection_gate.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/base/address.h"
#include "common/base/clock.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "server/peer_address.h"

namespace fedge {
namespace {

// A little more than the 10 s after which gRPC lets idle connections go, in its friendlier way.
constexpr absl::Duration kPatience = absl::Seconds(11);
constexpr double kMinBytesPerSecond = 500;  // a link's pace, if a very slow one's
constexpr absl::Duration kLook = absl::Milliseconds(500);
constexpr absl::Duration kLineInterval = absl::Minutes(1);
constexpr int kBacklog = 1024;
constexpr int kAcceptsAtATime = 256;  // then those that are open are looked at

// As gRPC names it: "ipv4:10.0.0.7:5123", "ipv6:[2001:db8::1]:443"; empty: no longer connected.
std::string PeerOf(int fd) {
  sockaddr_storage storage = {};
  socklen_t size = sizeof(storage);
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&storage), &size) != 0) return "";
  char text[INET6_ADDRSTRLEN] = "";
  if (storage.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(storage);
    inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text));
    return absl::StrCat("ipv4:", text, ":", ntohs(v4.sin_port));
  }
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(storage);
  if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
    inet_ntop(AF_INET, v6.sin6_addr.s6_addr + 12, text, sizeof(text));
    return absl::StrCat("ipv4:", text, ":", ntohs(v6.sin6_port));
  }
  inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text));
  return absl::StrCat("ipv6:[", text, "]:", ntohs(v6.sin6_port));
}

// With brackets as they are, and without the interface that link-local addresses come with.
std::string Plain(absl::string_view grpc_peer) {
  std::string peer = absl::StrReplaceAll(grpc_peer, {{"%5B", "["}, {"%5D", "]"}});
  const size_t scope = peer.find('%');
  const size_t end = peer.rfind(']');
  if (scope != std::string::npos && end != std::string::npos && scope < end) {
    peer.erase(scope, end - scope);
  }
  return peer;
}

tcp_info InfoOf(int fd) {
  tcp_info info = {};
  socklen_t size = sizeof(info);
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) info = {};
  return info;
}

// Whether this side of it is: gRPC has let go of others, and ours would keep them.
bool IsOpen(const tcp_info& info) {
  constexpr int kEstablished = 1, kCloseWait = 8;  // TCP_ESTABLISHED, TCP_CLOSE_WAIT of the kernel
  return info.tcpi_state == kEstablished || info.tcpi_state == kCloseWait;
}

// A listening socket on `address` with `port` in place of its own; -1: errno says why.
int ListenOn(const addrinfo& address, int port) {
  const int fd = socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  const int on = 1, off = 0;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));  // those accepted inherit it
  sockaddr_storage storage = {};
  std::memcpy(&storage, address.ai_addr, address.ai_addrlen);
  const auto number = htons(static_cast<uint16_t>(port));
  if (address.ai_family == AF_INET6) {
    auto& v6 = reinterpret_cast<sockaddr_in6&>(storage);
    v6.sin6_port = number;
    // [::] takes IPv4 as well.
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
  } else {
    reinterpret_cast<sockaddr_in&>(storage).sin_port = number;
  }
  if (bind(fd, reinterpret_cast<const sockaddr*>(&storage), address.ai_addrlen) == 0 &&
      listen(fd, kBacklog) == 0) {
    return fd;
  }
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

int PortOf(int fd) {
  sockaddr_storage storage = {};
  socklen_t size = sizeof(storage);
  getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &size);
  return ntohs(storage.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(storage).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(storage).sin_port);
}

// One address cannot fill the listener by itself.
ConnectionGateOptions Bounded(ConnectionGateOptions options) {
  options.burst = std::min(options.burst, static_cast<double>(options.max_connections) / 2);
  return options;
}

}  // namespace

size_t ConnectionsWithin(double share) {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) limit.rlim_cur = 1024;  // what most systems give
  return static_cast<size_t>(static_cast<double>(limit.rlim_cur) * share / 2);
}

ConnectionGate::ConnectionGate(ConnectionGateOptions options)
    : options_(Bounded(std::move(options))) {}

absl::StatusOr<std::unique_ptr<ConnectionGate>> ConnectionGate::Listen(
    ConnectionGateOptions options) {
  std::unique_ptr<ConnectionGate> gate(new ConnectionGate(std::move(options)));
  RETURN_IF_ERROR(gate->Bind());
  gate->wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (gate->wake_fd_ < 0) return absl::InternalError(absl::StrCat("eventfd: ", strerror(errno)));
  return gate;
}

// On all addresses of the name, and with 0.0.0.0 on those of IPv6 too, as gRPC does.
absl::Status ConnectionGate::Bind() {
  ASSIGN_OR_RETURN(const HostPort address, ParseHostPort(options_.listen, options_.name, 0));
  std::string host = address.host;
  if (absl::StartsWith(host, "[")) host = host.substr(1, host.size() - 2);
  std::vector<std::string> hosts = {host};
  if (host == "0.0.0.0") hosts = {"::", "0.0.0.0"};
  if (host == "::") hosts = {"::", "0.0.0.0"};
  port_ = address.port;
  std::string problem;
  for (const std::string& one : hosts) {
    addrinfo hints = {};
    hints.ai_flags = AI_PASSIVE;
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    const int error = getaddrinfo(one.c_str(), nullptr, &hints, &found);
    if (error != 0) problem = gai_strerror(error);
    for (const addrinfo* at = error == 0 ? found : nullptr; at != nullptr; at = at->ai_next) {
      const int fd = ListenOn(*at, port_);
      if (fd < 0) {
        problem = strerror(errno);
        continue;
      }
      listeners_.push_back(fd);
      port_ = PortOf(fd);
    }
    if (error == 0) freeaddrinfo(found);
    if (!listeners_.empty()) return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("cannot listen on ", options_.listen, ": ", problem));
}

void ConnectionGate::Start(Sink sink) {
  sink_ = std::move(sink);
  thread_ = std::thread([this] { Run(); });
}

void ConnectionGate::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  const uint64_t one = 1;
  if (write(wake_fd_, &one, sizeof(one)) < 0) errno = 0;  // it is awake, or was never made
  if (thread_.joinable()) thread_.join();
  for (const int fd : std::exchange(listeners_, {})) close(fd);
}

ConnectionGate::~ConnectionGate() {
  Stop();
  if (wake_fd_ >= 0) close(wake_fd_);
  absl::MutexLock lock(&mutex_);
  for (const auto& [peer, connection] : connections_) close(connection.fd);
}

void ConnectionGate::Run() {
  std::vector<pollfd> fds = {{wake_fd_, POLLIN, 0}};
  for (const int fd : listeners_) fds.push_back({fd, POLLIN, 0});
  absl::Duration next_sweep = Clock::Real()->Monotonic() + kLook;
  for (;;) {
    bool idle = false;
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return;
      idle = connections_.empty();
    }
    poll(fds.data(), fds.size(), idle ? -1 : static_cast<int>(absl::ToInt64Milliseconds(kLook)));
    for (size_t i = 1; i < fds.size(); ++i) {
      if (fds[i].revents != 0) Accept(fds[i].fd);
    }
    const absl::Duration now = Clock::Real()->Monotonic();
    if (now < next_sweep) continue;
    next_sweep = now + kLook;
    Sweep(now);
  }
}

void ConnectionGate::Accept(int listener) {
  for (int i = 0; i < kAcceptsAtATime; ++i) {
    const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      // Without a descriptor the connection waits, and so do we: poll would say "come" at once.
      if (errno == EMFILE || errno == ENFILE) Clock::Real()->Sleep(absl::Milliseconds(100));
      if (errno == ECONNABORTED || errno == EINTR) continue;
      return;
    }
    const absl::Duration now = Clock::Real()->Monotonic();
    const std::string peer = PeerOf(fd);
    if (peer.empty()) {  // gone already
      close(fd);
      continue;
    }
    const absl::Status entered = Enter(fd, peer, now);
    if (entered.ok()) {
      sink_(fd);
    } else {
      TurnAway(fd, entered, now);
    }
  }
}

absl::Status ConnectionGate::Enter(int fd, const std::string& peer, absl::Duration now) {
  const std::string address = PeerAddress(peer);
  absl::MutexLock lock(&mutex_);
  if (connections_.size() >= options_.max_connections) {
    return absl::ResourceExhaustedError(
        absl::StrCat(options_.max_connections,
                     " are open, all that this listener's share of the process's file "
                     "descriptors is for (LimitNOFILE, ulimit -n)"));
  }
  if (!Admit(address, now)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("of ", address, " are too many that no call came of"));
  }
  const int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (own < 0) return absl::ResourceExhaustedError("the process has no file descriptor left");
  Connection& connection = connections_[peer];
  if (connection.fd >= 0) close(connection.fd);  // one before it, of the same port
  connection = {.fd = own, .address = address, .since = now};
  return absl::OkStatus();
}

// With a reset: nothing of it stays here.
void ConnectionGate::TurnAway(int fd, const absl::Status& reason, absl::Duration now) {
  const linger at_once = {1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
  close(fd);
  ++turned_away_;
  if (now < next_line_) return;
  next_line_ = now + kLineInterval;
  LogWarning(options_.name, ": turns connections away (", std::exchange(turned_away_, 0),
             " since the last such line): ", reason.message());
}

ConnectionGate::Account& ConnectionGate::Refill(Account& account, absl::Duration now) const {
  const double seconds = absl::ToDoubleSeconds(now - account.refilled);
  account.used = std::max(0.0, account.used - seconds * options_.per_second);
  account.refilled = now;
  return account;
}

bool ConnectionGate::Admit(const std::string& address, absl::Duration now) {
  const auto found = accounts_.find(address);
  if (found == accounts_.end() && accounts_.size() >= options_.max_addresses) return false;
  Account& account = found == accounts_.end() ? accounts_[address] : found->second;
  if (account.refilled == absl::ZeroDuration()) account.refilled = now;
  if (Refill(account, now).used + 1 > options_.burst) return false;
  account.used += 1;
  return true;
}

void ConnectionGate::Sweep(absl::Duration now) {
  absl::MutexLock lock(&mutex_);
  for (auto it = connections_.begin(); it != connections_.end();) {
    Connection& connection = it->second;
    const tcp_info info = InfoOf(connection.fd);
    if (!IsOpen(info)) {
      close(connection.fd);
      it = connections_.erase(it);
      continue;
    }
    if (connection.in_hand == 0 && now - connection.since >= kPatience) {
      const auto bytes = static_cast<double>(info.tcpi_bytes_received - connection.bytes);
      if (bytes < kMinBytesPerSecond * absl::ToDoubleSeconds(now - connection.since)) {
        shutdown(connection.fd, SHUT_RDWR);  // gRPC sees its end and lets go
      }
      connection.since = now;
      connection.bytes = info.tcpi_bytes_received;
    }
    ++it;
  }
  for (auto it = accounts_.begin(); it != accounts_.end();) {
    it = Refill(it->second, now).used == 0 ? accounts_.erase(it) : std::next(it);
  }
}

void ConnectionGate::Begin(const std::string& peer) {
  absl::MutexLock lock(&mutex_);
  const auto found = connections_.find(peer);
  if (found == connections_.end()) return;
  Connection& connection = found->second;
  ++connection.in_hand;
  if (!options_.calls_pay || std::exchange(connection.had_call, true)) return;
  const auto account = accounts_.find(connection.address);
  if (account != accounts_.end()) account->second.used = std::max(0.0, account->second.used - 1);
}

void ConnectionGate::End(const std::string& peer) {
  const absl::Duration now = Clock::Real()->Monotonic();
  absl::MutexLock lock(&mutex_);
  const auto found = connections_.find(peer);
  if (found == connections_.end()) return;
  Connection& connection = found->second;
  if (connection.in_hand > 0) --connection.in_hand;
  connection.since = now;
  connection.bytes = InfoOf(connection.fd).tcpi_bytes_received;
}

ConnectionGate::Work::Work(ConnectionGate* gate, absl::string_view peer)
    : gate_(gate), peer_(gate == nullptr ? std::string() : Plain(peer)) {
  if (gate_ != nullptr) gate_->Begin(peer_);
}

ConnectionGate::Work::~Work() {
  if (gate_ != nullptr) gate_->End(peer_);
}

}  // namespace fedge
