#include "common/codec/adapter_delta.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "common/base/byte_io.h"
#include "common/base/rng.h"
#include "tests/testing/adapter_samples.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using testing::RandomUnits;
using testing::ResealAdapter;
using testing::SampleSpec;

const Digest kBase = Sha256Of("base model");

std::string EncodeUnits(const LoraSpec& spec, const std::vector<int32_t>& units) {
  AdapterHeader header;
  header.from_version = 3;
  header.to_version = 7;
  header.base_model = kBase;
  header.values_crc = 99;
  return EncodeAdapterDelta(spec, header, units);
}

// Bits of independent values of these frequencies.
double EntropyBits(const std::vector<int32_t>& units) {
  std::map<int32_t, double> counts;
  for (const int32_t value : units) ++counts[value];
  double bits = 0;
  const auto total = static_cast<double>(units.size());
  for (const auto& [value, count] : counts) bits -= count * std::log2(count / total);
  return bits;
}

TEST(AdapterDeltaTest, GivesBackWhatWasEncoded) {
  const LoraSpec spec = SampleSpec(64, 4);
  for (const double density : {0.0, 0.001, 0.03, 0.3, 1.0}) {
    for (const double spread : {0.5, 3.0, 1e6}) {
      const std::vector<int32_t> units = RandomUnits(spec, density, spread, 0, 5);
      const std::string bytes = EncodeUnits(spec, units);
      EXPECT_LE(bytes.size(), AdapterContentBound(units.size()));
      std::vector<int32_t> decoded(units.size(), 0);
      const auto header = AddAdapterDelta(spec, kBase, bytes, absl::MakeSpan(decoded));
      ASSERT_TRUE(header.ok()) << density << " " << spread << ": " << header.status();
      EXPECT_EQ(decoded, units);
      EXPECT_EQ(header->from_version, 3);
      EXPECT_EQ(header->to_version, 7);
      EXPECT_EQ(header->values_crc, 99);
      EXPECT_EQ(header->encoding, AdapterEncoding::kDelta);
    }
  }
}

TEST(AdapterDeltaTest, GivesBackATrellis) {
  const LoraSpec spec = SampleSpec(64, 4);
  Rng rng(4);
  std::vector<float> change(static_cast<size_t>(spec.num_parameters()));
  for (float& value : change) value = static_cast<float>(0.01 * rng.Normal());
  const auto coded = QuantizeToTrellis(spec, 7, 0.25, 1, change);
  ASSERT_TRUE(coded.ok()) << coded.status();
  AdapterHeader header;
  header.from_version = 6;
  header.to_version = 7;
  header.base_model = kBase;
  const std::string bytes = EncodeAdapterTrellis(spec, header, *coded);
  EXPECT_LT(bytes.size(), kAdapterHeaderBytes + change.size() / 32 + change.size() / 500 + 8);
  std::vector<int32_t> decoded(change.size(), 5);
  const auto read = AddAdapterDelta(spec, kBase, bytes, absl::MakeSpan(decoded));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->encoding, AdapterEncoding::kTrellis);
  double left = 0, all = 0;
  for (size_t i = 0; i < change.size(); ++i) {
    ASSERT_EQ(decoded[i], coded->units[i] + 5);
    const double difference = change[i] - coded->units[i] * kAdapterUnit;
    left += difference * difference;
    all += static_cast<double>(change[i]) * change[i];
  }
  EXPECT_LT(left, 0.78 * all);
  // Too large for a unit; not a number; sums out of bounds.
  std::vector<float> large(change.size(), 100.0f);
  EXPECT_TRUE(absl::IsOutOfRange(QuantizeToTrellis(spec, 7, 1, 1, large).status()));
  large[3] = std::nanf("");
  EXPECT_TRUE(absl::IsInvalidArgument(QuantizeToTrellis(spec, 7, 1, 1, large).status()));
  decoded.assign(change.size(), kMaxAdapterUnits);
  EXPECT_TRUE(absl::IsInvalidArgument(
      AddAdapterDelta(spec, kBase, bytes, absl::MakeSpan(decoded)).status()));
}

TEST(AdapterDeltaTest, GivesBackExtremesAndExponents) {
  const LoraSpec spec = SampleSpec(16, 2);
  std::vector<int32_t> units(static_cast<size_t>(spec.num_parameters()));
  units[0] = kMaxAdapterUnits;
  units[1] = -kMaxAdapterUnits;
  units[40] = 1;
  for (size_t i = 64; i < units.size(); ++i) units[i] = static_cast<int32_t>(i % 3) << (i % 24);
  std::vector<int32_t> decoded(units.size(), 0);
  ASSERT_TRUE(AddAdapterDelta(spec, kBase, EncodeUnits(spec, units), absl::MakeSpan(decoded)).ok());
  EXPECT_EQ(decoded, units);
}

