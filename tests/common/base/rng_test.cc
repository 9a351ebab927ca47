#include "common/base/rng.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <numeric>
#include <set>
#include <vector>

namespace fedge {
namespace {

using ::testing::ElementsAre;

// Computed by an independent implementation of xoshiro256** and SplitMix64. A change here changes
// every run ever recorded.
TEST(RngTest, GivesTheKnownSequence) {
  Rng zero(0);
  EXPECT_EQ(zero.Next(), 0x99ec5f36cb75f2b4u);
  EXPECT_EQ(zero.Next(), 0xbf6e1f784956452au);
  EXPECT_EQ(zero.Next(), 0x1a5f849d4933e6e0u);
  EXPECT_EQ(zero.Next(), 0x6aa594f1262d2d2cu);
  Rng other(42);
  EXPECT_EQ(other.Next(), 0x15780b2e0c2ec716u);
  EXPECT_EQ(other.Next(), 0x6104d9866d113a7eu);
}

TEST(RngTest, GivesTheKnownStreams) {
  EXPECT_EQ(StableHash(""), 0xc3817c016ba4ff30u);
  EXPECT_EQ(StableHash("shuffle"), 0xd1040f9f4ce66250u);
  EXPECT_EQ(Rng::Stream(7, "shuffle").Next(), 0xdab4b80c8b5e6c60u);
  Rng third = Rng::Stream(7, "shuffle", 3);
  EXPECT_EQ(third.Next(), 0x254d345ac3590fa3u);
  EXPECT_EQ(third.Next(), 0xbebecbcf33687577u);
}

TEST(RngTest, GivesTheKnownPermutation) {
  Rng rng(5);
  std::vector<int> items(10);
  std::iota(items.begin(), items.end(), 0);
  rng.Shuffle(absl::MakeSpan(items));
  EXPECT_THAT(items, ElementsAre(4, 2, 9, 3, 7, 1, 8, 6, 0, 5));
}

TEST(RngTest, StreamsDifferInSeedNameAndIndex) {
  std::set<uint64_t> first;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    for (const char* name : {"shuffle", "cohort", "lora_a", ""}) {
      for (uint64_t index = 0; index < 25; ++index) {
        first.insert(Rng::Stream(seed, name, index).Next());
      }
    }
  }
  EXPECT_EQ(first.size(), 1000u);
}

TEST(RngTest, BelowIsUniformAndInRange) {
  Rng rng(1);
  std::array<int, 6> counts = {};
  for (int i = 0; i < 60000; ++i) ++counts[rng.Below(6)];
  for (const int count : counts) EXPECT_NEAR(count, 10000, 500);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(rng.Below(1), 0u);
    EXPECT_LT(rng.Below((uint64_t{1} << 63) + 1), (uint64_t{1} << 63) + 1);
  }
}

TEST(RngTest, UniformFillsTheUnitInterval) {
  Rng rng(2);
  double sum = 0;
  double largest = 0;
  for (int i = 0; i < 100000; ++i) {
    const double value = rng.Uniform();
    ASSERT_GE(value, 0);
    ASSERT_LT(value, 1);
    sum += value;
    largest = std::max(largest, value);
  }
  EXPECT_NEAR(sum / 100000, 0.5, 0.005);
  EXPECT_GT(largest, 0.999);
}

TEST(RngTest, NormalHasTheMomentsOfOne) {
  Rng rng(3);
  const int count = 200000;
  std::array<double, 5> moments = {};
  for (int i = 0; i < count; ++i) {
    const double value = rng.Normal();
    ASSERT_TRUE(std::isfinite(value));
    for (size_t power = 1; power < 5; ++power) {
      moments[power] += std::pow(value, static_cast<double>(power)) / count;
    }
  }
  EXPECT_NEAR(moments[1], 0, 0.01);
  EXPECT_NEAR(moments[2], 1, 0.015);
  EXPECT_NEAR(moments[3], 0, 0.04);
  EXPECT_NEAR(moments[4], 3, 0.1);
}

}  // namespace
}  // namespace fedge
