#include "common/security/keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/security/join_token.h"
#include "tests/server/temporary_dir.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using testing::TemporaryDir;

TEST(KeysTest, AKeyComesBackFromItsText) {
  const absl::StatusOr<PrivateKey> key = PrivateKey::Generate();
  ASSERT_TRUE(key.ok()) << key.status();
  const absl::StatusOr<PrivateKey> again = PrivateKey::FromPem(key->Pem());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->public_key().Fingerprint(), key->public_key().Fingerprint());
  EXPECT_NE(PrivateKey::Generate()->public_key().Fingerprint(), key->public_key().Fingerprint());
}

TEST(KeysTest, KeyFilesAreTheOwnersAlone) {
  TemporaryDir dir;
  const std::string path = dir.File("new/key.pem");
  ASSERT_TRUE(WritePrivateFile(path, "secret", *Env::Posix()).ok());
  EXPECT_EQ(*Env::Posix()->Permissions(path), 0600u);
  EXPECT_EQ(*Env::Posix()->Permissions(dir.File("new")), 0700u);
  EXPECT_EQ(*ReadPrivateFile(path, *Env::Posix()), "secret");
  for (const uint32_t mode : {0640u, 0604u, 0620u, 0644u}) {
    ASSERT_TRUE(Env::Posix()->SetPermissions(path, mode).ok());
    const absl::Status status = ReadPrivateFile(path, *Env::Posix()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
    EXPECT_THAT(std::string(status.message()), HasSubstr("chmod 600 "));
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  }
  EXPECT_EQ(ReadPrivateFile(dir.File("none"), *Env::Posix()).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(JoinTokenTest, ComesBackFromItsTextInAnyCase) {
  const absl::StatusOr<JoinToken> token = MakeJoinToken(Sha256Of("ca"), "10.0.0.5:9481");
  ASSERT_TRUE(token.ok());
  EXPECT_EQ(token->secret.size(), kTokenSecretBytes);
  EXPECT_NE(MakeJoinToken(Sha256Of("ca"), "x:1")->secret, token->secret);
  for (const std::string& text : {token->Text(), absl::AsciiStrToLower(token->Text()),
                                  absl::StrCat("  ", token->Text(), "\n")}) {
    const absl::StatusOr<JoinToken> again = ParseJoinToken(text);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->secret, token->secret);
    EXPECT_EQ(again->authority, token->authority);
    EXPECT_EQ(again->address, token->address);
    EXPECT_EQ(again->Hash(), token->Hash());
  }
}

TEST(JoinTokenTest, FindsWhatIsMistypedOrCutOff) {
  const std::string text = MakeJoinToken(Sha256Of("ca"), "host.example:9481")->Text();
  EXPECT_EQ(text.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789."), std::string::npos);
  for (size_t i = 7; i + 1 < text.size(); ++i) {
    std::string typo = text;
    typo[i] = typo[i] == 'A' ? 'B' : 'A';
    EXPECT_EQ(ParseJoinToken(typo).status().code(), absl::StatusCode::kInvalidArgument) << i;
    EXPECT_FALSE(ParseJoinToken(text.substr(0, i)).ok()) << i;
  }
  EXPECT_FALSE(ParseJoinToken("").ok());
  EXPECT_FALSE(ParseJoinToken("FEDGE2.AAAA").ok());
  EXPECT_FALSE(ParseJoinToken(std::string(5000, 'A')).ok());
}

}  // namespace
}  // namespace fedge
