#include "common/security/signing.h"

#include <gtest/gtest.h>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"
#include "tests/server/temporary_dir.h"

namespace fedge {
namespace {

struct Vector {
  absl::string_view seed, public_key, message, signature;
};
// RFC 8032, section 7.1: TEST 1, TEST 2, TEST 3, TEST SHA(abc).
constexpr Vector kVectors[] = {
    {"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
     "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b"
     "4"
     "6bd25bf5f0595bbe24655141438e7a100b"},
    {"4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
     "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11"
     "d"
     "8c387b2eaeb4302aeeb00d291612bb0c00"},
    {"c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
     "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc"
     "6"
     "594a7c15e9716ed28dc027beceea1ec40a"},
    {"833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
     "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
     "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3fee"
     "b"
     "bd454d4423643ce80e2a9ac94fa54ca49f",
     "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e"
     "0"
     "303dca179c138ac17ad9bef1177331a704"}};

std::string Bytes(absl::string_view hex) { return absl::HexStringToBytes(hex); }

TEST(SigningTest, MatchesRfc8032) {
  for (const Vector& vector : kVectors) {
    const auto key = SigningKey::FromSeed(Bytes(vector.seed));
    ASSERT_TRUE(key.ok()) << key.status();
    EXPECT_EQ(key->public_key(), Bytes(vector.public_key));
    EXPECT_EQ(absl::BytesToHexString(key->Sign("", Bytes(vector.message))), vector.signature);
    EXPECT_TRUE(
        VerifySignature(key->public_key(), "", Bytes(vector.message), Bytes(vector.signature))
            .ok());
  }
}

TEST(SigningTest, RefusesAnyFlippedBit) {
  const SigningKey key = SigningKey::FromSeed(Bytes(kVectors[2].seed)).value();
  const std::string message = "version 7";
  const std::string signature = key.Sign("context", message);
  for (size_t bit = 0; bit < 8 * signature.size(); bit += 7) {
    std::string bad = signature;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
    EXPECT_TRUE(
        absl::IsUnauthenticated(VerifySignature(key.public_key(), "context", message, bad)));
  }
  EXPECT_TRUE(absl::IsUnauthenticated(
      VerifySignature(key.public_key(), "context", "version 8", signature)));
  EXPECT_TRUE(
      absl::IsUnauthenticated(VerifySignature(key.public_key(), "other", message, signature)));
  EXPECT_TRUE(absl::IsUnauthenticated(VerifySignature(key.public_key(), "context", message, "")));
  EXPECT_TRUE(absl::IsUnauthenticated(
      VerifySignature(SigningKey::Generate()->public_key(), "context", message, signature)));
  EXPECT_TRUE(absl::IsInvalidArgument(VerifySignature("short", "context", message, signature)));
}

TEST(SigningTest, MakesItsFileOnceAndReadsItAgain) {
  testing::TemporaryDir dir;
  Env& env = *Env::Posix();
  const std::string path = dir.File("keys/signing.pem");
  const auto made = LoadOrMakeSigningKey(path, env);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(env.Permissions(path).value(), 0600u);
  const auto again = LoadOrMakeSigningKey(path, env);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->public_key(), made->public_key());
  EXPECT_EQ(again->Sign("", "x"), made->Sign("", "x"));
}

TEST(SigningTest, RefusesAFileThatOthersReadOrThatIsNoKey) {
  testing::TemporaryDir dir;
  Env& env = *Env::Posix();
  const std::string path = dir.File("signing.pem");
  ASSERT_TRUE(LoadOrMakeSigningKey(path, env).ok());
  ASSERT_TRUE(env.SetPermissions(path, 0640).ok());
  EXPECT_TRUE(absl::IsPermissionDenied(LoadOrMakeSigningKey(path, env).status()));
  ASSERT_TRUE(env.WriteFileAtomic(path, "no key", 0600).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(LoadOrMakeSigningKey(path, env).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(SigningKey::FromSeed("too short").status()));
}

}  // namespace
}  // namespace fedge
