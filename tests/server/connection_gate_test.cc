#include "server/connection_gate.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/status.h"

namespace fedge {
namespace {

// One end of a connection from `source`, an address of 127.0.0.0/8.
class Peer {
 public:
  Peer(int port, const char* source) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    inet_pton(AF_INET, source, &address.sin_addr);
    auto* const plain = reinterpret_cast<sockaddr*>(&address);
    FEDGE_CHECK(bind(fd_, plain, sizeof(address)) == 0, source);
    socklen_t size = sizeof(address);
    getsockname(fd_, plain, &size);
    name_ = absl::StrCat("ipv4:", source, ":", ntohs(address.sin_port));
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    FEDGE_CHECK(connect(fd_, plain, sizeof(address)) == 0, source);
  }
  ~Peer() { close(fd_); }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  const std::string& name() const { return name_; }  // gRPC's of it

  // What the server made of it: waits for a byte, which those that are let in get, or the end.
  bool IsIn() {
    pollfd poller = {fd_, POLLIN, 0};
    FEDGE_CHECK(poll(&poller, 1, 30'000) == 1, "neither let in nor turned away");
    char byte = 0;
    return recv(fd_, &byte, 1, 0) == 1;
  }

 private:
  const int fd_;
  std::string name_;
};

// A gate that greets with a byte those whom it lets in, and keeps them.
class Door {
 public:
  explicit Door(ConnectionGateOptions options) {
    options.listen = "127.0.0.1:0";
    options.name = "door";
    auto gate = ConnectionGate::Listen(std::move(options));
    FEDGE_CHECK(gate.ok(), gate.status().message());
    gate_ = *std::move(gate);
    gate_->Start([this](int fd) {
      FEDGE_CHECK(send(fd, "!", 1, MSG_NOSIGNAL) == 1, "send");
      fds_.push_back(fd);
    });
  }
  ~Door() {
    gate_->Stop();
    for (const int fd : fds_) close(fd);
  }

  ConnectionGate& gate() { return *gate_; }
  std::unique_ptr<Peer> Knock(const char* source) {
    return std::make_unique<Peer>(gate_->port(), source);
  }

 private:
  std::vector<int> fds_;  // of the gate's thread, until it is stopped
  std::unique_ptr<ConnectionGate> gate_;
};

TEST(ConnectionGateTest, AllAddressesTogetherGetSoManyConnections) {
  ConnectionGateOptions options;
  options.max_connections = 3;
  Door door(options);
  std::unique_ptr<Peer> first = door.Knock("127.0.0.2");
  const auto second = door.Knock("127.0.0.3"), third = door.Knock("127.0.0.4");
  EXPECT_TRUE(first->IsIn() && second->IsIn() && third->IsIn());
  ::testing::internal::CaptureStderr();
  EXPECT_FALSE(door.Knock("127.0.0.5")->IsIn());
  EXPECT_FALSE(door.Knock("127.0.0.6")->IsIn());
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find("door: turns connections away (1 since the last such line): 3 are open"),
            std::string::npos)
      << log;
  EXPECT_EQ(log.find("turns connections away"), log.rfind("turns connections away")) << log;
}

TEST(ConnectionGateTest, OneAddressGetsHalfAtMost) {
  ConnectionGateOptions options;
  options.max_connections = 4;
  options.per_second = 0;
  Door door(options);
  const auto first = door.Knock("127.0.0.2"), second = door.Knock("127.0.0.2");
  EXPECT_TRUE(first->IsIn() && second->IsIn());
  EXPECT_FALSE(door.Knock("127.0.0.2")->IsIn());
  const auto other = door.Knock("127.0.0.3");
  EXPECT_TRUE(other->IsIn());
}

TEST(ConnectionGateTest, ACallPaysForItsConnectionWhereItMay) {
  for (const bool pays : {true, false}) {
    ConnectionGateOptions options;
    options.calls_pay = pays;
    options.burst = 1;
    options.per_second = 0;
    Door door(options);
    const auto first = door.Knock("127.0.0.2");
    EXPECT_TRUE(first->IsIn());
    { const ConnectionGate::Work work(&door.gate(), first->name()); }
    const auto second = door.Knock("127.0.0.2");
    EXPECT_EQ(second->IsIn(), pays);
    { const ConnectionGate::Work again(&door.gate(), first->name()); }  // it has paid
    EXPECT_FALSE(door.Knock("127.0.0.2")->IsIn());
  }
}

TEST(ConnectionGateTest, ConnectionsAreAShareOfTheDescriptorsTwoEach) {
  rlimit limit = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit before = limit;
  limit.rlim_cur = 800;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(ConnectionsWithin(0.5), 200u);
  EXPECT_EQ(ConnectionsWithin(0.125), 50u);
  setrlimit(RLIMIT_NOFILE, &before);
}

}  // namespace
}  // namespace fedge