// From one value in two hundred to dense sums, the size is that of independent values, header and
// the cost of learning included.
TEST(AdapterDeltaTest, IsNearTheEntropy) {
  const LoraSpec spec = SampleSpec(1024, 16);  // 98,304 parameters
  struct Case {
    double density;
    double spread;
  };
  for (const Case& c :
       {Case{0.005, 1}, Case{0.03, 1}, Case{0.1, 2}, Case{0.3, 2}, Case{1, 3}, Case{1, 40}}) {
    const std::vector<int32_t> units = RandomUnits(spec, c.density, c.spread, 12, 11);
    const double entropy = EntropyBits(units);
    const double bits = 8.0 * static_cast<double>(EncodeUnits(spec, units).size());
    const double header = 8.0 * kAdapterHeaderBytes;
    std::printf("density %.3f spread %g: %.4f bits a parameter, entropy %.4f, ratio %.4f\n",
                c.density, c.spread, bits / static_cast<double>(units.size()),
                entropy / static_cast<double>(units.size()), bits / entropy);
    EXPECT_LT(bits, 1.02 * entropy + header + 2000);
    EXPECT_GT(bits, 0.98 * entropy);
  }
}

TEST(AdapterDeltaTest, CarriesThroughRunsOfOnes) {
  // Decisions of extreme probability, one after the other, drive the coder's carries.
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const LoraSpec spec = SampleSpec(32, 2);
    Rng rng(seed);
    std::vector<int32_t> units(static_cast<size_t>(spec.num_parameters()));
    const uint64_t period = 1 + rng.Below(40);
    for (int32_t& value : units) {
      if (rng.Below(period) == 0) value = static_cast<int32_t>(rng.Below(3)) - 1;
    }
    std::vector<int32_t> decoded(units.size(), 0);
    ASSERT_TRUE(
        AddAdapterDelta(spec, kBase, EncodeUnits(spec, units), absl::MakeSpan(decoded)).ok());
    ASSERT_EQ(decoded, units) << seed;
  }
}

