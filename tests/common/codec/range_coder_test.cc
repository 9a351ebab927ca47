#include "common/codec/range_coder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "common/base/rng.h"
#include "tests/testing/reference_readers.h"

namespace fedge {
namespace {

std::vector<bool> Decisions(size_t count, double ones, uint64_t seed) {
  Rng rng(seed);
  std::vector<bool> decisions(count);
  for (size_t i = 0; i < count; ++i) decisions[i] = rng.Uniform() < ones;
  return decisions;
}

std::string Encode(const std::vector<bool>& decisions) {
  RangeEncoder coder;
  AdaptiveBit bit;
  for (const bool one : decisions) coder.Encode(one, bit);
  return std::move(coder).Finish();
}

TEST(RangeCoderTest, ReadsBackDecisionsAndRawBits) {
  for (const size_t count : {0u, 1u, 7u, 1000u, 50000u}) {
    for (const double ones : {0.0, 0.001, 0.4, 1.0}) {
      const std::vector<bool> decisions = Decisions(count, ones, count);
      RangeEncoder encoder;
      AdaptiveBit bits[2];
      for (size_t i = 0; i < count; ++i) {
        encoder.Encode(decisions[i], bits[i % 2]);
        if (i % 5 == 0) encoder.EncodeRaw(static_cast<uint32_t>(i) * 2654435761u, 32);
        if (i % 1000 == 0) bits[0].Loosen();
      }
      const std::string bytes = std::move(encoder).Finish();
      RangeDecoder decoder(bytes);
      AdaptiveBit again[2];
      for (size_t i = 0; i < count; ++i) {
        ASSERT_EQ(decoder.Decode(again[i % 2]), decisions[i]) << i;
        const uint32_t raw = static_cast<uint32_t>(i) * 2654435761u;
        if (i % 5 == 0) {
          ASSERT_EQ(decoder.DecodeRaw(32), raw);
        }
        if (i % 1000 == 0) again[0].Loosen();
      }
      EXPECT_TRUE(decoder.AtEnd()) << count << " " << ones;
    }
  }
}

TEST(RangeCoderTest, AgreesWithThePageAsAProgram) {
  const std::vector<bool> decisions = Decisions(20000, 0.03, 1);
  const std::string bytes = Encode(decisions);
  testing::ReferenceRangeDecoder decoder(bytes);
  testing::ReferenceProbability probability;
  for (const bool one : decisions) ASSERT_EQ(decoder.Decision(probability), one);
  EXPECT_TRUE(decoder.AtEnd());
}

TEST(RangeCoderTest, CostsWhatDecisionsAreWorthHoweverRare) {
  for (const double ones : {0.0005, 0.01, 0.2, 0.5, 0.99}) {
    const size_t count = 1'000'000;
    const double bits = 8.0 * static_cast<double>(Encode(Decisions(count, ones, 3)).size());
    const double entropy = -ones * std::log2(ones) - (1 - ones) * std::log2(1 - ones);
    EXPECT_LT(bits / (entropy * count), 1.05) << ones;
    EXPECT_GT(bits / (entropy * count), 0.95) << ones;
  }
  EXPECT_LT(Encode(std::vector<bool>(1'000'000)).size(), 400u);
}

// A raw zero moves to the upper half: many in a row, then adding to them, carry through 0xFF bytes.
TEST(RangeCoderTest, CarriesThroughLongRunsOfFullBytes) {
  for (int zeros = 40; zeros < 120; ++zeros) {
    RangeEncoder encoder;
    encoder.EncodeRaw(1, 1);
    for (int i = 0; i < zeros; ++i) encoder.EncodeRaw(0, 1);
    AdaptiveBit rare;
    for (int i = 0; i < 300; ++i) encoder.Encode(i % 100 != 0, rare);
    const std::string bytes = std::move(encoder).Finish();
    RangeDecoder decoder(bytes);
    ASSERT_EQ(decoder.DecodeRaw(1), 1u);
    for (int i = 0; i < zeros; ++i) ASSERT_EQ(decoder.DecodeRaw(1), 0u) << zeros;
    AdaptiveBit again;
    for (int i = 0; i < 300; ++i) ASSERT_EQ(decoder.Decode(again), i % 100 != 0) << zeros;
  }
}

TEST(RangeCoderTest, LeavesOutZerosAndNoticesWhatCodesNothing) {
  EXPECT_EQ(Encode({}), "");
  EXPECT_EQ(Encode({true, true}), "");
  const std::vector<bool> decisions = Decisions(500, 0.3, 4);
  const std::string bytes = Encode(decisions);
  EXPECT_NE(bytes.back(), '\0');
  for (const std::string& tail : {std::string(1, '\0'), std::string(8, '\x01')}) {
    const std::string longer = bytes + tail;
    RangeDecoder decoder(longer);
    AdaptiveBit bit;
    for (const bool one : decisions) ASSERT_EQ(decoder.Decode(bit), one);
    EXPECT_FALSE(decoder.AtEnd());
  }
}

TEST(RangeCoderTest, ReadsZerosBeyondTheEnd) {
  RangeDecoder decoder("");
  AdaptiveBit bit;
  for (int i = 0; i < 10000; ++i) ASSERT_TRUE(decoder.Decode(bit));
  EXPECT_EQ(decoder.DecodeRaw(8), 255u);
  EXPECT_TRUE(decoder.AtEnd());
}

}  // namespace
}  // namespace fedge
