// The decoder against bytes that nobody's encoder made.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "common/codec/trellis_rates.h"
#include "common/codec/update_codec.h"
#include "common/codec/update_header.h"
#include "tests/testing/update_samples.h"

namespace fedge {
namespace {

using testing::Flat;
using testing::FlatLayout;
using ::testing::HasSubstr;
using testing::RandomDelta;
using testing::Reseal;
using testing::SampleHeader;

constexpr UpdateSupport kDense = UpdateSupport::kDense;
constexpr UpdateSupport kTopK = UpdateSupport::kTopK;
constexpr UpdateSupport kSeeded = UpdateSupport::kSeeded;
constexpr UpdateSupport kTrellis = UpdateSupport::kTrellis;

std::string Encode(const std::vector<float>& delta, UpdateSupport support, double density,
                   int bits) {
  const EncodeOptions options = {
      .support = support, .density = density, .value_bits = bits, .seed = 77};
  auto bytes = EncodeUpdate(delta, FlatLayout(delta.size()), SampleHeader(), options, {});
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.ok() ? *std::move(bytes) : std::string();
}

// One of each kind, of `size` values.
std::vector<std::string> Samples(size_t size) {
  const std::vector<float> delta = RandomDelta(size, 1);
  std::vector<std::string> samples;
  for (const int bits : {1, 2, 3, 4, 8, 16}) {
    samples.push_back(Encode(delta, kDense, 1, bits));
    samples.push_back(Encode(delta, kTopK, 0.1, bits));
    samples.push_back(Encode(delta, kSeeded, 0.1, bits));
  }
  for (const double bits : {1.0, 0.3, 0.125, kLeastTrellisBits}) {
    samples.push_back(Encode(delta, kTrellis, bits, 1));
  }
  samples.push_back(Encode(delta, kTopK, 0.6, 4));
  samples.push_back(Encode(delta, kTopK, 1, 2));
  std::vector<float> clustered(size);  // where Rice codes win
  clustered[size / 2] = 1;
  samples.push_back(Encode(clustered, kTopK, 0.1, 2));
  return samples;
}

absl::StatusOr<DecodedUpdate> Decode(absl::string_view bytes, size_t size) {
  return DecodeUpdate(bytes, Sha256Of("layout"), FlatLayout(size));
}

void ExpectInvalid(const std::string& bytes, size_t size, absl::string_view message) {
  const auto decoded = Decode(bytes, size);
  EXPECT_EQ(decoded.status().code(), absl::StatusCode::kInvalidArgument) << message;
  EXPECT_THAT(std::string(decoded.status().message()), HasSubstr(std::string(message)));
}

// Real and reference decoder agree: both refuse, or both give the same values.
void ExpectAgreement(const std::string& bytes, size_t size) {
  const SliceLayout layout = FlatLayout(size);
  const auto decoded = DecodeUpdate(bytes, Sha256Of("layout"), layout);
  const auto reference = testing::ReferenceFlat(bytes, Sha256Of("layout"), layout);
  ASSERT_EQ(decoded.ok(), reference.has_value()) << decoded.status();
  if (!decoded.ok()) return;
  ASSERT_EQ(Flat(*decoded, layout), *reference);
}

TEST(UpdateHostileTest, TheReferenceDecodesWhatTheEncoderMakes) {
  for (const size_t size : {2u, 60u, 3000u}) {
    for (const std::string& bytes : Samples(size)) {
      ExpectAgreement(bytes, size);
      EXPECT_TRUE(Decode(bytes, size).ok());
    }
  }
}

TEST(UpdateHostileTest, RejectsTruncationAtEveryByte) {
  for (const std::string& bytes : Samples(200)) {
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
  for (const std::string& bytes : Samples(60)) {
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
  for (const std::string& bytes : Samples(150)) {
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
    const size_t offset = rng.Below(2) == 0 ? 4 + rng.Below(12) : 112 + rng.Below(4);
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
  const std::vector<std::string> seeds = Samples(300);
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
  int accepted = 0;
  for (const UpdateSupport support : {kDense, kTopK, kSeeded}) {
    for (int round = 0; round < 4000; ++round) {
      // A head that could be right, so that not all end there.
      std::string bytes =
          Encode(RandomDelta(40, 7), support, 0.2, std::vector<int>{1, 2, 3, 4, 8}[rng.Below(5)])
              .substr(0, kUpdateHeaderBytes);
      const auto position_mode = static_cast<char>(support == kTopK ? 1 + rng.Below(2) : 0);
      bytes.push_back(static_cast<char>(position_mode + 4 * static_cast<int>(rng.Below(2))));
      bytes.push_back(static_cast<char>(rng.Below(8) == 0 ? rng.Below(64) : 31));
      const auto coded = static_cast<char>(rng.Below(12));
      bytes.push_back(coded);
      const size_t length = static_cast<size_t>(coded) + rng.Below(60);
      for (size_t i = 0; i < length; ++i) bytes.push_back(static_cast<char>(rng.Next()));
      Reseal(&bytes);
      ExpectAgreement(bytes, 40);
      accepted += Decode(bytes, 40).ok() ? 1 : 0;
    }
  }
  EXPECT_LT(accepted, 2000);
}

TEST(UpdateHostileTest, AgreesWithTheReferenceOnTrellisNoise) {
  Rng rng(8);
  int accepted = 0;
  const std::string good = Encode(RandomDelta(40, 7), kTrellis, 0.2, 1);
  for (int round = 0; round < 4000; ++round) {
    std::string bytes = good.substr(0, kUpdateHeaderBytes);
    const bool one_group = rng.Below(8) != 0;
    bytes.push_back(static_cast<char>(one_group ? 31 : rng.Below(64)));
    // Most rates are known ones; the right length half of the time.
    const uint64_t rate = rng.Below(8) == 0 ? rng.Below(16) : rng.Below(13);
    bytes.push_back(static_cast<char>(rate | (rng.Next() << 4)));
    const int period = rate < kTrellisPeriods.size() ? kTrellisPeriods[rate] : 1;
    const uint64_t bits = (rate > 0 ? 12 : 4) + TrellisSteps(40, period);
    const uint64_t length = rng.Below(2) == 0 ? (bits - 1) / 8 : rng.Below(9);
    for (uint64_t i = 0; i < length; ++i) bytes.push_back(static_cast<char>(rng.Next()));
    if (bits % 8 != 0 && rng.Below(4) != 0) {
      bytes.back() = static_cast<char>(bytes.back() & ((1 << (bits % 8)) - 1));
    }
    Reseal(&bytes);
    ExpectAgreement(bytes, 40);
    accepted += Decode(bytes, 40).ok() ? 1 : 0;
  }
  EXPECT_GT(accepted, 400);
  EXPECT_LT(accepted, 3000);
}

// A header that claims 2^31 parameters costs nothing: the receiver knows its own number.
TEST(UpdateHostileTest, AllocatesNothingForClaimedParameters) {
  std::string bytes = Encode(RandomDelta(64, 8), kTopK, 0.5, 4);
  const uint32_t claimed = uint32_t{1} << 31;
  std::memcpy(bytes.data() + 12, &claimed, sizeof(claimed));
  Reseal(&bytes);
  EXPECT_EQ(Decode(bytes, 64).status().code(), absl::StatusCode::kFailedPrecondition);
  const uint32_t beyond = claimed + 1;
  std::memcpy(bytes.data() + 12, &beyond, sizeof(beyond));
  Reseal(&bytes);
  ExpectInvalid(bytes, 64, "num_parameters 2147483649 is outside 1 to 2147483648");
}

// Nor does a count: every value takes at least a bit that is not modelled.
TEST(UpdateHostileTest, RejectsCountsThatCannotBeThere) {
  std::string bytes = Encode(RandomDelta(200000, 9), kTopK, 0.00005, 4);
  const auto claim = [&](uint32_t count) {
    std::memcpy(bytes.data() + 112, &count, sizeof(count));
    Reseal(&bytes);
  };
  claim(199999);
  ExpectInvalid(bytes, 200000, "num_nonzero 199999 values need at least 799996 bits");
  claim(200001);
  ExpectInvalid(bytes, 200000, "num_nonzero 200001 exceeds num_parameters 200000");
}

std::string WithPayload(UpdateSupport support, uint32_t count, int bits,
                        absl::string_view payload) {
  std::string bytes =
      Encode(RandomDelta(1000, 1), support, 0.5, bits).substr(0, kUpdateHeaderBytes);
  std::memcpy(bytes.data() + 112, &count, sizeof(count));
  bytes.append(payload.data(), payload.size());
  Reseal(&bytes);
  return bytes;
}

TEST(UpdateHostileTest, NamesWhatIsWrongWithAPayload) {
  using std::string;
  ExpectInvalid(WithPayload(kTopK, 1, 1, ""), 1000, "the payload's head is cut off");
  ExpectInvalid(WithPayload(kTopK, 1, 1, string("\x03\x1f\x00", 3)), 1000,
                "modes 3 do not fit 1 values of 1 bits");
  ExpectInvalid(WithPayload(kTopK, 1, 1, string("\x05\x1f\x00", 3)), 1000, "modes 5 do not fit");
  ExpectInvalid(WithPayload(kSeeded, 1, 2, string("\x01\x1f\x00", 3)), 1000, "modes 1 do not fit");
  ExpectInvalid(WithPayload(kTopK, 1, 2, string("\x01\x20\x00", 3)), 1000,
                "scale groups of 2^32 values");
  ExpectInvalid(WithPayload(kTopK, 1, 2, string("\x01\x1f\x09", 3)), 1000,
                "a coded section of 9 bytes, 0 are left");
  ExpectInvalid(WithPayload(kTopK, 1, 2, string("\x01\x1f\x80\x00zz", 6)), 1000,
                "a coded section of");
  // Rice: parameter 31; a quotient of 56 ones with parameter 5; the scale 1 and -1; a value cut
  // off; padding; one byte too many.
  ExpectInvalid(WithPayload(kTopK, 1, 1, string("\x01\x1f\x00\x1f", 4)), 1000,
                "Rice parameter 31 is above 30");
  ExpectInvalid(WithPayload(kTopK, 1, 1, string("\x01\x1f\x00\xe5\xff\xff\xff\xff\xff\x01", 10)),
                1000, "gap 0 of 1 is cut off or too long");
  ExpectInvalid(WithPayload(kTopK, 1, 1, string("\x01\x1f\x00\xe5\xff\xff\xff\xef\x03", 9)), 1000,
                "gap 0 of 1 leads to position 1023 of 1000");
  ExpectInvalid(WithPayload(kTopK, 1, 1, string("\x01\x1f\x00\x40\x00\x3c\x00", 7)), 1000,
                "bits after the last gap are not zero");
  ExpectInvalid(WithPayload(kTopK, 1, 1, string("\x01\x1f\x00\x00\x00\xbc\x00", 7)), 1000,
                "scale 0 is -1, 0: negative");
  ExpectInvalid(WithPayload(kTopK, 1, 1, string("\x01\x1f\x00\x00\x00\x7e\x00", 7)), 1000,
                "scale 0 is nan, 0: negative, not finite");
  ExpectInvalid(WithPayload(kTopK, 1, 2, string("\x01\x1f\x00\x00\x00\x3c\x00", 7)), 1000,
                "1 scales in 3 bytes");
  ExpectInvalid(WithPayload(kTopK, 1, 1, string("\x01\x1f\x00\x00\x00\x3c", 6)), 1000,
                "value 0 is cut off");
  ExpectInvalid(WithPayload(kTopK, 1, 1, string("\x01\x1f\x00\x00\x00\x3c\x02", 7)), 1000,
                "0 bytes after the last value");
  ExpectInvalid(WithPayload(kTopK, 1, 1, string("\x01\x1f\x00\x00\x00\x3c\x00\x00", 8)), 1000,
                "1 bytes after the last value");
  ExpectInvalid(WithPayload(kTopK, 1, 1, string("\x01\x1f\x08zzzzzzzz\x00\x00\x3c\x00", 15)), 1000,
                "its coded section is longer than what it codes");
  ExpectInvalid(WithPayload(kTopK, 1, 16, string("\x01\x1f\x00\x00\x00\x7c", 6)), 1000,
                "value 0 is inf");
  const auto good =
      Decode(WithPayload(kTopK, 1, 1, string("\x01\x1f\x00\x00\x00\x3c\x01", 7)), 1000);
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_EQ(good->values[0], -1.0f);
  EXPECT_EQ(good->coordinates[0], 0u);
}

TEST(UpdateHostileTest, NamesWhatIsWrongWithAHeader) {
  const std::string good = Encode(RandomDelta(64, 1), kTopK, 0.5, 4);
  const auto with = [&](size_t offset, absl::string_view bytes) {
    std::string changed = good;
    changed.replace(offset, bytes.size(), bytes.data(), bytes.size());
    Reseal(&changed);
    return changed;
  };
  ExpectInvalid(with(0, "GGUF"), 64, "the first four bytes are not \"FDGU\"");
  EXPECT_EQ(Decode(with(4, "\x01"), 64).status().code(), absl::StatusCode::kUnimplemented);
  for (const char* support : {"\x03", "\x05"}) {
    EXPECT_EQ(Decode(with(5, support), 64).status().code(), absl::StatusCode::kUnimplemented);
  }
  ExpectInvalid(with(5, "\x04"), 64, "num_nonzero 32 of 64 in a trellis update");
  ExpectInvalid(with(6, "\x05"), 64, "value_bits 5 is none of");
  ExpectInvalid(with(7, "\x03"), 64, "factors 3 is not 0, 1 or 2");
  ExpectInvalid(with(8, std::string("\x00\x04", 2)), 64, "components [1024, 1024) are not within");
  ExpectInvalid(with(10, std::string("\x01\x04", 2)), 64, "components [0, 1025) are not within");
  ExpectInvalid(with(40, "\x01"), 64, "seed 1 where the support has none");
  ExpectInvalid(with(12, std::string(4, '\0')), 64, "num_parameters 0 is outside");
  const std::string longer = good + "x";
  ExpectInvalid(longer, 64, "a payload of");
}

}  // namespace
}  // namespace fedge
