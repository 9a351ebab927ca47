#include "common/base/systemd_notifier.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace fedge {

namespace {

std::string TakeVariable(const char* name) {
  const char* const value = std::getenv(name);
  const std::string taken = value == nullptr ? "" : value;
  unsetenv(name);
  return taken;
}

std::string StatusLine(absl::string_view status) {
  return absl::StrCat("STATUS=", absl::StrReplaceAll(status, {{"\n", " "}}));
}

}  // namespace

SystemdNotifier SystemdNotifier::FromEnvironment() {
  SystemdNotifier notifier;
  notifier.socket_ = TakeVariable("NOTIFY_SOCKET");
  const std::string limit = TakeVariable("WATCHDOG_USEC");
  const std::string pid = TakeVariable("WATCHDOG_PID");
  const bool meant = pid.empty() || pid == absl::StrCat(getpid());
  int64_t microseconds = 0;
  if (meant && absl::SimpleAtoi(limit, &microseconds) && microseconds > 0) {
    notifier.watchdog_ = absl::Microseconds(microseconds);
  }
  return notifier;
}

void SystemdNotifier::Ready(absl::string_view status) {
  Send(absl::StrCat("READY=1\n", StatusLine(status)));
}

void SystemdNotifier::Status(absl::string_view status) { Send(StatusLine(status)); }

void SystemdNotifier::Stopping() { Send("STOPPING=1"); }

absl::Duration SystemdNotifier::AliveInterval() const {
  return watchdog_ == absl::ZeroDuration() ? absl::InfiniteDuration() : watchdog_ / 3;
}

void SystemdNotifier::Alive(absl::Duration now) {
  if (watchdog_ == absl::ZeroDuration()) return;
  if (last_alive_ && now - *last_alive_ < AliveInterval()) return;
  last_alive_ = now;
  Send("WATCHDOG=1");
}

// A manager that is away is no error of the service: nothing is reported.
void SystemdNotifier::Send(absl::string_view state) const {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (socket_.empty() || socket_.size() >= sizeof(address.sun_path)) return;
  std::memcpy(address.sun_path, socket_.data(), socket_.size());
  if (socket_[0] == '@') address.sun_path[0] = '\0';
  const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + socket_.size());
  static_cast<void>(sendto(fd, state.data(), state.size(), MSG_NOSIGNAL | MSG_DONTWAIT,
                           reinterpret_cast<const sockaddr*>(&address), length));
  close(fd);
}

}  // namespace fedge
