#include "common/base/digest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "common/base/rng.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

// FIPS 180-4 examples (NIST CSRC "Examples with Intermediate Values", SHA-256) and the empty text.
TEST(Sha256Test, MatchesTheFipsVectors) {
  EXPECT_EQ(Sha256Of("").Hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Of("abc").Hex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq").Hex(),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Sha256Of(std::string(1000000, 'a')).Hex(),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256Test, DoesNotDependOnHowTheDataIsCut) {
  std::string data;
  Rng rng(1);
  for (int i = 0; i < 1000; ++i) data.push_back(static_cast<char>(rng.Next()));
  for (int round = 0; round < 20; ++round) {
    Sha256 hasher;
    absl::string_view rest = data;
    while (!rest.empty()) {
      const size_t piece = static_cast<size_t>(rng.Below(rest.size() + 1));
      hasher.Update(rest.substr(0, piece));
      rest.remove_prefix(piece);
    }
    EXPECT_EQ(hasher.Finish(), Sha256Of(data));
  }
}

TEST(DigestTest, RoundTripsThroughHexAndRaw) {
  const Digest digest = Sha256Of("x");
  const auto from_hex = ParseDigest(digest.Hex());
  ASSERT_TRUE(from_hex.ok());
  EXPECT_EQ(*from_hex, digest);
  const auto from_upper = ParseDigest(absl::AsciiStrToUpper(digest.Hex()));
  ASSERT_TRUE(from_upper.ok());
  EXPECT_EQ(*from_upper, digest);
  const auto from_raw = DigestFromRaw(digest.Raw());
  ASSERT_TRUE(from_raw.ok());
  EXPECT_EQ(*from_raw, digest);
  EXPECT_LT(Digest(), digest);
}

TEST(DigestTest, RefusesOtherLengthsAndLetters) {
  const std::string hex = Sha256Of("x").Hex();
  for (const std::string& bad : {std::string(), hex.substr(1), hex + "0", "g" + hex.substr(1),
                                 " " + hex.substr(1), std::string(64, '\0')}) {
    EXPECT_EQ(ParseDigest(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_EQ(DigestFromRaw(std::string(31, 'x')).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(DigestFromRaw(std::string(33, 'x')).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ParseDigest("a\nb").status().message()), HasSubstr("\"a\\nb\""));
}

// RFC 3720 appendix B.4, and the catalogue's check value.
TEST(Crc32cTest, MatchesTheRfcVectors) {
  std::string up;
  for (int i = 0; i < 32; ++i) up.push_back(static_cast<char>(i));
  const std::string down(up.rbegin(), up.rend());
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(Crc32c(std::string(32, '\xFF')), 0x62A8AB43u);
  EXPECT_EQ(Crc32c(up), 0x46DD794Eu);
  EXPECT_EQ(Crc32c(down), 0x113FDB5Cu);
  EXPECT_EQ(Crc32c(absl::HexStringToBytes("01c000000000000000000000000000001400000000000400"
                                          "000000140000001828000000000000000200000000000000")),
            0xD9963A56u);  // an iSCSI read command
  EXPECT_EQ(Crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(Crc32c(""), 0u);
}

// Bit by bit, as the polynomial says.
uint32_t SlowCrc32c(absl::string_view data) {
  uint32_t crc = ~0u;
  for (const char c : data) {
    crc ^= static_cast<uint8_t>(c);
    for (int i = 0; i < 8; ++i) crc = (crc & 1) != 0 ? (crc >> 1) ^ 0x82F63B78u : crc >> 1;
  }
  return ~crc;
}

TEST(Crc32cTest, AgreesWithTheDefinitionAtEveryLengthAndOffset) {
  std::string data;
  Rng rng(2);
  for (int i = 0; i < 100; ++i) data.push_back(static_cast<char>(rng.Next()));
  for (size_t offset = 0; offset < 9; ++offset) {
    for (size_t size = 0; offset + size <= data.size(); ++size) {
      const absl::string_view part = absl::string_view(data).substr(offset, size);
      ASSERT_EQ(Crc32c(part), SlowCrc32c(part)) << offset << " " << size;
    }
  }
}

TEST(Crc32cTest, ContinuesFromAnEarlierValue) {
  const absl::string_view data = "The quick brown fox jumps over the lazy dog";
  for (size_t cut = 0; cut <= data.size(); ++cut) {
    EXPECT_EQ(Crc32c(data.substr(cut), Crc32c(data.substr(0, cut))), Crc32c(data));
  }
}

}  // namespace
}  // namespace fedge
