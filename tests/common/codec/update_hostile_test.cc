// The decoder against bytes that nobody's encoder made.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "common/codec/update_codec.h"
#include "common/codec/update_header.h"
#include "tests/testing/reference_update_decoder.h"
#include "tests/testing/update_samples.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using testing::RandomDelta;
using testing::ReferenceUpdateDecoder;
using testing::Reseal;
using testing::SampleHeader;

std::string Encode(const std::vector<float>& delta, double density, int bits) {
  const EncodeOptions options = {
      .encoding = density == 0 ? UpdateEncoding::kDenseFp16 : UpdateEncoding::kTopK,
      .density = density,
      .value_bits = bits};
  auto bytes = EncodeUpdate(delta, SampleHeader(delta.size()), options, {});
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.ok() ? *std::move(bytes) : std::string();
}

absl::StatusOr<DecodedUpdate> Decode(absl::string_view bytes, size_t size) {
  return DecodeUpdate(bytes, Sha256Of("layout"), size);
}

void ExpectInvalid(const std::string& bytes, size_t size, absl::string_view message) {
  const auto decoded = Decode(bytes, size);
  EXPECT_EQ(decoded.status().code(), absl::StatusCode::kInvalidArgument) << message;
  EXPECT_THAT(std::string(decoded.status().message()), HasSubstr(std::string(message)));
}

// Real and reference decoder agree: both refuse, or both give the same values.
void ExpectAgreement(const std::string& bytes, size_t size) {
  const auto decoded = Decode(bytes, size);
  const auto reference = ReferenceUpdateDecoder::Decode(bytes, Sha256Of("layout").Raw(), size);
  ASSERT_EQ(decoded.ok(), reference.has_value()) << decoded.status();
  if (!decoded.ok()) return;
  ASSERT_EQ(decoded->values.size(), size);
  ASSERT_EQ(std::memcmp(decoded->values.data(), reference->values.data(), size * sizeof(float)), 0);
}

TEST(UpdateHostileTest, RejectsTruncationAtEveryByte) {
  for (const double density : {0.0, 0.2}) {
    const std::string bytes = Encode(RandomDelta(200, 1), density, 4);
    for (size_t size = 0; size < bytes.size(); ++size) {
      EXPECT_EQ(Decode(absl::string_view(bytes).substr(0, size), 200).status().code(),
                absl::StatusCode::kInvalidArgument)
          << size;
      std::string resealed = bytes.substr(0, size);
      Reseal(&resealed);
      EXPECT_EQ(Decode(resealed, 200).status().code(), absl::StatusCode::kInvalidArgument) << size;
    }
  }
}

TEST(UpdateHostileTest, RejectsEverySingleBitFlip) {
  for (const double density : {0.0, 0.2}) {
    const std::string bytes = Encode(RandomDelta(60, 2), density, 4);
    for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
      std::string flipped = bytes;
      flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
      EXPECT_FALSE(Decode(flipped, 60).ok()) << bit;
      if (bit / 8 >= 5) {
        EXPECT_EQ(Decode(flipped, 60).status().code(), absl::StatusCode::kDataLoss) << bit;
      }
    }
  }
}

TEST(UpdateHostileTest, AgreesWithTheReferenceOnEveryResealedBitFlip) {
  for (const double density : {0.0, 0.1, 1.0}) {
    const std::string bytes = Encode(RandomDelta(150, 3), density, 2);
    for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
      std::string flipped = bytes;
      flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
      Reseal(&flipped);
      ExpectAgreement(flipped, 150);
    }
  }
}

void Mutate(Rng& rng, std::string* bytes) {
  const size_t payload = bytes->size() - kUpdateHeaderBytes;
  const uint64_t kind = rng.Below(8);
  if (kind == 0) {  // header fields that the payload must not be trusted with
    const size_t offset = rng.Below(2) == 0 ? 4 + rng.Below(4) : 96 + rng.Below(16);
    (*bytes)[offset] = static_cast<char>(rng.Next());
    return;
  }
  if (payload == 0) {
    bytes->push_back(static_cast<char>(rng.Next()));
    return;
  }
  const size_t at = kUpdateHeaderBytes + static_cast<size_t>(rng.Below(payload));
  const size_t length = 1 + static_cast<size_t>(rng.Below(std::min<size_t>(bytes->size() - at, 8)));
  switch (kind) {
    case 1:
      bytes->erase(at, length);
      break;
    case 2:
      bytes->insert(at, length, static_cast<char>(rng.Next()));
      break;
    case 3:
      bytes->replace(at, length, length, rng.Below(2) == 0 ? '\xFF' : '\0');
      break;
    case 4:  // the block's head
      (*bytes)[kUpdateHeaderBytes + rng.Below(std::min<size_t>(payload, 3))] =
          static_cast<char>(rng.Next());
      break;
    case 5:
      *bytes += bytes->substr(at, length);
      break;
    default:
      (*bytes)[at] = static_cast<char>((*bytes)[at] ^ (1 << rng.Below(8)));
  }
}

TEST(UpdateHostileTest, AgreesWithTheReferenceOnSeededMutations) {
  Rng rng(4);
  int accepted = 0;
  const int rounds = 20000;
  std::vector<std::string> seeds;
  for (const double density : {0.0, 0.02, 0.3, 1.0}) {
    for (const int bits : {2, 4, 8}) seeds.push_back(Encode(RandomDelta(300, 5), density, bits));
  }
  for (int round = 0; round < rounds; ++round) {
    std::string bytes = seeds[rng.Below(seeds.size())];
    for (uint64_t i = 1 + rng.Below(3); i > 0; --i) Mutate(rng, &bytes);
    Reseal(&bytes);
    ExpectAgreement(bytes, 300);
    if (HasFatalFailure()) FAIL() << "round " << round;
    accepted += Decode(bytes, 300).ok() ? 1 : 0;
  }
  // Both outcomes were exercised.
  EXPECT_GT(accepted, rounds / 20);
  EXPECT_LT(accepted, rounds * 3 / 4);
}

