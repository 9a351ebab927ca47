#include "common/training/block_moments.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/base/rng.h"
#include "common/training/optimizer.h"
#include "hwy/targets.h"

namespace fedge {
namespace {

// Keeps the moments as they are (beta 1) or takes the gradient for the first (beta 0).
AdamWScalars Scalars(float beta1, float beta2) {
  AdamWScalars scalars;
  scalars.beta1 = beta1;
  scalars.one_minus_beta1 = 1 - beta1;
  scalars.beta2 = beta2;
  scalars.one_minus_beta2 = 1 - beta2;
  scalars.root_correction = 1;
  scalars.epsilon = 1e-8f;
  return scalars;
}

std::vector<float> WideValues(size_t count, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    value = static_cast<float>(rng.Normal() * std::exp2(-8 * rng.Uniform()));
  }
  return values;
}

TEST(BlockMomentsTest, RoundsEachValueByLessThanAnEighthOrAStepNearZero) {
  const std::vector<float> gradient = WideValues(1000, 1);
  BlockMoments moments(1000, 0);
  std::vector<float> values(1000);
  moments.Step(Scalars(0, 0), 1, gradient.data(), values.data());
  const std::vector<float> first = moments.FirstMoment();
  const std::vector<float> second = moments.SecondMoment();
  for (size_t i = 0; i < gradient.size(); ++i) {
    const double g = gradient[i];
    EXPECT_NEAR(first[i], g, std::max(std::fabs(g) / 8, 5 * 0x1p-18)) << i;
    EXPECT_NEAR(second[i], g * g, std::max(g * g / 8, 25 * 0x1p-33)) << i;
  }
}

TEST(BlockMomentsTest, RoundsWithoutBias) {
  const std::vector<float> gradient = WideValues(256, 2);
  std::vector<double> first(256), second(256);
  constexpr int kTrials = 4000;
  for (int trial = 0; trial < kTrials; ++trial) {
    BlockMoments moments(256, 0);
    std::vector<float> values(256);
    moments.Step(Scalars(0, 0), trial, gradient.data(), values.data());
    for (size_t i = 0; i < 256; ++i) {
      first[i] += static_cast<double>(moments.FirstMoment()[i]) / kTrials;
      second[i] += static_cast<double>(moments.SecondMoment()[i]) / kTrials;
    }
  }
  for (size_t i = 0; i < 256; ++i) {
    const double g = gradient[i];
    // A deviation of half a step of an eighth, over the square root of the trials, five times.
    EXPECT_NEAR(first[i], g, 5 * std::fabs(g) / 16 / std::sqrt(kTrials) + 1e-6) << i;
    EXPECT_NEAR(second[i], g * g, 5 * g * g / 16 / std::sqrt(kTrials) + 1e-9) << i;
  }
}

TEST(BlockMomentsTest, SmallChangesAddUp) {
  // The second moment follows a gradient that became three times as large, a thousandth a step.
  std::vector<float> gradient(256, 1.0f);
  std::vector<float> values(256);
  BlockMoments moments(256, 0);
  moments.Step(Scalars(0, 0), 0, gradient.data(), values.data());
  // One value stays large: the block's scale does not move.
  std::fill(gradient.begin() + 1, gradient.end(), 0.3f);
  for (int step = 1; step <= 5000; ++step) {
    moments.Step(Scalars(0.9f, 0.999f), step, gradient.data(), values.data());
  }
  double mean = 0;
  const std::vector<float> second = moments.SecondMoment();
  for (size_t i = 1; i < 256; ++i) mean += static_cast<double>(second[i]) / 255;
  const double exact = 0.09 + 0.91 * std::pow(0.999, 5000);
  EXPECT_NEAR(mean, exact, 0.05 * exact);
}

TEST(BlockMomentsTest, ZeroGradientsMoveNothing) {
  std::vector<float> values(300, 1.5f);
  BlockMoments moments(300, 0);
  const std::vector<float> gradient(300);
  AdamWScalars scalars = Scalars(0.9f, 0.999f);
  scalars.step_size = 1;
  for (int step = 0; step < 3; ++step) {
    moments.Step(scalars, step, gradient.data(), values.data());
  }
  EXPECT_EQ(values, std::vector<float>(300, 1.5f));
  EXPECT_EQ(moments.FirstMoment(), std::vector<float>(300));
}

TEST(BlockMomentsTest, GivesTheSameBitsOnEverySimdTarget) {
  const std::vector<float> gradient = WideValues(600, 3);
  std::vector<std::vector<float>> results;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    AdamWOptions options;
    options.moment_bits = 8;
    options.weight_decay = 0.01f;
    AdamW adamw({{250, 1.0f}, {350, 4.0f}}, options);
    std::vector<float> values = WideValues(600, 4);
    for (int step = 0; step < 20; ++step) adamw.Step(gradient, 1e-2f, absl::MakeSpan(values));
    results.push_back(values);
  }
  hwy::SetSupportedTargetsForTest(0);
  for (const std::vector<float>& values : results) EXPECT_EQ(values, results.front());
}

TEST(BlockMomentsTest, TakesTwoBytesAValueAndTwoScalesABlock) {
  EXPECT_EQ(BlockMoments::Bytes(256), 2 * 256 + 8);
  EXPECT_EQ(BlockMoments::Bytes(257), 2 * 257 + 16);
  EXPECT_EQ(AdamW::StateBytes(1 << 20, 8), (2 << 20) + (1 << 15));
  EXPECT_EQ(AdamW::StateBytes(1 << 20, 32), 8 << 20);
}

}  // namespace
}  // namespace fedge
