#include "client/control_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/base/env.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr char kName[] = "control.sock";
constexpr size_t kMaxCommandBytes = 64;
constexpr size_t kMaxAnswerBytes = 1 << 20;
constexpr timeval kSlowClient = {1, 0};
constexpr timeval kSlowDaemon = {10, 0};

// A socket's path holds 107 bytes: a folder with a longer one is reached through its descriptor.
absl::StatusOr<sockaddr_un> AddressIn(int dir_fd) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  const std::string path = absl::StrCat("/proc/self/fd/", dir_fd, "/", kName);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

absl::Status Failed(absl::string_view what, absl::string_view dir) {
  const std::string message =
      absl::StrCat(JoinPath(dir, kName), ": cannot ", what, ": ", std::strerror(errno));
  return errno == ENOENT || errno == ECONNREFUSED ? absl::NotFoundError(message)
                                                  : absl::InternalError(message);
}

void SetTimeout(int fd, const timeval& timeout) {
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
}

bool SendAll(int fd, absl::string_view text) {
  while (!text.empty()) {
    const ssize_t sent = send(fd, text.data(), text.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    text.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

}  // namespace

absl::StatusOr<ControlSocket> ControlSocket::Listen(absl::string_view state_dir) {
  const int dir = open(std::string(state_dir).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (dir < 0) return Failed("open the folder", state_dir);
  const auto close_dir = absl::MakeCleanup([dir] { close(dir); });
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return Failed("make a socket", state_dir);
  ControlSocket made(fd, JoinPath(state_dir, kName));
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressIn(dir));
  unlinkat(dir, kName, 0);
  const mode_t before = umask(0177);
  const int bound = bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  umask(before);
  if (bound != 0 || listen(fd, 8) != 0) return Failed("listen", state_dir);
  return made;
}

ControlSocket::ControlSocket(ControlSocket&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

ControlSocket::~ControlSocket() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(path_.c_str());
}

void ControlSocket::Serve(const std::function<std::string(absl::string_view command)>& answer) {
  for (;;) {
    const int client = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) return;
    SetTimeout(client, kSlowClient);
    char command[kMaxCommandBytes + 1] = {};
    size_t size = 0;
    while (size < kMaxCommandBytes && std::memchr(command, '\n', size) == nullptr) {
      const ssize_t got = recv(client, command + size, kMaxCommandBytes - size, 0);
      if (got <= 0) break;
      size += static_cast<size_t>(got);
    }
    const absl::string_view text(command, size);
    if (const size_t end = text.find('\n'); end != absl::string_view::npos) {
      SendAll(client, answer(text.substr(0, end)));
    }
    close(client);
  }
}

absl::StatusOr<std::string> AskDaemon(absl::string_view state_dir, absl::string_view command) {
  const int dir = open(std::string(state_dir).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (dir < 0) return Failed("open the folder", state_dir);
  const auto close_dir = absl::MakeCleanup([dir] { close(dir); });
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return Failed("make a socket", state_dir);
  const auto close_fd = absl::MakeCleanup([fd] { close(fd); });
  SetTimeout(fd, kSlowDaemon);
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressIn(dir));
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      !SendAll(fd, absl::StrCat(command, "\n"))) {
    return Failed("reach the daemon", state_dir);
  }
  std::string answer;
  char piece[4096];
  for (;;) {
    const ssize_t got = recv(fd, piece, sizeof(piece), 0);
    if (got < 0) return Failed("get an answer", state_dir);
    if (got == 0) return answer;
    answer.append(piece, static_cast<size_t>(got));
    if (answer.size() > kMaxAnswerBytes)
      return absl::InternalError("the daemon's answer is endless");
  }
}

}  // namespace fedge
