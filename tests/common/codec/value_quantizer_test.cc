#include "common/codec/value_quantizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "common/base/rng.h"
#include "common/codec/position_coder.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

// Like what a threshold of 1e-3 leaves.
std::vector<float> Tail(size_t size, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(size);
  for (float& value : values) {
    const double magnitude = 1e-3 - 4e-4 * std::log(1 - rng.Uniform());
    value = static_cast<float>(rng.Below(2) == 0 ? magnitude : -magnitude);
  }
  return values;
}

double Error(const std::vector<float>& values, int bits, ValueScale scale) {
  LevelTable levels;
  EXPECT_TRUE(levels.Assign(scale, bits));
  double error = 0;
  for (const float value : values) {
    const double miss = static_cast<double>(levels.Value(levels.Nearest(value))) - value;
    error += miss * miss;
  }
  return error;
}

TEST(ValueQuantizerTest, RoundsHalvesDownAndUp) {
  EXPECT_EQ(HalfAtMost(1.0), 0x3C00);
  EXPECT_EQ(HalfAtLeast(1.0), 0x3C00);
  EXPECT_EQ(HalfToFloat(HalfAtMost(1.0001)), 1.0f);
  EXPECT_GT(HalfToFloat(HalfAtLeast(1.0001)), 1.0001f);
  EXPECT_EQ(HalfAtLeast(65504), 0x7BFF);
  EXPECT_EQ(HalfAtLeast(1e-30), 1);
  EXPECT_EQ(HalfAtMost(1e-30), 0);
}

TEST(ValueQuantizerTest, OneBitIsTheMeanMagnitude) {
  const std::vector<float> values = {1.0f, -2.0f, 0.5f, -4.5f};
  EXPECT_EQ(HalfToFloat(FitScale(values, 1, false, false).first), 2.0f);
}

// No other pair of centroids, from a fine grid, is better by more than what halves round away.
TEST(ValueQuantizerTest, TwoBitsAreTheBestTwoCentroids) {
  const std::vector<float> values = Tail(500, 1);
  const ValueScale scale = FitScale(values, 2, false, false);
  const double error = Error(values, 2, scale);
  double best = error;
  for (int low = 10; low < 30; ++low) {
    for (int high = low; high < 60; ++high) {
      const ValueScale other = {FloatToHalf(static_cast<float>(low * 1e-4)),
                                FloatToHalf(static_cast<float>(high * 1e-4))};
      best = std::min(best, Error(values, 2, other));
    }
  }
  EXPECT_LE(error, best * 1.005);
}

TEST(ValueQuantizerTest, ErrsAsMuchAsItsBitsSay) {
  const std::vector<float> values = Tail(20000, 2);
  double energy = 0;
  for (const float value : values) energy += static_cast<double>(value) * value;
  struct Case {
    int bits;
    double at_least;
    double at_most;
  };
  for (const Case& c : {Case{1, 0.24, 0.30}, Case{2, 0.13, 0.17}, Case{3, 0.08, 0.12},
                        Case{4, 0.04, 0.07}, Case{8, 0.003, 0.007}}) {
    const double relative =
        std::sqrt(Error(values, c.bits, FitScale(values, c.bits, false, false)) / energy);
    EXPECT_GT(relative, c.at_least) << c.bits;
    EXPECT_LT(relative, c.at_most) << c.bits;
  }
}

// Rounded often, the mean is the value; to the nearest it is not.
TEST(ValueQuantizerTest, StochasticRoundingIsUnbiased) {
  const std::vector<float> values = {0.0f, 1.0f, -0.7f, 0.31f, -0.05f};
  for (const int bits : {1, 2, 3, 4, 8}) {
    LevelTable levels;
    ASSERT_TRUE(levels.Assign(FitScale(values, bits, true, true), bits));
    for (const float value : values) {
      double sum = 0;
      const int rounds = 20000;
      for (int i = 0; i < rounds; ++i) {
        const double uniform =
            static_cast<double>(StreamNumber(9, static_cast<uint64_t>(i)) >> 11) * 0x1p-53;
        sum += levels.Value(levels.Stochastic(value, uniform));
      }
      EXPECT_NEAR(sum / rounds, value, 0.03) << bits;
    }
    if (bits > 2) continue;
    EXPECT_GT(std::abs(levels.Value(levels.Nearest(-0.05f)) + 0.05f), 0.25f);
  }
}

TEST(ValueQuantizerTest, DecodesToMultiplesOfTheSmallestHalf) {
  Rng rng(4);
  for (int round = 0; round < 2000; ++round) {
    const int bits = std::vector<int>{1, 2, 3, 4, 8}[rng.Below(5)];
    const ValueScale scale = {static_cast<uint16_t>(rng.Next()), static_cast<uint16_t>(rng.Next())};
    LevelTable levels;
    if (!levels.Assign(scale, bits)) continue;
    for (uint32_t word = 0; word < (1u << bits); ++word) {
      const double value = levels.Value(word);
      ASSERT_LE(std::abs(value), kLargestHalf);
      ASSERT_EQ(value * 0x1p24, std::floor(value * 0x1p24)) << scale.first << " " << scale.second;
    }
  }
}

TEST(ValueQuantizerTest, RefusesScalesThatAreNone) {
  LevelTable levels;
  const uint16_t one = 0x3C00;
  for (const int bits : {1, 2, 3, 4, 8}) {
    EXPECT_TRUE(levels.Assign({one, one}, bits));
    EXPECT_TRUE(levels.Assign({0, 0}, bits));
    for (const int bits_of_bad : {0x8000, 0xBC00, 0x7C00, 0xFC00, 0x7E00}) {
      const auto bad = static_cast<uint16_t>(bits_of_bad);
      EXPECT_FALSE(levels.Assign({bad, one}, bits));
      EXPECT_FALSE(levels.Assign({one, bad}, bits));
    }
  }
  EXPECT_FALSE(levels.Assign({one, 0x3800}, 2));  // out of order
  EXPECT_FALSE(levels.Assign({0x7BFF, one}, 8));  // beyond the largest half
}

TEST(ValueQuantizerTest, HoldsTheExtremesOfItsRange) {
  const std::vector<float> values = {65504.0f, -65504.0f, 0x1p-24f, -0x1p-24f};
  for (const int bits : {1, 2, 3, 4, 8}) {
    for (const bool stochastic : {false, true}) {
      LevelTable levels;
      ASSERT_TRUE(levels.Assign(FitScale(values, bits, false, stochastic), bits)) << bits;
      EXPECT_GT(levels.Value(levels.Nearest(65504.0f)), 30000.0f);
    }
  }
  const std::vector<float> zeros = {0.0f, 1e-40f};
  for (const int bits : {1, 2, 3, 4, 8}) {
    LevelTable levels;
    ASSERT_TRUE(levels.Assign(FitScale(zeros, bits, true, false), bits));
    EXPECT_LE(std::abs(levels.Value(levels.Nearest(0.0f))), 0x1p-23f);
  }
}

}  // namespace
}  // namespace fedge