TEST(UpdateHostileTest, AgreesWithTheReferenceOnNoise) {
  Rng rng(6);
  const std::string header = Encode(RandomDelta(300, 7), 0.1, 4).substr(0, kUpdateHeaderBytes);
  for (int round = 0; round < 5000; ++round) {
    std::string bytes = header;
    for (uint64_t i = rng.Below(60); i > 0; --i) bytes.push_back(static_cast<char>(rng.Next()));
    // A plausible count, so that not all end at the head.
    if (bytes.size() > kUpdateHeaderBytes + 2 && round % 2 == 0) {
      bytes[kUpdateHeaderBytes + 1] = 0;
      bytes[kUpdateHeaderBytes + 2] = static_cast<char>(rng.Below(6) << 2);
    }
    Reseal(&bytes);
    ExpectAgreement(bytes, 300);
  }
}

// A header that claims 2^31 parameters costs nothing: the receiver knows its own number.
TEST(UpdateHostileTest, AllocatesNothingForClaimedParameters) {
  std::string bytes = Encode(RandomDelta(64, 8), 0.5, 4);
  const uint64_t claimed = uint64_t{1} << 31;
  std::memcpy(bytes.data() + 96, &claimed, sizeof(claimed));
  Reseal(&bytes);
  EXPECT_EQ(Decode(bytes, 64).status().code(), absl::StatusCode::kFailedPrecondition);
  const uint64_t beyond = claimed + 1;
  std::memcpy(bytes.data() + 96, &beyond, sizeof(beyond));
  Reseal(&bytes);
  EXPECT_EQ(Decode(bytes, 64).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(UpdateHostileTest, RejectsCountsThatCannotBeThere) {
  const std::string good = Encode(RandomDelta(200000, 9), 0.00005, 4);
  // 131,072 values in the first block, then as many as the head can say.
  std::string bytes = good;
  bytes.replace(kUpdateHeaderBytes, 3, std::string("\x00\x00\x02", 3));
  Reseal(&bytes);
  ExpectInvalid(bytes, 200000, "block 0: 131072 gaps need at least 131072 bits");
  bytes.replace(kUpdateHeaderBytes, 3, std::string("\xFF\xFF\x03", 3));
  Reseal(&bytes);
  ExpectInvalid(bytes, 200000, "block 0: 262143 values for 131072 coordinates");
  const uint64_t bomb = 200001;
  bytes = good;
  std::memcpy(bytes.data() + 104, &bomb, sizeof(bomb));
  Reseal(&bytes);
  ExpectInvalid(bytes, 200000, "num_nonzero 200001 exceeds num_parameters 200000");
}

TEST(UpdateHostileTest, RejectsGapsThatOverflow) {
  // One value, parameter 17, a quotient of many ones: the sum would leave 32 bits if it were kept.
  std::string bytes = Encode(std::vector<float>(131072, 0.0f), 0.5, 4);
  bytes.resize(kUpdateHeaderBytes);
  bytes += std::string("\x01\x00\x44", 3) + std::string(20000, '\xFF') + std::string(20, '\0');
  Reseal(&bytes);
  ExpectInvalid(bytes, 131072, "block 0: gap 0 of 1 is cut off or too long");
}

TEST(UpdateHostileTest, RejectsScalesThatAreNotNumbers) {
  std::vector<float> delta(8);
  delta[0] = 1.0f;
  const std::string good = Encode(delta, 0.125, 8);  // head 3, gaps 1, base 2, step 2, word 1
  ASSERT_EQ(good.size(), kUpdateHeaderBytes + 9);
  const size_t base = kUpdateHeaderBytes + 4;
  for (const char* bits : {"\x01\x7E", "\xFF\xFF", "\x01\x80", "\xFF\xBC"}) {
    std::string bytes = good;
    bytes.replace(base, 2, bits, 2);
    Reseal(&bytes);
    ExpectInvalid(bytes, 8, "block 0: its base");
    bytes = good;
    bytes.replace(base + 2, 2, bits, 2);
    Reseal(&bytes);
    ExpectInvalid(bytes, 8, "block 0: step 0 is");
  }
  // The largest scales that are numbers decode to finite values.
  std::string bytes = good;
  bytes.replace(base, 5, "\xFF\x7B\xFF\x7B\x7F");
  Reseal(&bytes);
  const auto decoded = Decode(bytes, 8);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->values[0], 65504.0f * 256);
}

TEST(UpdateHostileTest, NamesBothSidesOfAMismatch) {
  const std::string bytes = Encode(RandomDelta(64, 1), 0.5, 4);
  const auto layout = DecodeUpdate(bytes, Sha256Of("another"), 64);
  EXPECT_EQ(layout.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(layout.status().message()), HasSubstr(Sha256Of("layout").Hex()));
  EXPECT_THAT(std::string(layout.status().message()), HasSubstr(Sha256Of("another").Hex()));
  const auto size = Decode(bytes, 65);
  EXPECT_EQ(size.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(size.status().message(), "update: 64 parameters, the run's adapter has 65");
}

}  // namespace
}  // namespace fedge
