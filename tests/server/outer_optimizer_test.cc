#include "server/outer_optimizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace fedge {
namespace {

using ::testing::ElementsAre;

struct Stepper {
  OuterOptimizer optimizer;
  std::vector<float> values = {1, 1};
  std::vector<float> state;

  explicit Stepper(OuterOptimizer by) : optimizer(by), state(by.StateSize(2)) {
    optimizer.InitializeState(absl::MakeSpan(state));
  }
  void Step(float d) { StepAt({d}, 0); }
  void StepAt(std::vector<float> mean, size_t first) {
    optimizer.Step(mean, first, absl::MakeSpan(values), absl::MakeSpan(state));
  }
};

TEST(OuterOptimizerTest, SgdAddsTheScaledMean) {
  Stepper run({.learning_rate = 0.5});
  EXPECT_TRUE(run.state.empty());
  run.StepAt({0.5f, -2.0f}, 0);
  EXPECT_THAT(run.values, ElementsAre(1.25f, 0.0f));
}

TEST(OuterOptimizerTest, NesterovLooksAhead) {
  Stepper run({.kind = OuterOptimizerKind::kNesterov, .learning_rate = 0.5, .beta1 = 0.5});
  run.Step(1);  // m = 1, step = 1 + 0.5
  EXPECT_THAT(run.values, ElementsAre(1.75f, 1.0f));
  run.Step(0);  // m = 0.5, step = 0.25
  EXPECT_THAT(run.values, ElementsAre(1.875f, 1.0f));
  EXPECT_THAT(run.state, ElementsAre(0.5f, 0.0f));
}

// Against the formulas of Reddi et al. 2021, algorithm 2, in double.
TEST(OuterOptimizerTest, AdamAndYogiFollowThePaper) {
  const std::vector<double> means = {0.02, -0.01, 0.03, 0.0, 0.005, -0.2};
  for (const OuterOptimizerKind kind : {OuterOptimizerKind::kAdam, OuterOptimizerKind::kYogi}) {
    Stepper run(
        {.kind = kind, .learning_rate = 0.01, .beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-3});
    double x = 1, m = 0, v = 1e-6;
    for (const double d : means) {
      run.Step(static_cast<float>(d));
      m = 0.9 * m + 0.1 * d;
      if (kind == OuterOptimizerKind::kAdam) {
        v = 0.99 * v + 0.01 * d * d;
      } else if (v != d * d) {
        v = v - 0.01 * d * d * (v > d * d ? 1 : -1);
      }
      x += 0.01 * m / (std::sqrt(v) + 1e-3);
      EXPECT_NEAR(run.values[0], x, 1e-6);
      EXPECT_EQ(run.values[1], 1.0f);
    }
    EXPECT_GT(std::abs(run.values[0] - 1), 1e-3);
  }
}

TEST(OuterOptimizerTest, LeavesCoordinatesOutsideTheStepAndTheirStateAlone) {
  for (const OuterOptimizerKind kind :
       {OuterOptimizerKind::kNesterov, OuterOptimizerKind::kAdam, OuterOptimizerKind::kYogi}) {
    Stepper run({.kind = kind, .learning_rate = 0.1, .beta1 = 0.9});
    run.StepAt({0.5f, 0.5f}, 0);
    const std::vector<float> values = run.values;
    const std::vector<float> state = run.state;
    run.StepAt({0.25f}, 1);
    EXPECT_EQ(run.values[0], values[0]);
    EXPECT_NE(run.values[1], values[1]);
    for (size_t i = 0; i < state.size(); ++i) {
      EXPECT_EQ(run.state[i] == state[i], i % 2 == 0) << i;
    }
  }
}

}  // namespace
}  // namespace fedge
