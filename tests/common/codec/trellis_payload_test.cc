#include "common/codec/trellis_payload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "common/codec/trellis_code.h"
#include "common/codec/update_codec.h"
#include "common/codec/update_header.h"
#include "tests/testing/update_samples.h"

namespace fedge {
namespace {

using ::testing::Each;
using testing::FlatLayout;
using ::testing::HasSubstr;
using testing::RandomDelta;
using testing::Reseal;
using testing::SampleHeader;

EncodeOptions Trellis(double bits, double relaxation = 1) {
  return {.support = UpdateSupport::kTrellis, .density = bits, .relaxation = relaxation, .seed = 3};
}

std::string Encode(const std::vector<float>& delta, const EncodeOptions& options,
                   absl::Span<float> residual = {}) {
  auto bytes = EncodeUpdate(delta, FlatLayout(delta.size()), SampleHeader(), options, residual);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.ok() ? *std::move(bytes) : std::string();
}

absl::StatusOr<DecodedUpdate> Decode(absl::string_view bytes, size_t size) {
  return DecodeUpdate(bytes, Sha256Of("layout"), FlatLayout(size));
}

// Both decoders refuse the bytes, the real one with `message`.
void ExpectInvalid(const std::string& bytes, size_t size, absl::string_view message) {
  const auto decoded = Decode(bytes, size);
  EXPECT_EQ(decoded.status().code(), absl::StatusCode::kInvalidArgument) << message;
  EXPECT_THAT(std::string(decoded.status().message()), HasSubstr(std::string(message)));
  EXPECT_FALSE(testing::ReferenceFlat(bytes, Sha256Of("layout"), FlatLayout(size)).has_value())
      << message;
}

// Head, 12 bits for each group, a bit for each period.
TEST(TrellisPayloadTest, HasTheSizeOfItsGroupsAndSteps) {
  const size_t size = 5001;  // runs of 5000 and 1
  const std::vector<float> delta = RandomDelta(size, 1);
  const struct {
    double bits;
    size_t groups, steps;
  } kTable[] = {{1, 2, 5001}, {0.5, 2, 2501}, {0.125, 2, 626}, {1.0 / 64, 1, 79}};
  for (const auto& row : kTable) {
    const size_t bytes = Encode(delta, Trellis(row.bits)).size();
    EXPECT_LE(bytes, kUpdateHeaderBytes + 1 + (12 * row.groups + row.steps + 7) / 8) << row.bits;
    EXPECT_GE(bytes + 1, kUpdateHeaderBytes + 1 + (4 * row.groups + row.steps) / 8) << row.bits;
  }
}

TEST(TrellisPayloadTest, TheMostBitsWithinAPayloadKeepTheirBound) {
  for (const uint64_t size : {7u, 64u, 5001u, 193'536u, 8'798'208u}) {
    for (const double share : {0.02, 0.1, 0.3, 0.9, 2.0}) {
      const auto bytes = static_cast<uint64_t>(share * static_cast<double>(size) / 8) + 3;
      const double bits = TrellisBitsWithin(size, bytes);
      ASSERT_LE(bits, 1);
      if (bits < kLeastTrellisBits) continue;
      EXPECT_LE(TrellisPayloadBound(size, bits), bytes) << size << " " << share;
      if (bits == 1) continue;
      const double more = bits + 2.5 / static_cast<double>(size);
      EXPECT_GE(TrellisPayloadBound(size, std::min(1.0, more * 1.001)) + 1, bytes)
          << size << " " << share;
    }
  }
}

TEST(TrellisPayloadTest, NeverPassesItsBoundNorStaysFarBelow) {
  std::vector<LoraModule> modules(40);
  for (size_t i = 0; i < modules.size(); ++i) {
    modules[i] = {absl::StrCat("blk.", i, ".attn_q.weight"), 60 + 17 * static_cast<int64_t>(i), 512,
                  4, 0};
  }
  const LoraSpec spec = LoraSpec::Create("llama", 8, modules).value();
  const std::vector<float> delta = RandomDelta(static_cast<size_t>(spec.num_parameters()), 1);
  for (const AdapterSlice& slice :
       {AdapterSlice(), AdapterSlice{SliceFactors::kB, 0, 4}, AdapterSlice{SliceFactors::kA, 1, 2},
        AdapterSlice{SliceFactors::kBoth, 0, 3}}) {
    const SliceLayout layout = SliceLayout::Create(spec, slice).value();
    for (const int period : {1, 2, 3, 7, 8, 9, 63, 64}) {
      const EncodeOptions options = Trellis(1.0 / period);
      const auto bytes = EncodeUpdate(delta, layout, SampleHeader(), options, {});
      ASSERT_TRUE(bytes.ok()) << bytes.status();
      const uint64_t bound = EncodedSizeBound(static_cast<uint64_t>(layout.size()), options);
      EXPECT_LE(bytes->size(), bound) << period;
      EXPECT_GE(static_cast<double>(bytes->size()), 0.9 * static_cast<double>(bound)) << period;
    }
  }
}

double Energy(const std::vector<float>& values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * value;
  return sum;
}

TEST(TrellisPayloadTest, RelaxationScalesWhatIsSentAndOneLeavesTheLeast) {
  const std::vector<float> delta = RandomDelta(20'000, 2);
  for (const double bits : {1.0, 0.25}) {
    std::vector<double> left, sent;
    for (const double relaxation : {0.8, 1.0, 1.5}) {
      std::vector<float> residual(delta.size());
      const std::string bytes = Encode(delta, Trellis(bits, relaxation), absl::MakeSpan(residual));
      left.push_back(Energy(residual));
      sent.push_back(std::sqrt(Energy(Decode(bytes, delta.size())->values)));
    }
    EXPECT_LT(left[1], left[0]);
    EXPECT_LT(left[1], left[2]);
    EXPECT_LT(left[1], Energy(delta));
    EXPECT_NEAR(sent[0] / sent[1], 0.8, 0.08);  // a scale is within a sixteenth
    EXPECT_NEAR(sent[2] / sent[1], 1.5, 0.15);
  }
}

// A run far above the others has a scale of its own, and theirs do not suffer.
TEST(TrellisPayloadTest, GroupsKeepTheirOwnScale) {
  std::vector<LoraModule> modules(2);
  for (size_t i = 0; i < 2; ++i) {
    modules[i] = {absl::StrCat("blk.", i, ".attn_q.weight"), 2048, 2048, 1, 0};
  }
  const SliceLayout layout = SliceLayout::Whole(LoraSpec::Create("llama", 1, modules).value());
  std::vector<float> delta = RandomDelta(8192, 3);
  for (size_t i = 2048; i < 4096; ++i) delta[i] *= 1000;
  std::vector<float> residual(delta.size());
  ASSERT_TRUE(
      EncodeUpdate(delta, layout, SampleHeader(), Trellis(0.5), absl::MakeSpan(residual)).ok());
  for (size_t run = 0; run < 4; ++run) {
    const auto part = [&](const std::vector<float>& values) {
      const auto begin = values.begin() + static_cast<int64_t>(run * 2048);
      return Energy(std::vector<float>(begin, begin + 2048));
    };
    // The loud run has a bit a value and no other's scale; they share what is left.
    EXPECT_LT(part(residual), (run == 1 ? 0.4 : 0.8) * part(delta)) << run;
    EXPECT_GT(part(residual), (run == 1 ? 0.3 : 0.5) * part(delta)) << run;
  }
}

TEST(TrellisPayloadTest, ZerosAndTheLargestValuesAreSound) {
  const std::vector<float> zeros(700);
  const auto nothing = Decode(Encode(zeros, Trellis(0.5)), 700);
  ASSERT_TRUE(nothing.ok()) << nothing.status();
  EXPECT_THAT(nothing->values, Each(0.0f));
  std::vector<float> largest(700, 65504.0f);
  for (size_t i = 0; i < largest.size(); i += 2) largest[i] = -65504;
  const auto decoded = Decode(Encode(largest, Trellis(1, 1.5)), 700);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  for (size_t i = 0; i < largest.size(); ++i) {  // the largest scale
    ASSERT_EQ(decoded->values[i], i % 2 == 0 ? -960.0f : 960.0f) << i;
  }
}

TEST(TrellisPayloadTest, NamesWhatIsWrongWithAHeader) {
  const std::string good = Encode(RandomDelta(64, 1), Trellis(0.5));
  ASSERT_TRUE(Decode(good, 64).ok());
  const auto with = [&](size_t offset, char byte) {
    std::string changed = good;
    changed[offset] = byte;
    Reseal(&changed);
    return changed;
  };
  ExpectInvalid(with(6, 2), 64, "value_bits 2 of a trellis, whose is 1");
  ExpectInvalid(with(112, 63), 64, "num_nonzero 63 of 64 in a trellis update");
  ExpectInvalid(with(112, 65), 64, "num_nonzero 65 exceeds num_parameters 64");
  ExpectInvalid(with(112, 0), 64, "num_nonzero 0 of 64 in a trellis update");
}

TEST(TrellisPayloadTest, NamesWhatIsWrongWithAPayload) {
  using std::string;
  const string head = Encode(RandomDelta(30, 1), Trellis(0.25)).substr(0, kUpdateHeaderBytes);
  const auto with = [&](absl::string_view payload) {
    string bytes = absl::StrCat(head, payload);
    Reseal(&bytes);
    return bytes;
  };
  // One group at rate 9 (period 4): 8 steps; 4 bits of rate, 8 of scale (0xb0: 1), 8 of path.
  const string payload("\x0b\x09\xfb\x0f", 4);
  const auto good = Decode(with(payload), 30);
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_EQ(std::abs(good->values[29]), 1.0f);
  const auto changed = [&](size_t offset, char byte) {
    string bytes = payload;
    bytes[offset] = byte;
    return with(bytes);
  };
  ExpectInvalid(with(""), 30, "the payload's head is cut off");
  ExpectInvalid(with("\x0b"), 30, "the rates of 1 groups are cut off");
  ExpectInvalid(changed(0, '\x20'), 30, "scale groups of 2^32 values");
  for (const int rate : {13, 15}) {
    ExpectInvalid(changed(1, static_cast<char>(rate)), 30,
                  absl::StrCat("rate ", rate, " of a group, the last is 12"));
  }
  ExpectInvalid(with(payload.substr(0, 3)), 30,
                "a payload of 3 bytes, 1 groups and a path of 8 bits need 4");
  ExpectInvalid(with(payload + string(1, '\0')), 30, "a payload of 5 bytes");
  ExpectInvalid(changed(1, '\x0c'), 30, "a path of 30 bits need 7");
  ExpectInvalid(with("\x02\x99\xfb\x0f"), 30, "2 groups and a path of 9 bits need 6");
  ExpectInvalid(changed(3, '\x1f'), 30, "bits after the path are not zero");
  const auto nothing = Decode(with(string("\x0b\0", 2)), 30);
  ASSERT_TRUE(nothing.ok()) << nothing.status();
  EXPECT_THAT(nothing->values, Each(0.0f));
}

// A path is there or the update is refused before its values are.
TEST(TrellisPayloadTest, AllocatesNothingForAPathThatIsNotThere) {
  std::string bytes = Encode(RandomDelta(100'000, 1), Trellis(1.0 / 64));
  bytes.resize(bytes.size() - 100);
  Reseal(&bytes);
  ExpectInvalid(bytes, 100'000, "bits need 2");
}

}  // namespace
}  // namespace fedge
