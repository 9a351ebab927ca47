#include "common/training/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "common/base/rng.h"
#include "hwy/targets.h"

namespace fedge {
namespace {

std::vector<float> RandomValues(size_t count, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(rng.Normal());
  return values;
}

// The paper's algorithm in double precision.
struct ReferenceAdamW {
  double beta1, beta2, epsilon, weight_decay;
  double m = 0, v = 0;
  int t = 0;

  double Step(double g, double rate, double value) {
    ++t;
    m = beta1 * m + (1 - beta1) * g;
    v = beta2 * v + (1 - beta2) * g * g;
    const double m_hat = m / (1 - std::pow(beta1, t));
    const double v_hat = v / (1 - std::pow(beta2, t));
    return value - rate * (m_hat / (std::sqrt(v_hat) + epsilon) + weight_decay * value);
  }
};

AdamWOptions SomeOptions() {
  AdamWOptions options;
  options.beta2 = 0.99f;
  options.weight_decay = 0.1f;
  return options;
}

std::vector<float> RunSteps(size_t count, int steps, AdamW& adamw, std::vector<float> values) {
  for (int step = 0; step < steps; ++step) {
    adamw.Step(RandomValues(count, 100 + static_cast<uint64_t>(step)), 0.01f,
               absl::MakeSpan(values));
  }
  return values;
}

TEST(AdamWTest, FollowsThePaperForEveryCount) {
  const AdamWOptions options = SomeOptions();
  for (size_t count = 0; count <= 37; ++count) {
    AdamW adamw(static_cast<int64_t>(count), options);
    const std::vector<float> start = RandomValues(count, 1);
    const std::vector<float> values = RunSteps(count, 4, adamw, start);
    EXPECT_EQ(adamw.steps(), 4);
    for (size_t i = 0; i < count; ++i) {
      ReferenceAdamW reference{options.beta1, options.beta2, options.epsilon, options.weight_decay};
      double value = start[i];
      for (uint64_t step = 0; step < 4; ++step) {
        value = reference.Step(RandomValues(count, 100 + step)[i], 0.01, value);
      }
      EXPECT_NEAR(values[i], value, 2e-6) << i << " of " << count;
    }
  }
}

TEST(AdamWTest, FirstStepMovesByTheLearningRate) {
  AdamW adamw(2, AdamWOptions());
  std::vector<float> values = {1.0f, 1.0f};
  adamw.Step(std::vector<float>{1e-3f, -250.0f}, 0.125f, absl::MakeSpan(values));
  EXPECT_NEAR(values[0], 0.875f, 2e-6);
  EXPECT_NEAR(values[1], 1.125f, 2e-6);
}

TEST(AdamWTest, DecaysWithoutAGradient) {
  AdamWOptions options;
  options.weight_decay = 0.5f;
  AdamW adamw(1, options);
  std::vector<float> values = {8.0f};
  adamw.Step(std::vector<float>{0.0f}, 0.25f, absl::MakeSpan(values));
  EXPECT_EQ(values[0], 7.0f);
}

TEST(AdamWTest, GivesTheSameBitsOnEveryTarget) {
  constexpr size_t kCount = 1003;
  std::vector<float> first;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    AdamW adamw(kCount, SomeOptions());
    const std::vector<float> values = RunSteps(kCount, 3, adamw, RandomValues(kCount, 2));
    if (first.empty()) first = values;
    EXPECT_EQ(values, first) << hwy::TargetName(target);
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(AdamWTest, ContinuesFromARestoredState) {
  AdamW whole(9, SomeOptions());
  const std::vector<float> expected = RunSteps(9, 5, whole, RandomValues(9, 3));
  AdamW part(9, SomeOptions());
  std::vector<float> values = RunSteps(9, 2, part, RandomValues(9, 3));
  AdamW rest(9, SomeOptions());
  rest.Restore(part.steps(), part.first_moment(), part.second_moment());
  for (uint64_t step = 2; step < 5; ++step) {
    rest.Step(RandomValues(9, 100 + step), 0.01f, absl::MakeSpan(values));
  }
  EXPECT_EQ(values, expected);
}

TEST(AdamWTest, AGroupLearnsAtItsOwnRate) {
  const std::vector<float> gradient = RandomValues(40, 21);
  std::vector<float> whole = RandomValues(40, 22);
  std::vector<float> grouped = whole;
  AdamWOptions options;
  options.weight_decay = 0.1f;
  AdamW slow(40, options);
  AdamW both({{16, 1.0f}, {24, 8.0f}}, options);
  std::vector<float> fast = whole;
  AdamW eightfold(40, options);
  for (int step = 0; step < 5; ++step) {
    slow.Step(gradient, 1e-2f, absl::MakeSpan(whole));
    eightfold.Step(gradient, 8e-2f, absl::MakeSpan(fast));
    both.Step(gradient, 1e-2f, absl::MakeSpan(grouped));
  }
  for (size_t i = 0; i < 40; ++i) EXPECT_EQ(grouped[i], i < 16 ? whole[i] : fast[i]) << i;
}

TEST(ClipByGlobalNormTest, ScalesALongGradientToTheLimit) {
  std::vector<float> gradient = {3.0f, 4.0f};
  EXPECT_EQ(ClipByGlobalNorm(2.5, absl::MakeSpan(gradient)), 5.0);
  EXPECT_EQ(gradient, (std::vector<float>{1.5f, 2.0f}));
}

TEST(ClipByGlobalNormTest, LeavesAShortGradientAndAnUnlimitedOne) {
  std::vector<float> gradient(100, 0.5f);
  EXPECT_EQ(ClipByGlobalNorm(5.0, absl::MakeSpan(gradient)), 5.0);
  EXPECT_EQ(ClipByGlobalNorm(0, absl::MakeSpan(gradient)), 5.0);
  EXPECT_EQ(gradient, std::vector<float>(100, 0.5f));
  EXPECT_EQ(ClipByGlobalNorm(1.0, {}), 0.0);
}

TEST(ClipByGlobalNormTest, ReportsANormThatIsNotFiniteWithoutScaling) {
  std::vector<float> gradient = {1.0f, std::numeric_limits<float>::infinity()};
  EXPECT_FALSE(std::isfinite(ClipByGlobalNorm(1.0, absl::MakeSpan(gradient))));
  EXPECT_EQ(gradient[0], 1.0f);
}

TEST(AddProximalGradientTest, IsTheGradientOfTheSquaredDistance) {
  const std::vector<float> start = {1.0f, -2.0f, 0.5f};
  const std::vector<float> values = {1.5f, -2.0f, -0.25f};
  std::vector<float> gradient = {10.0f, 20.0f, 30.0f};
  AddProximalGradient(2.0f, values, start, absl::MakeSpan(gradient));
  EXPECT_EQ(gradient, (std::vector<float>{11.0f, 20.0f, 28.5f}));  // + 2 * {0.5, 0, -0.75}
}

TEST(LearningRateTest, WarmsUpThenFallsAlongACosine) {
  const LearningRate rate{1.0f, Schedule::kCosine, 4, 104, 0.2f};
  EXPECT_FLOAT_EQ(rate.At(0), 0.25f);
  EXPECT_FLOAT_EQ(rate.At(3), 1.0f);
  EXPECT_FLOAT_EQ(rate.At(4), 1.0f);
  EXPECT_FLOAT_EQ(rate.At(54), 0.6f);
  EXPECT_FLOAT_EQ(rate.At(104), 0.2f);
  EXPECT_FLOAT_EQ(rate.At(1000), 0.2f);
}

TEST(LearningRateTest, FallsLinearlyOrNotAtAll) {
  EXPECT_FLOAT_EQ((LearningRate{2.0f, Schedule::kLinear, 0, 10, 0.0f}.At(5)), 1.0f);
  EXPECT_FLOAT_EQ((LearningRate{2.0f, Schedule::kConstant, 0, 10, 0.0f}.At(500)), 2.0f);
  EXPECT_FLOAT_EQ((LearningRate{2.0f, Schedule::kCosine, 0, 0, 0.0f}.At(500)), 2.0f);
}

}  // namespace
}  // namespace fedge
