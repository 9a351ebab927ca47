#include "client/server_key.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/security/signing.h"
#include "tests/server/temporary_dir.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

const Digest kBase = Sha256Of("base");
const Digest kValues = Sha256Of("values");

LoraSpec Spec() {
  return LoraSpec::Create(
             "llama", 4,
             {{.tensor = "blk.0.attn_q.weight", .in_features = 8, .out_features = 6, .rank = 2}})
      .value();
}

SigningKey Key(char seed) { return SigningKey::FromSeed(std::string(32, seed)).value(); }

v1::AdapterSource Signed(const SigningKey& key, uint64_t version = 5) {
  v1::VersionManifest manifest;
  manifest.set_run_id("run");
  manifest.set_version(version);
  manifest.set_base_model_sha256(kBase.Raw());
  manifest.set_layout_sha256(Spec().layout_hash().Raw());
  manifest.set_values_sha256(kValues.Raw());
  v1::AdapterSource source;
  source.set_run_id("run");
  source.set_version(version);
  v1::SignedManifest& proof = *source.mutable_manifest();
  proof.set_manifest(manifest.SerializeAsString());
  proof.set_signature(key.Sign(kVersionManifestContext, proof.manifest()));
  proof.set_public_key(key.public_key());
  return source;
}

class ServerKeyTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::optional<Digest>> Check(ServerKey& key, const v1::AdapterSource& source) {
    return key.Check(source, kVersionManifestContext, Spec(), kBase);
  }
  std::string Refusal(const v1::AdapterSource& source) {
    ServerKey key("node", Key('a').public_key(), &kept);
    const absl::Status status = Check(key, source).status();
    EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
    EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
    return std::string(status.message());
  }

  testing::TemporaryDir dir;
  DirectoryStateStore kept{dir.path(), Env::Posix(), ".server-key"};
};

TEST_F(ServerKeyTest, TakesWhatThePinnedKeySigned) {
  ServerKey key("node", Key('a').public_key(), &kept);
  const auto values = Check(key, Signed(Key('a')));
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_EQ(*values, kValues);
}

TEST_F(ServerKeyTest, TrustsTheFirstKeyFromThenOn) {
  {
    ServerKey key("node", "", &kept);
    EXPECT_TRUE(Check(key, Signed(Key('a'))).ok());
  }
  ServerKey again("node", "", &kept);
  EXPECT_TRUE(Check(again, Signed(Key('a'), 6)).ok());
  EXPECT_THAT(std::string(Check(again, Signed(Key('b'), 7)).status().message()),
              HasSubstr("version 7 of run 'run' was not loaded: it is signed with the key"));
}

TEST_F(ServerKeyTest, WithoutAKeyAnUnsignedVersionIsTaken) {
  ServerKey key("node", "", &kept);
  v1::AdapterSource unsigned_source;
  const auto values = Check(key, unsigned_source);
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_FALSE(values->has_value());
}

TEST_F(ServerKeyTest, RefusesWhatIsNotSigned) {
  v1::AdapterSource source = Signed(Key('a'));
  source.clear_manifest();
  EXPECT_THAT(Refusal(source), HasSubstr("it is not signed, and this node trusts"));
}

TEST_F(ServerKeyTest, RefusesAManifestThatWasChanged) {
  v1::AdapterSource source = Signed(Key('a'));
  std::string& manifest = *source.mutable_manifest()->mutable_manifest();
  for (size_t i = 0; i < manifest.size(); ++i) {
    manifest[i] = static_cast<char>(manifest[i] ^ 1);
    Refusal(source);
    manifest[i] = static_cast<char>(manifest[i] ^ 1);
  }
  EXPECT_TRUE(
      Check(*std::make_unique<ServerKey>("node", Key('a').public_key(), &kept), source).ok());
}

TEST_F(ServerKeyTest, RefusesTheManifestOfSomethingElse) {
  v1::AdapterSource source = Signed(Key('a'), 4);
  source.set_version(5);  // an older version, offered as a newer one
  EXPECT_THAT(Refusal(source), HasSubstr("its signature is that of version 4"));
  source = Signed(Key('a'));
  source.set_run_id("other");
  EXPECT_THAT(Refusal(source), HasSubstr("its signature is that of run 'run'"));
}

TEST_F(ServerKeyTest, ACandidateIsNoVersion) {
  v1::AdapterSource source = Signed(Key('a'));
  source.mutable_manifest()->set_signature(
      Key('a').Sign(kCandidateManifestContext, source.manifest().manifest()));
  EXPECT_THAT(Refusal(source), HasSubstr("the signature is not of this key"));
}

}  // namespace
}  // namespace fedge
