// What `fedge-client doctor` finds out about TLS, against real servers.
#include "client/tls_probe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "client/doctor.h"
#include "tests/integration/identity/identity_rig.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using testing::IdentityRig;

constexpr absl::Duration kTimeout = absl::Seconds(20);

TEST(TlsProbeTest, SaysWhatAHealthyServerShows) {
  IdentityRig rig;
  rig.Join("pi");
  const TlsFinding finding = ProbeTls(rig.Identity("pi"), kTimeout);
  ASSERT_TRUE(finding.status.ok()) << finding.status;
  EXPECT_EQ(finding.version, "TLSv1.3");
  EXPECT_EQ(finding.server->identity().kind, PeerKind::kServer);
  EXPECT_EQ(finding.server->identity().federation, rig.membership->authority().federation());
}

TEST(TlsProbeTest, TellsTheTroublesApart) {
  IdentityRig rig, other;
  rig.Join("pi");
  other.Join("pi");
  NodeIdentity identity = rig.Identity("pi");
  // A server of another federation.
  identity.server = absl::StrCat("127.0.0.1:", other.server->port());
  EXPECT_EQ(ProbeTls(identity, kTimeout).status.code(), absl::StatusCode::kUnauthenticated);
  // One that knows us no more.
  identity = rig.Identity("pi");
  ASSERT_TRUE(rig.membership->RevokeNode("pi", "sold").ok());
  TlsFinding finding = ProbeTls(identity, kTimeout);
  EXPECT_EQ(finding.status.code(), absl::StatusCode::kPermissionDenied) << finding.status;
  EXPECT_TRUE(finding.server.has_value());
  // One without TLS.
  const auto plain =
      GrpcServer::Start(*rig.federation.core, {.listen = "127.0.0.1:0", .enroll_listen = ""});
  ASSERT_TRUE(plain.ok());
  identity.server = absl::StrCat("127.0.0.1:", (*plain)->port());
  finding = ProbeTls(identity, kTimeout);
  EXPECT_EQ(finding.status.code(), absl::StatusCode::kAborted) << finding.status;
  EXPECT_THAT(std::string(finding.status.message()), HasSubstr("no TLS handshake"));
  // And none at all.
  (*plain)->Shutdown(absl::ZeroDuration());
  EXPECT_EQ(ProbeTls(identity, kTimeout).status.code(), absl::StatusCode::kUnavailable);
}

class NoProbe : public DeviceProbe {
 public:
  DeviceConditions Measure() override { return {}; }
  std::optional<double> Joules() override { return std::nullopt; }
};

TEST(TlsProbeTest, DoctorJudgesTheDatesByTheDevicesClock) {
  IdentityRig rig;
  rig.Join("pi");
  const NodeIdentity identity = rig.Identity("pi");
  const ServerLink link = rig.Link("pi");
  NoProbe probe;
  ClientSettings settings;
  settings.state_dir = rig.dir.File("pi");
  settings.server = identity.server;
  settings.node_id = "pi";
  const auto tls = [&](absl::Duration shift) {
    rig.device_clock.shift = shift;
    const DoctorParts parts{link.link.get(), &identity, &probe, &rig.device_clock, Env::Posix()};
    for (const Finding& finding : Examine(settings, parts)) {
      if (finding.check == Check::kTls) return finding;
    }
    return Finding();
  };
  EXPECT_TRUE(tls(absl::ZeroDuration()).good) << tls(absl::ZeroDuration()).detail;
  EXPECT_THAT(tls(absl::ZeroDuration()).detail, HasSubstr("TLSv1.3"));
  EXPECT_THAT(tls(absl::Hours(24 * 8)).remedy, HasSubstr("fedge token create --node pi"));
  for (const absl::Duration years : {absl::Hours(24 * 1500), -absl::Hours(24 * 1500)}) {
    EXPECT_FALSE(tls(years).good);
    EXPECT_THAT(tls(years).remedy, HasSubstr("set the clock"));
  }
  ASSERT_TRUE(rig.membership->RevokeNode("pi", "sold").ok());
  EXPECT_THAT(tls(absl::ZeroDuration()).remedy, HasSubstr("whether this node was revoked"));
}

}  // namespace
}  // namespace fedge
