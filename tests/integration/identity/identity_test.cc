// Joining, taking part, renewing and being thrown out, over TLS on 127.0.0.1.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <vector>

#include "client/grpc_identity.h"
#include "client/server_key.h"
#include "common/base/failpoint.h"
#include "fedge/v1/federation.grpc.pb.h"
#include "tests/integration/identity/identity_rig.h"

namespace fedge {
namespace {

using testing::Get;
using ::testing::HasSubstr;
using testing::IdentityRig;

std::string Text(const absl::Status& status) { return std::string(status.message()); }

TEST(IdentityTest, ADeviceJoinsWithATokenAndTakesPart) {
  IdentityRig rig;
  const JoinedNode node = rig.Join("pi");
  EXPECT_EQ(node.node_id, "pi");
  EXPECT_EQ(node.server, absl::StrCat("127.0.0.1:", rig.server->port()));
  EXPECT_EQ(node.warning, "");
  EXPECT_EQ(*Env::Posix()->Permissions(rig.dir.File("pi/identity/node.pem")), 0600u);
  EXPECT_FALSE(Env::Posix()->Exists(rig.dir.File("pi/identity/joining-key.pem")));
  const ServerLink link = rig.Link("pi");
  EXPECT_EQ(link.node_id, "pi");
  const auto answer = rig.CheckIn(link, "pi");
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_NE(answer->server_time_ms(), 0);
  // In nobody else's name, whatever the call.
  EXPECT_EQ(rig.CheckIn(link, "other").status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(Text(rig.CheckIn(link, "").status()), HasSubstr("is not 'pi'"));
  v1::DownloadRequest download;
  download.set_node_id("other");
  EXPECT_EQ(link.link->Download(download, [](const v1::Chunk&) { return absl::OkStatus(); }).code(),
            absl::StatusCode::kPermissionDenied);
  v1::QueryUploadRequest query;
  query.mutable_id()->set_node_id("other");
  EXPECT_EQ(link.link->QueryUpload(query).status().code(), absl::StatusCode::kPermissionDenied);
  v1::UploadId id = rig.federation.IdOf("other", 1, "bytes");
  EXPECT_EQ(link.link->Upload(id, {}, "bytes", 0).status().code(),
            absl::StatusCode::kPermissionDenied);
  v1::ReportRequest report;
  report.set_node_id("other");
  EXPECT_EQ(link.link->Report(report).code(), absl::StatusCode::kPermissionDenied);
}

TEST(IdentityTest, ADeviceLearnsWhoseVersionsToLoadWhenItJoins) {
  IdentityRig rig;
  rig.Join("pi");
  EXPECT_EQ(Get(KeptServerKeys(rig.dir.File("pi"), Env::Posix()).Read("pi")), rig.manifest_key);
}

TEST(IdentityTest, TokensWorkOnceInTimeAndAsTheyWereMeant) {
  IdentityRig rig;
  const std::string once = rig.Token();
  ASSERT_TRUE(rig.TryJoin("a", once).ok());
  absl::Status status = rig.TryJoin("b", once).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(Text(status), HasSubstr("was used already"));

  const std::string twice = rig.Token({.uses = 2, .node_id = "", .address = ""});
  EXPECT_TRUE(rig.TryJoin("b", twice).ok());
  EXPECT_TRUE(rig.TryJoin("c", twice).ok());
  EXPECT_FALSE(rig.TryJoin("d", twice).ok());

  const std::string bound = rig.Token({.uses = 1, .node_id = "e", .address = ""});
  EXPECT_THAT(Text(rig.TryJoin("d", bound).status()), HasSubstr("is for node 'e' only"));
  EXPECT_TRUE(rig.TryJoin("e", bound).ok());

  const std::string late = rig.Token();
  rig.clock.shift = absl::Hours(2);
  EXPECT_THAT(Text(rig.TryJoin("f", late).status()), HasSubstr("token: expired 1h"));
  rig.clock.shift = absl::ZeroDuration();

  TokenRecord record;
  const std::string revoked = Get(rig.membership->CreateToken({}, &record));
  ASSERT_TRUE(rig.membership->RevokeToken(JoinTokenId(record.hash)).ok());
  EXPECT_THAT(Text(rig.TryJoin("f", revoked).status()), HasSubstr("was revoked"));

  JoinToken forged = Get(ParseJoinToken(rig.Token()));
  forged.secret[3] = static_cast<char>(forged.secret[3] ^ 1);
  status = rig.TryJoin("f", forged.Text()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(Text(status), HasSubstr("this server did not make it"));
}

TEST(IdentityTest, ANameThatIsTakenNeedsATokenOfItsOwn) {
  IdentityRig rig;
  rig.Join("pi");
  ASSERT_TRUE(Env::Posix()->Remove(rig.dir.File("pi")).ok());  // a new disk
  const absl::Status status = rig.TryJoin("pi", rig.Token()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Text(status), HasSubstr("a token made for this one"));
  EXPECT_TRUE(rig.TryJoin("pi", rig.Token({.node_id = "pi", .address = ""})).ok());
  EXPECT_EQ(rig.TryJoin("pi", rig.Token()).status().code(), absl::StatusCode::kAlreadyExists);
}

TEST(IdentityTest, ALostAnswerCostsNothing) {
  IdentityRig rig;
  const std::string token = rig.Token();
  // The server has stored it, and dies before its answer.
  ASSERT_TRUE(ArmFailpoints("identity.joined=error(unavailable)").ok());
  EXPECT_EQ(rig.TryJoin("pi", token).status().code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE(ArmFailpoints("").ok());
  rig.Restart();  // with a token that is open
  EXPECT_EQ(rig.membership->ListTokens()->at(0).used, 1u);
  const std::string url = absl::StrCat("https://127.0.0.1:", rig.server->enroll_port());
  const absl::StatusOr<JoinedNode> node =
      JoinFederation({.url = url, .token = token, .node_id = "pi", .state_dir = rig.dir.File("pi")},
                     *Env::Posix(), rig.device_clock);
  ASSERT_TRUE(node.ok()) << node.status();
  EXPECT_EQ(rig.membership->ListTokens()->at(0).used, 1u);
  EXPECT_TRUE(rig.CheckIn(rig.Link("pi"), "pi").ok());
}

TEST(IdentityTest, FullDisksAtTheServerLetNobodyInHalfWay) {
  IdentityRig rig;
  const std::string token = rig.Token();
  ASSERT_TRUE(ArmFailpoints("identity.commit=error(resource_exhausted)").ok());
  EXPECT_EQ(rig.TryJoin("pi", token).status().code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(ArmFailpoints("").ok());
  EXPECT_EQ(rig.membership->ListTokens()->at(0).used, 0u);
  // And at the device: the key it asked with is used again.
  ASSERT_TRUE(ArmFailpoints("client.identity=error(resource_exhausted)").ok());
  EXPECT_EQ(rig.TryJoin("pi", token).status().code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(ArmFailpoints("").ok());
  EXPECT_TRUE(rig.TryJoin("pi", token).ok());
  EXPECT_EQ(rig.membership->ListTokens()->at(0).used, 1u);
}

TEST(IdentityTest, FederationsDoNotMix) {
  IdentityRig ours, theirs;
  const JoinToken token = Get(ParseJoinToken(theirs.Token()));
  // A token of theirs at our server: the device finds out before it says anything.
  JoinToken misled = token;
  misled.address = absl::StrCat("127.0.0.1:", ours.server->enroll_port());
  absl::Status status = ours.TryJoin("pi", misled.Text()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(Text(status), HasSubstr("is not the one that made this token"));
  // A node of theirs at our server: neither takes the other.
  theirs.Join("pi");
  NodeIdentity stranger = theirs.Identity("pi");
  ASSERT_TRUE(Env::Posix()
                  ->WriteFileAtomic(theirs.dir.File("pi/identity/server"),
                                    absl::StrCat("127.0.0.1:", ours.server->port()))
                  .ok());
  status = theirs.CheckIn(theirs.Link("pi"), "pi").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(Text(status), HasSubstr("of another federation"));
  // And if it does not mind whom it talks to, our server does.
  ours.Join("pi");
  stranger.authorities = ours.Identity("pi").authorities;
  stranger.server = absl::StrCat("127.0.0.1:", ours.server->port());
  v1::RenewRequest request;
  EXPECT_EQ(RenewOverTls(stranger, request).status().code(), absl::StatusCode::kUnavailable);
}

TEST(IdentityTest, RevocationEndsOpenCallsAtOnceAndLasts) {
  IdentityRig rig;
  rig.Join("good");
  rig.Join("bad");
  const ServerLink good = rig.Link("good");
  const ServerLink bad = rig.Link("bad");
  ASSERT_TRUE(rig.CheckIn(good, "good").ok());
  ASSERT_TRUE(rig.CheckIn(bad, "bad").ok());
  rig.federation.CheckInAll(3);
  ASSERT_TRUE(Get(rig.CheckIn(bad, "bad")).has_assignment());
  // An upload that stands still in the middle, of which the server has the first half.
  const std::string update =
      testing::MakeUpdate(rig.federation.plan, {.round = 1, .base_version = 0, .seed = 1});
  std::vector<v1::UploadRequest> messages =
      rig.federation.MessagesOf("bad", 1, update, update.size() / 2 + 1);
  const auto stub = v1::FederationService::NewStub(
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", rig.server->port()),
                          MakeNodeCredentials(rig.Identity("bad"), nullptr)));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  v1::UploadReceipt receipt;
  const auto upload = stub->Upload(&context, &receipt);
  ASSERT_TRUE(upload->Write(messages[0]));
  v1::QueryUploadRequest query;
  *query.mutable_id() = messages[0].id();
  for (;;) {
    const absl::StatusOr<v1::QueryUploadResponse> response = bad.link->QueryUpload(query);
    ASSERT_TRUE(response.ok()) << response.status();
    if (response->committed_bytes() > 0) break;
  }
  ASSERT_TRUE(rig.membership->RevokeNode("bad", "stolen").ok());
  // The server ends it, before the deadline and without another byte from here.
  const grpc::Status ended = upload->Finish();
  EXPECT_EQ(ended.error_code(), grpc::StatusCode::UNAUTHENTICATED) << ended.error_message();
  EXPECT_EQ(ended.error_message(), "revoked by an operator");
  const absl::Status status = rig.CheckIn(bad, "bad").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << status;
  EXPECT_THAT(Text(status), HasSubstr("node 'bad' was revoked"));
  EXPECT_TRUE(rig.CheckIn(good, "good").ok());
  // A new connection is not even made, and its name is not to be had again.
  const absl::Status again = rig.CheckIn(rig.Link("bad"), "bad").status();
  EXPECT_FALSE(again.ok());
  EXPECT_THAT(Text(again), HasSubstr("revoked"));
  ASSERT_TRUE(Env::Posix()->Remove(rig.dir.File("bad")).ok());
  EXPECT_THAT(Text(rig.TryJoin("bad", rig.Token()).status()), HasSubstr("was revoked"));
  rig.Restart();
  EXPECT_TRUE(rig.membership->IsRevoked("bad"));
  EXPECT_FALSE(rig.membership->IsRevoked("good"));
  EXPECT_TRUE(rig.CheckIn(rig.Link("good"), "good").ok());
}

TEST(IdentityTest, AWrongClockIsSaidAndDoesNotKeepADeviceOut) {
  for (const absl::Duration shift :
       {absl::Hours(24), absl::Hours(-24), absl::Hours(24 * 4000), absl::Hours(-24 * 4000)}) {
    IdentityRig rig;
    rig.device_clock.shift = shift;
    const absl::StatusOr<JoinedNode> node = rig.TryJoin("pi", rig.Token());
    ASSERT_TRUE(node.ok()) << node.status();
    const double hours = absl::ToDoubleHours(absl::AbsDuration(shift));
    EXPECT_THAT(node->warning,
                HasSubstr(absl::StrCat("clock is ", hours, ".0 hours ",
                                       shift > absl::ZeroDuration() ? "ahead of" : "behind",
                                       " the server's")));
    const ServerLink link = rig.Link("pi");
    EXPECT_TRUE(rig.CheckIn(link, "pi").ok());
    EXPECT_TRUE(rig.CheckIn(link, "pi").ok());
  }
}

TEST(IdentityTest, ANodeRenewsItsCertificateByItself) {
  IdentityRig rig(absl::Hours(1));
  rig.Join("pi");
  const NodeIdentity first = rig.Identity("pi");
  const ServerLink link = rig.Link("pi");
  ASSERT_TRUE(rig.CheckIn(link, "pi").ok());
  EXPECT_EQ(rig.Identity("pi").certificate.Serial(), first.certificate.Serial());
  const absl::Duration until = RenewalTime(first.certificate) - first.certificate.made();
  EXPECT_GT(until, absl::Minutes(60 * 0.6));
  EXPECT_LT(until, absl::Minutes(60 * 0.73));
  rig.clock.shift = rig.device_clock.shift = absl::Minutes(45);
  // The server's word about the time is the machine's here; the first call goes by the device's.
  ASSERT_TRUE(rig.CheckIn(rig.Link("pi"), "pi").ok());
  const NodeIdentity second = rig.Identity("pi");
  EXPECT_NE(second.certificate.Serial(), first.certificate.Serial());
  EXPECT_NE(second.key.public_key().Fingerprint(), first.key.public_key().Fingerprint());
  EXPECT_GT(second.certificate.not_after(), first.certificate.not_after() + absl::Minutes(30));
  EXPECT_EQ(*Env::Posix()->Permissions(rig.dir.File("pi/identity/node.pem")), 0600u);
}

TEST(IdentityTest, ACertificateThatEndedWhileAwaySaysSo) {
  IdentityRig rig(absl::Hours(1));
  rig.Join("pi");
  rig.clock.shift = rig.device_clock.shift = absl::Hours(3);
  const absl::Status status = rig.CheckIn(rig.Link("pi"), "pi").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << status;
  EXPECT_THAT(Text(status), HasSubstr("expired on 20"));
  EXPECT_THAT(Text(status), HasSubstr("join again"));
  // Which works, with a token of its own.
  ASSERT_TRUE(rig.TryJoin("pi", rig.Token({.node_id = "pi", .address = ""})).ok());
}

TEST(IdentityTest, NodesLiveThroughARotationOfTheAuthority) {
  IdentityRig rig(absl::Hours(1));
  rig.Join("renews");
  rig.Join("sleeps");
  const Digest old_authority = rig.membership->authority().serving_authority();
  ASSERT_TRUE(rig.membership->authority().Rotate(false).ok());
  EXPECT_EQ(rig.membership->authority().Rotate(false).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(rig.membership->authority().serving_authority(), old_authority);
  rig.Restart();  // in the middle
  rig.clock.shift = rig.device_clock.shift = absl::Minutes(45);
  ASSERT_TRUE(rig.CheckIn(rig.Link("renews"), "renews").ok());
  EXPECT_EQ(rig.Identity("renews").authorities.size(), 2u);
  rig.clock.shift = rig.device_clock.shift = absl::Minutes(65);
  rig.Restart();  // or a minute's patience
  EXPECT_NE(rig.membership->authority().serving_authority(), old_authority);
  EXPECT_TRUE(rig.CheckIn(rig.Link("renews"), "renews").ok());
  EXPECT_FALSE(rig.CheckIn(rig.Link("sleeps"), "sleeps").ok());
  rig.clock.shift = absl::Minutes(125);
  ASSERT_TRUE(rig.membership->authority().Maintain().ok());
  EXPECT_EQ(rig.membership->authority().authorities().size(), 1u);
}

TEST(IdentityTest, KeysThatOthersMayReadAreRefused) {
  IdentityRig rig;
  rig.Join("pi");
  const std::string key = rig.dir.File("pi/identity/node.pem");
  ASSERT_TRUE(Env::Posix()->SetPermissions(key, 0644).ok());
  EXPECT_EQ(rig.TryLink("pi").status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(Text(rig.TryLink("pi").status()), HasSubstr(absl::StrCat("chmod 600 ", key)));
  const std::string authority = rig.dir.File("identity/authority-000001.pem");
  ASSERT_TRUE(Env::Posix()->SetPermissions(authority, 0640).ok());
  rig.server.reset();
  rig.membership.reset();
  const MembershipOptions options{
      .dir = rig.dir.File("identity"), .env = Env::Posix(), .clock = &rig.clock};
  EXPECT_EQ(Membership::Open(options).status().code(), absl::StatusCode::kPermissionDenied);
  // Nor is a lost authority replaced behind the nodes' backs.
  ASSERT_TRUE(Env::Posix()->Remove(authority).ok());
  EXPECT_EQ(Membership::Open(options).status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(authority, "damaged", 0600).ok());
  EXPECT_EQ(Membership::Open(options).status().code(), absl::StatusCode::kDataLoss);
}

TEST(IdentityTest, WithoutAnIdentityOnlyThisMachineIsReached) {
  IdentityRig rig;
  EXPECT_EQ(rig.TryLink("nobody").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Text(rig.TryLink("nobody").status()), HasSubstr("fedge-client join"));
  for (const char* server : {"10.0.0.5:9480", "example.org:9480", "0.0.0.0:9480"}) {
    const auto link = OpenServerLink({.server = server,
                                      .state_dir = rig.dir.File("nobody"),
                                      .node_id = "n",
                                      .insecure = true,
                                      .grpc = {}},
                                     *Env::Posix(), rig.device_clock);
    EXPECT_EQ(link.status().code(), absl::StatusCode::kInvalidArgument) << server;
  }
  for (const char* listen : {"0.0.0.0:0", "[::]:0", "10.0.0.5:0", "128.0.0.1:0"}) {
    const auto server =
        GrpcServer::Start(*rig.federation.core, {.listen = listen, .enroll_listen = ""});
    EXPECT_EQ(server.status().code(), absl::StatusCode::kInvalidArgument) << listen;
  }
}

TEST(IdentityTest, EnrolmentIsLimitedForEachAddress) {
  IdentityRig rig;
  v1::EnrollRequest request;
  request.set_token_secret("short");
  absl::Status status;
  for (int i = 0; i < 61; ++i) status = rig.membership->Enroll(request, "ipv4:10.0.0.1").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(rig.membership->Enroll(request, "ipv4:10.0.0.2").status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fedge
