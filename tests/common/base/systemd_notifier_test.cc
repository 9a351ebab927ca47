#include "common/base/systemd_notifier.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace fedge {
namespace {

// The manager's end: a socket in the abstract namespace, and what came.
class SystemdNotifierTest : public ::testing::Test {
 protected:
  void SetUp() override {
    name_ = absl::StrCat("@fedge-systemd-notifier-test-", getpid());
    fd_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, name_.data() + 1, name_.size() - 1);
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name_.size());
    ASSERT_EQ(bind(fd_, reinterpret_cast<const sockaddr*>(&address), length), 0);
    setenv("NOTIFY_SOCKET", name_.c_str(), 1);
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
  }
  void TearDown() override { close(fd_); }

  // The next datagram; empty when there is none.
  std::string Next() {
    char buffer[256];
    const ssize_t size = recv(fd_, buffer, sizeof(buffer), 0);
    return size < 0 ? "" : std::string(buffer, static_cast<size_t>(size));
  }

  std::string name_;
  int fd_ = -1;
};

TEST_F(SystemdNotifierTest, TellsTheStateAndAStatusOfOneLine) {
  SystemdNotifier notifier = SystemdNotifier::FromEnvironment();
  EXPECT_EQ(Next(), "");
  notifier.Ready("round 3\nREADY=0");
  EXPECT_EQ(Next(), "READY=1\nSTATUS=round 3 READY=0");
  notifier.Status("round 4");
  EXPECT_EQ(Next(), "STATUS=round 4");
  notifier.Stopping();
  EXPECT_EQ(Next(), "STOPPING=1");
}

TEST_F(SystemdNotifierTest, FeedsTheWatchdogInTimeAndNotMoreOften) {
  setenv("WATCHDOG_USEC", "30000000", 1);
  setenv("WATCHDOG_PID", absl::StrCat(getpid()).c_str(), 1);
  SystemdNotifier notifier = SystemdNotifier::FromEnvironment();
  int sent = 0;
  for (int second = 0; second < 60; ++second) {
    notifier.Alive(absl::Seconds(100 + second));
    if (Next() == "WATCHDOG=1") ++sent;
  }
  EXPECT_EQ(sent, 6);
}

TEST_F(SystemdNotifierTest, AWatchdogOfAnotherProcessIsNotOurs) {
  setenv("WATCHDOG_USEC", "30000000", 1);
  setenv("WATCHDOG_PID", "1", 1);
  SystemdNotifier notifier = SystemdNotifier::FromEnvironment();
  notifier.Alive(absl::Seconds(1));
  EXPECT_EQ(Next(), "");
}

TEST_F(SystemdNotifierTest, ChildrenDoNotInheritTheSocket) {
  SystemdNotifier notifier = SystemdNotifier::FromEnvironment();
  EXPECT_EQ(std::getenv("NOTIFY_SOCKET"), nullptr);
}

TEST_F(SystemdNotifierTest, WithoutAManagerNothingHappens) {
  unsetenv("NOTIFY_SOCKET");
  SystemdNotifier notifier = SystemdNotifier::FromEnvironment();
  notifier.Ready("up");
  notifier.Alive(absl::Seconds(1));
  EXPECT_EQ(Next(), "");
}

}  // namespace
}  // namespace fedge
