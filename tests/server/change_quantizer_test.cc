#include "server/change_quantizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/base/rng.h"

namespace fedge {
namespace {

std::vector<float> Normal(size_t size, double deviation, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(size);
  for (float& value : values) value = static_cast<float>(deviation * rng.Normal());
  return values;
}

double SquaredError(const std::vector<float>& change, const std::vector<int32_t>& units) {
  double sum = 0;
  for (size_t i = 0; i < change.size(); ++i) {
    const double left = static_cast<double>(change[i]) - units[i];
    sum += left * left;
  }
  return sum;
}

TEST(ChangeQuantizerTest, SendsTheLargestInStepsOfAPowerOfTwo) {
  const std::vector<float> change = Normal(100'000, 20'000, 1);
  const ChangeStep step = ChangeHistogram(change).ForDensity(0.03, 1);
  const std::vector<int32_t> units = QuantizeChange(change, step);
  int64_t sent = 0;
  for (size_t i = 0; i < units.size(); ++i) {
    if (units[i] == 0) {
      EXPECT_LT(std::abs(change[i]), 1.02 * step.threshold);
      continue;
    }
    ++sent;
    EXPECT_EQ(units[i] % (1 << step.exponent), 0);
    EXPECT_EQ(units[i] > 0, change[i] > 0);
    EXPECT_LE(std::abs(change[i] - static_cast<float>(units[i])), std::ldexp(0.5, step.exponent));
  }
  EXPECT_NEAR(static_cast<double>(sent), 3000, 90);
  EXPECT_LE(std::ldexp(1.0f, step.exponent), step.threshold);
  EXPECT_GT(std::ldexp(2.0f, step.exponent), step.threshold);
}

TEST(ChangeQuantizerTest, LevelsMakeTheStepFiner) {
  const std::vector<float> change = Normal(10'000, 20'000, 2);
  const ChangeHistogram histogram(change);
  const ChangeStep coarse = histogram.ForDensity(0.1, 1);
  const ChangeStep fine = histogram.ForDensity(0.1, 8);
  EXPECT_EQ(coarse.exponent, fine.exponent + 3);
  EXPECT_EQ(coarse.threshold, fine.threshold);
}

TEST(ChangeQuantizerTest, NoOtherChoiceOfTheSameSizeIsBetter) {
  const std::vector<float> change = Normal(50'000, 30'000, 3);
  const ChangeHistogram histogram(change);
  for (const double bits : {0.1, 0.5, 2.0}) {
    const ChangeStep best = histogram.ForBudget(bits * 50'000);
    EXPECT_LE(best.estimated_bits, bits * 50'000);
    EXPECT_GE(best.estimated_bits, 0.7 * bits * 50'000);
    const double error = SquaredError(change, QuantizeChange(change, best));
    EXPECT_NEAR(error, best.squared_error, 0.02 * best.squared_error);
    // The rate-distortion bound of a normal source, and what a coder of single values reaches.
    const double energy = 50'000.0 * 30'000 * 30'000;
    EXPECT_GT(error, energy * std::exp2(-2 * bits));
    EXPECT_LT(error, 2 * energy * std::exp2(-2 * bits));
  }
}

TEST(ChangeQuantizerTest, NothingIsSentOfNothing) {
  const std::vector<float> change(100);
  const ChangeHistogram histogram(change);
  for (const ChangeStep& step : {histogram.ForBudget(100), histogram.ForDensity(0.5, 1)}) {
    const std::vector<int32_t> units = QuantizeChange(change, step);
    EXPECT_EQ(std::count(units.begin(), units.end(), 0), 100);
  }
}

TEST(ChangeQuantizerTest, ATinyBudgetSendsNothing) {
  const std::vector<float> change = Normal(1000, 1000, 4);
  const std::vector<int32_t> units = QuantizeChange(change, ChangeHistogram(change).ForBudget(0));
  EXPECT_EQ(std::count(units.begin(), units.end(), 0), 1000);
}

}  // namespace
}  // namespace fedge
