// Peers that hold on to the server without being of use to anybody: each is let go by the server,
// while an honest node is served. Prints how long each was kept.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <functional>
#include <thread>
#include <vector>

#include "fedge/v1/admin.grpc.pb.h"
#include "tests/integration/identity/identity_rig.h"
#include "tests/integration/identity/raw_peer.h"

namespace fedge {
namespace {

using testing::Http2Frame;
using testing::IdentityRig;
using testing::kHttp2Preface;
using testing::RawPeer;

constexpr absl::Duration kPatience = absl::Seconds(60);  // before it counts as never

struct Listener {
  const char* name;
  int port;
  const NodeIdentity* identity;  // that TLS is started with; null: none
  const char* method;
};

std::string Preface() { return std::string(kHttp2Preface) + Http2Frame(4, 0, 0, ""); }

// A header without compression (RFC 7541, section 6.2.2).
std::string Header(absl::string_view name, absl::string_view value) {
  std::string field(1, '\0');
  field.push_back(static_cast<char>(name.size()));
  field.append(name.data(), name.size());
  field.push_back(static_cast<char>(value.size()));
  return field.append(value.data(), value.size());
}

std::string CallHeaders(absl::string_view path) {
  return Header(":method", "POST") + Header(":scheme", "https") + Header(":path", path) +
         Header(":authority", "fedge") + Header("content-type", "application/grpc") +
         Header("te", "trailers");
}

struct Attack {
  std::string name;
  bool tls;
  std::function<void(RawPeer&)> start;
  std::function<bool(RawPeer&)> drip;  // every second; false: cannot send any more
};

std::vector<Attack> Attacks(absl::string_view method) {
  const auto nothing = [](RawPeer&) {};
  const auto silent = [](RawPeer&) { return true; };
  // One header of 100 KB in pieces that never end.
  const std::string endless("\x00\x01x\x7F\xA1\x8C\x06", 7);
  const std::string headers = CallHeaders(method);
  const auto drip = [](RawPeer& peer) { return peer.Send(Http2Frame(0, 0, 1, "x")); };
  return {
      {"silent socket", false, nothing, silent},
      {"half a TLS hello", false,
       [](RawPeer& peer) { peer.Send(std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xFC", 9)); },
       silent},
      {"TLS, then nothing", true, nothing, silent},
      {"HTTP/2 preface only", true, [](RawPeer& peer) { peer.Send(Preface()); }, silent},
      {"headers that never end, 1 KB/s", true,
       [endless](RawPeer& peer) { peer.Send(Preface() + Http2Frame(1, 0, 1, endless)); },
       [](RawPeer& peer) { return peer.Send(Http2Frame(9, 0, 1, std::string(1000, 'x'))); }},
      {"a message announced, never sent", true,
       [headers](RawPeer& peer) {
         peer.Send(Preface() + Http2Frame(1, 4, 1, headers) +
                   Http2Frame(0, 0, 1, std::string("\0\0\0\x20\0", 5)));
       },
       silent},
      {"a message at a byte a second", true,
       [headers](RawPeer& peer) {
         peer.Send(Preface() + Http2Frame(1, 4, 1, headers) +
                   Http2Frame(0, 0, 1, std::string("\0\0\0\x20\0", 5)));
       },
       drip},
  };
}

TEST(SlowClientTest, AreLetGoWhileAnHonestNodeIsServed) {
  IdentityRig rig;
  rig.Join("honest");
  rig.Join("slow");
  const NodeIdentity slow = rig.Identity("slow"), ops = rig.Operator();
  const std::vector<Listener> listeners = {
      {"fleet", rig.server->port(), &slow, "/fedge.v1.FederationService/Upload"},
      {"enrolment", rig.server->enroll_port(), nullptr, "/fedge.v1.EnrollmentService/Enroll"},
      {"operators", rig.admin->port(), &ops, "/fedge.v1.AdminService/TokenList"}};
  struct Result {
    std::string name;
    absl::Duration kept;
    bool closed = false;
  };
  std::vector<Result> results;
  std::vector<std::thread> threads;
  std::vector<std::pair<Attack, Listener>> all;
  for (const Listener& listener : listeners) {
    for (Attack& attack : Attacks(listener.method)) all.push_back({std::move(attack), listener});
  }
  // gRPC itself waits for the message of a call that has just one.
  all.push_back({Attacks("/fedge.v1.FederationService/CheckIn").back(), listeners[0]});
  all.back().first.name += ", of a check-in";
  results.resize(all.size());
  std::atomic<size_t> running{all.size()};
  for (size_t i = 0; i < all.size(); ++i) {
    threads.emplace_back([&, i] {
      const auto& [attack, listener] = all[i];
      Result& result = results[i];
      result.name = absl::StrCat(listener.name, ": ", attack.name);
      RawPeer peer(listener.port);
      if (!peer.connected() || (attack.tls && !peer.StartTls(listener.identity))) {
        result.name += " (no connection)";
      } else {
        attack.start(peer);
        while (!result.closed && peer.age() < kPatience) {
          result.closed = peer.IsClosedWithin(absl::Seconds(1)) || !attack.drip(peer);
        }
        result.kept = peer.age();
      }
      --running;
    });
  }
  // An operator who follows a log in which nothing happens for longer than that.
  const auto stub = v1::AdminService::NewStub(rig.OperatorChannel());
  grpc::ClientContext context;
  v1::LogsRequest follow;
  follow.set_follow(true);
  const auto log = stub->Logs(&context, follow);
  const ServerLink link = rig.Link("honest");
  int served = 0;
  while (running > 0) {
    EXPECT_TRUE(rig.CheckIn(link, "honest").ok());
    ++served;
    absl::SleepFor(absl::Milliseconds(200));
  }
  for (std::thread& thread : threads) thread.join();
  for (const Result& result : results) {
    EXPECT_TRUE(result.closed) << result.name << " is still there";
    std::printf("%-46s %5.1f s\n", result.name.c_str(), absl::ToDoubleSeconds(result.kept));
  }
  std::printf("check-ins of an honest node meanwhile: %d\n", served);
  EXPECT_GT(served, 5);
  rig.events.Add(v1::Event());
  v1::Event event;
  EXPECT_TRUE(log->Read(&event)) << "the operator's stream was cut as well";
  context.TryCancel();
}

TEST(SlowClientTest, AFloodOfOneAddressIsTurnedAwayWhileOthersAreServed) {
  IdentityRig rig;
  rig.Join("honest");
  for (const int port : {rig.server->port(), rig.server->enroll_port(), rig.admin->port()}) {
    std::vector<std::unique_ptr<RawPeer>> flood;
    for (int i = 0; i < 400; ++i) flood.push_back(std::make_unique<RawPeer>(port, "127.0.0.2"));
    // Some are given back every second; not so many. Before silent ones are let go.
    int turned_away = 0;
    const absl::Time end = absl::Now() + absl::Seconds(4);
    for (size_t i = 0; i < flood.size() && turned_away < 50; ++i) {
      RawPeer& late = *flood[flood.size() - 1 - i];
      turned_away += late.IsClosedWithin(end - absl::Now()) ? 1 : 0;
    }
    EXPECT_EQ(turned_away, 50);
    RawPeer other(port, "127.0.0.3");
    EXPECT_TRUE(other.connected() && other.StartTls(nullptr));
  }
  EXPECT_TRUE(rig.CheckIn(rig.Link("honest"), "honest").ok());
}

TEST(SlowClientTest, NodesBehindOneAddressPayForTheirConnectionsWithCalls) {
  IdentityRig rig;
  rig.Join("busy");
  // More connections than a stranger gets, each with a call.
  std::atomic<int> served{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 110; ++j) {
        const absl::StatusOr<v1::CheckInResponse> answer = rig.CheckIn(rig.Link("busy"), "busy");
        EXPECT_TRUE(answer.ok()) << answer.status();
        served += answer.ok() ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(served, 440);
}

TEST(SlowClientTest, TlsIsOfVersion13OnlyAndOnTheFleetsListenerNeedsACertificate) {
  IdentityRig rig;
  rig.Join("pi");
  const NodeIdentity identity = rig.Identity("pi");
  for (const int port : {rig.server->port(), rig.server->enroll_port()}) {
    RawPeer modern(port);
    ASSERT_TRUE(modern.StartTls(&identity));
    EXPECT_STREQ(modern.tls_version(), "TLSv1.3");
    RawPeer old(port);
    EXPECT_FALSE(old.StartTls(&identity, TLS1_2_VERSION));
  }
  RawPeer anonymous(rig.server->port());
  anonymous.StartTls(nullptr);  // in TLS 1.3 the client hears of the refusal afterwards
  EXPECT_TRUE(anonymous.IsClosedWithin(absl::Seconds(30)));
}

}  // namespace
}  // namespace fedge
