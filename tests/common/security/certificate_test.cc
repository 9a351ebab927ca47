#include "common/security/certificate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/status.h"
#include "common/security/certificate_issuer.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

const absl::Time kNow = absl::FromUnixSeconds(1'800'000'000);
const Validity kYear{kNow - absl::Hours(48), kNow + absl::Hours(24 * 365)};
const Validity kWeek{kNow - absl::Hours(48), kNow + absl::Hours(24 * 7)};

template <typename T>
T Get(absl::StatusOr<T> result) {
  FEDGE_CHECK(result.ok(), result.status().message());
  return *std::move(result);
}

CertificateIssuer Authority() { return Get(CertificateIssuer::Create("fed", kYear)); }

absl::Status Verify(const Certificate& certificate, const CertificateIssuer& authority,
                    absl::Time now = kNow, DateCheck dates = DateCheck::kStrict) {
  return VerifyCertificate(certificate, {authority.certificate()}, now, dates);
}

TEST(CertificateTest, ASignedRequestNamesItsHolderAsTheIssuerDecided) {
  const CertificateIssuer authority = Authority();
  const PrivateKey key = Get(PrivateKey::Generate());
  const PublicKey requested = Get(ParseCertificateRequest(Get(MakeCertificateRequest(key))));
  EXPECT_EQ(requested.Fingerprint(), key.public_key().Fingerprint());
  const Certificate certificate = Get(authority.Issue(requested, PeerKind::kNode, "pi-4", kWeek));
  EXPECT_EQ(certificate.identity().Uri(), "spiffe://fed/node/pi-4");
  EXPECT_TRUE(certificate.Matches(key));
  EXPECT_EQ(certificate.not_before(), kWeek.begin);
  EXPECT_EQ(certificate.not_after(), kWeek.end);
  EXPECT_EQ(certificate.public_key().Fingerprint(), key.public_key().Fingerprint());
  EXPECT_TRUE(Verify(certificate, authority).ok()) << Verify(certificate, authority);
  // And through text.
  const Certificate again = Get(Certificate::FromPem(certificate.Pem()));
  EXPECT_EQ(again.identity(), certificate.identity());
  EXPECT_EQ(again.Fingerprint(), certificate.Fingerprint());
  EXPECT_EQ(again.Serial(), certificate.Serial());
  EXPECT_GT(again.Serial().size(), 24u);
}

TEST(CertificateTest, RefusesThoseOfAnotherFederation) {
  const PrivateKey key = Get(PrivateKey::Generate());
  const Certificate certificate =
      Get(Authority().Issue(key.public_key(), PeerKind::kNode, "pi-4", kWeek));
  const absl::Status status = Verify(certificate, Authority());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(std::string(status.message()), HasSubstr("of another federation"));
}

TEST(CertificateTest, SaysWhenDatesDoNotFitAndThatAClockMayBeWrong) {
  const CertificateIssuer authority = Authority();
  const PrivateKey key = Get(PrivateKey::Generate());
  const Certificate certificate =
      Get(authority.Issue(key.public_key(), PeerKind::kNode, "pi-4", kWeek));
  EXPECT_TRUE(Verify(certificate, authority, kNow - absl::Hours(24)).ok());  // backdated
  const absl::Status early = Verify(certificate, authority, kNow - absl::Hours(24 * 4));
  EXPECT_EQ(early.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(std::string(early.message()), HasSubstr("valid only in 2.0 days"));
  EXPECT_THAT(std::string(early.message()), HasSubstr("clock"));
  const absl::Status late = Verify(certificate, authority, kNow + absl::Hours(24 * 7 + 3));
  EXPECT_EQ(late.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(std::string(late.message()), HasSubstr("expired 3.0 hours ago"));
  EXPECT_TRUE(
      Verify(certificate, authority, kNow + absl::Hours(24 * 900), DateCheck::kIgnored).ok());
}

TEST(CertificateTest, ANodeCannotSignForOthers) {
  const CertificateIssuer authority = Authority();
  const PrivateKey key = Get(PrivateKey::Generate());
  const Certificate node = Get(authority.Issue(key.public_key(), PeerKind::kNode, "a", kWeek));
  EXPECT_EQ(CertificateIssuer::FromPem(key.Pem() + node.Pem()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(CertificateTest, AnAuthorityComesBackFromItsFile) {
  const CertificateIssuer authority = Authority();
  const CertificateIssuer again = Get(CertificateIssuer::FromPem(authority.Pem()));
  EXPECT_EQ(again.certificate().Fingerprint(), authority.certificate().Fingerprint());
  const PrivateKey key = Get(PrivateKey::Generate());
  const Certificate certificate =
      Get(again.Issue(key.public_key(), PeerKind::kServer, "server", kWeek));
  EXPECT_TRUE(Verify(certificate, authority).ok());
  const CertificateIssuer other = Authority();
  const PrivateKey its_key = Get(PrivateKey::FromPem(other.Pem()));
  EXPECT_FALSE(CertificateIssuer::FromPem(its_key.Pem() + authority.certificate().Pem()).ok());
}

TEST(CertificateTest, NothingOutlivesItsAuthority) {
  const CertificateIssuer authority = Authority();
  const PrivateKey key = Get(PrivateKey::Generate());
  const Certificate certificate = Get(authority.Issue(key.public_key(), PeerKind::kNode, "a",
                                                      {kNow, kNow + absl::Hours(24 * 3650)}));
  EXPECT_EQ(certificate.not_after(), kYear.end);
}

TEST(CertificateTest, NamesAreNarrow) {
  for (const absl::string_view good : {"a", "pi-4.lab_2", "0"})
    EXPECT_TRUE(CheckPeerName(good).ok());
  for (const std::string& bad : {std::string(), std::string("a/b"), std::string("a,URI:x"),
                                 std::string("ä"), std::string("a\nb"), std::string(65, 'x')}) {
    EXPECT_EQ(CheckPeerName(bad).code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_FALSE(Authority()
                     .Issue(Get(PrivateKey::Generate()).public_key(), PeerKind::kNode, bad, kWeek)
                     .ok());
  }
  for (const absl::string_view bad :
       {"", "spiffe://", "spiffe://fed/node", "spiffe://fed/node/a/b", "spiffe://fed/root/a",
        "https://fed/node/a", "spiffe:///node/a"}) {
    EXPECT_FALSE(ParsePeerUri(bad).ok()) << bad;
  }
  EXPECT_EQ(Get(ParsePeerUri("spiffe://f/admin-read/ops")).kind, PeerKind::kAdminRead);
}

TEST(CertificateTest, RefusesDamagedInput) {
  const PrivateKey key = Get(PrivateKey::Generate());
  std::string request = Get(MakeCertificateRequest(key));
  EXPECT_FALSE(ParseCertificateRequest("").ok());
  EXPECT_FALSE(ParseCertificateRequest(request + "x").ok());
  EXPECT_FALSE(ParseCertificateRequest(std::string(5000, '0')).ok());
  for (size_t i = 0; i < request.size(); ++i) {  // one bit anywhere
    std::string damaged = request;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    EXPECT_FALSE(ParseCertificateRequest(damaged).ok()) << i;
    EXPECT_FALSE(ParseCertificateRequest(request.substr(0, i)).ok()) << i;
  }
  EXPECT_FALSE(Certificate::FromPem("").ok());
  EXPECT_FALSE(Certificate::FromPem("-----BEGIN CERTIFICATE-----\nAAAA\n").ok());
  EXPECT_FALSE(PrivateKey::FromPem("nothing").ok());
}

}  // namespace
}  // namespace fedge