TEST(AdapterDeltaTest, ValuesAreExactInFp32AndRoundedInFp16) {
  const LoraSpec spec = SampleSpec(16, 2);
  std::vector<float> values(static_cast<size_t>(spec.num_parameters()), 0.1f);
  values[3] = -1e-30f;
  AdapterHeader header;
  header.encoding = AdapterEncoding::kFp32;
  header.to_version = 5;
  header.base_model = kBase;
  const auto exact = EncodeAdapterValues(spec, header, values);
  ASSERT_TRUE(exact.ok()) << exact.status();
  EXPECT_EQ(exact->size(), kAdapterHeaderBytes + 4 * values.size());
  std::vector<float> decoded(values.size());
  const auto read = DecodeAdapterValues(spec, kBase, *exact, absl::MakeSpan(decoded));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(decoded, values);
  EXPECT_EQ(read->from_version, 5);
  header.encoding = AdapterEncoding::kFp16;
  const auto half = EncodeAdapterValues(spec, header, values);
  ASSERT_TRUE(half.ok()) << half.status();
  ASSERT_TRUE(DecodeAdapterValues(spec, kBase, *half, absl::MakeSpan(decoded)).ok());
  EXPECT_EQ(decoded[0], 0.0999755859375f);
  EXPECT_EQ(decoded[3], 0.0f);
  values[9] = 1e6f;
  EXPECT_EQ(EncodeAdapterValues(spec, header, values).status().code(),
            absl::StatusCode::kInvalidArgument);
  values[9] = std::nanf("");
  header.encoding = AdapterEncoding::kFp32;
  EXPECT_EQ(EncodeAdapterValues(spec, header, values).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(AdapterDeltaTest, AppliesUnitsWithOneRounding) {
  const std::vector<float> start = {0.1f, 0, -3e-9f, 1e-20f};
  const std::vector<int32_t> units = {1, -kMaxAdapterUnits, 3, 0};
  std::vector<float> values(4);
  ApplyUnits(start, units, absl::MakeSpan(values));
  EXPECT_EQ(values[0], static_cast<float>(static_cast<double>(0.1f) + 0x1p-24));
  EXPECT_EQ(values[1], -64.0f);
  EXPECT_EQ(values[2], static_cast<float>(static_cast<double>(-3e-9f) + 3 * 0x1p-24));
  EXPECT_EQ(values[3], 1e-20f);
}

class HostileAdapterTest : public ::testing::Test {
 protected:
  absl::Status Read(const std::string& bytes) {
    std::vector<int32_t> units(static_cast<size_t>(spec_.num_parameters()));
    return AddAdapterDelta(spec_, kBase, bytes, absl::MakeSpan(units)).status();
  }
  // The good delta with other bytes somewhere and the checksums right.
  absl::Status ReadWith(size_t offset, absl::string_view replacement) {
    std::string bytes = good_;
    bytes.replace(offset, replacement.size(), replacement.data(), replacement.size());
    ResealAdapter(&bytes);
    return Read(bytes);
  }

  const LoraSpec spec_ = SampleSpec(64, 4);
  const std::string good_ = EncodeUnits(spec_, RandomUnits(spec_, 0.1, 2, 8, 1));
};

TEST_F(HostileAdapterTest, RejectsEveryTruncationAndEveryFlippedBit) {
  ASSERT_TRUE(Read(good_).ok());
  for (size_t size = 0; size < good_.size(); ++size) {
    EXPECT_FALSE(Read(good_.substr(0, size)).ok()) << size;
  }
  for (size_t bit = 0; bit < 8 * good_.size(); ++bit) {
    std::string bytes = good_;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_FALSE(Read(bytes).ok()) << bit;
  }
  EXPECT_EQ(Read(good_ + "x").code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(HostileAdapterTest, NamesWhatIsWrong) {
  using absl::StatusCode;
  EXPECT_EQ(Read("").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadWith(0, "FDGU").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadWith(4, "\x02").code(), StatusCode::kUnimplemented);
  EXPECT_EQ(ReadWith(5, "\x06").code(), StatusCode::kUnimplemented);
  EXPECT_EQ(ReadWith(5, "\x04").code(), StatusCode::kUnimplemented);     // no longer
  EXPECT_EQ(ReadWith(5, "\x05").code(), StatusCode::kInvalidArgument);   // levels as a trellis
  EXPECT_EQ(ReadWith(5, "\x01").code(), StatusCode::kInvalidArgument);   // a delta that says values
  EXPECT_EQ(ReadWith(6, "\x01").code(), StatusCode::kInvalidArgument);   // reserved
  EXPECT_EQ(ReadWith(8, "\x08").code(), StatusCode::kInvalidArgument);   // from 8 to 7
  EXPECT_EQ(ReadWith(24, "?").code(), StatusCode::kFailedPrecondition);  // layout
  EXPECT_EQ(ReadWith(56, "?").code(), StatusCode::kFailedPrecondition);  // base model
  EXPECT_EQ(ReadWith(88, std::string(8, '\0')).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadWith(88, std::string(8, '\xFF')).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadWith(96, std::string(8, '\xFF')).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadWith(96, "\x01\x00").code(), StatusCode::kInvalidArgument);  // one change
  std::string damaged = good_;
  damaged[100] = static_cast<char>(damaged[100] ^ 1);
  EXPECT_EQ(Read(damaged).code(), StatusCode::kDataLoss);
  damaged = good_;
  damaged[kAdapterHeaderBytes] = static_cast<char>(damaged[kAdapterHeaderBytes] ^ 1);
  EXPECT_EQ(Read(damaged).code(), StatusCode::kDataLoss);
}

TEST_F(HostileAdapterTest, AnyPayloadEndsAndStaysInBounds) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Rng rng(seed);
    std::string payload(rng.Below(400), '\0');
    for (char& c : payload) c = static_cast<char>(rng.Below(256));
    std::string bytes = good_.substr(0, kAdapterHeaderBytes) + payload;
    ResealAdapter(&bytes);
    EXPECT_EQ(Read(bytes).code(), absl::StatusCode::kInvalidArgument) << seed;
  }
}

TEST_F(HostileAdapterTest, RefusesSumsOutOfBounds) {
  std::vector<int32_t> units(static_cast<size_t>(spec_.num_parameters()), 0);
  units[7] = 1;
  const std::string one = EncodeUnits(spec_, units);
  units[7] = kMaxAdapterUnits;
  const auto status = AddAdapterDelta(spec_, kBase, one, absl::MakeSpan(units)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("beyond 1073741824"));
}

TEST_F(HostileAdapterTest, RefusesAnotherAdapterOrBase) {
  const LoraSpec other = SampleSpec(32, 4);
  std::vector<int32_t> units(static_cast<size_t>(other.num_parameters()));
  EXPECT_EQ(AddAdapterDelta(other, kBase, good_, absl::MakeSpan(units)).status().code(),
            absl::StatusCode::kFailedPrecondition);
  units.resize(static_cast<size_t>(spec_.num_parameters()));
  EXPECT_EQ(
      AddAdapterDelta(spec_, Sha256Of("another"), good_, absl::MakeSpan(units)).status().code(),
      absl::StatusCode::kFailedPrecondition);
  std::vector<float> values(units.size());
  EXPECT_EQ(DecodeAdapterValues(spec_, kBase, good_, absl::MakeSpan(values)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fedge
