// What `fedge-client doctor` finds out about TLS, against real servers.
#include "client/tls_probe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

}  // namespace
}  // namespace fedge
