// What error feedback does to an optimization: warm-up of the density and momentum correction.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "common/codec/error_feedback.h"
#include "tests/testing/error_feedback_samples.h"

namespace fedge {
namespace {

using testing::Decode;
using ::testing::Each;
using testing::Fresh;
using testing::kNoRules;
using testing::kTopTenth;
using testing::Prepare;
using testing::RandomDelta;

// Minimizes 1/2 |x - 1|^2 in 256 coordinates; what is left of the distance after eight rounds.
double LeftAfterEightRounds(absl::Span<const double> densities) {
  const size_t size = 256;
  std::vector<float> x(size);
  ErrorFeedback feedback = Fresh(size);
  for (const double density : densities) {
    std::vector<float> delta(size);
    for (size_t i = 0; i < size; ++i) delta[i] = 0.1f * (1.0f - x[i]);
    const EncodeOptions options = {.support = UpdateSupport::kTopK, .density = density};
    const std::vector<float> sent = Decode(Prepare(feedback, delta, options), size);
    feedback.Commit();
    for (size_t i = 0; i < size; ++i) x[i] += sent[i];
  }
  double left = 0;
  for (const float value : x) left += std::pow(1.0 - value, 2);
  return left / static_cast<double>(size);
}

// The first rounds' changes are large and everywhere: at the final density they hardly arrive.
TEST(ErrorFeedbackConvergenceTest, WithoutWarmUpTheFirstRoundsHardlyArrive) {
  const std::vector<double> constant(8, 1.0 / 64);
  const std::vector<double> warm_up = {0.25,     0.125,    0.0625,   0.03125,
                                       1.0 / 64, 1.0 / 64, 1.0 / 64, 1.0 / 64};
  EXPECT_GT(LeftAfterEightRounds(constant), 0.88);
  EXPECT_LT(LeftAfterEightRounds(warm_up), 0.84);
}

// Minimizes 1/2 |x - 1|^2 in 256 coordinates by steps of a hundredth with momentum 0.9, an
// eighth of the coordinates a round, for 80 rounds.
enum class Momentum { kNone, kDense, kCorrected, kUnmasked, kOnServer };
struct Descent {
  double left = 0;     // mean squared distance at the end
  double highest = 0;  // of any coordinate on the way; beyond 1: overshoot
};
Descent Descend(Momentum kind) {
  constexpr size_t kSize = 256;
  constexpr float kMomentum = 0.9f;
  ErrorFeedbackOptions rules = kNoRules;
  if (kind == Momentum::kCorrected) rules.momentum = kMomentum;
  ErrorFeedback feedback = Fresh(kSize, rules);
  const EncodeOptions options = {.support = UpdateSupport::kTopK,
                                 .density = kind == Momentum::kDense ? 1.0 : 1.0 / 8,
                                 .value_bits = 8};
  std::vector<float> x(kSize);
  std::vector<float> velocity(kSize);  // where this function keeps it: on the node or the server
  Descent descent;
  for (int round = 0; round < 80; ++round) {
    std::vector<float> delta(kSize);
    for (size_t i = 0; i < kSize; ++i) {
      delta[i] = 0.01f * (1.0f - x[i]);
      if (kind == Momentum::kUnmasked) {
        delta[i] = velocity[i] = kMomentum * velocity[i] + delta[i];
      }
    }
    const std::vector<float> sent = Decode(Prepare(feedback, delta, options), kSize);
    feedback.Commit();
    const bool on_server = kind == Momentum::kOnServer || kind == Momentum::kDense;
    for (size_t i = 0; i < kSize; ++i) {
      if (on_server) velocity[i] = kMomentum * velocity[i] + sent[i];
      x[i] += on_server ? velocity[i] : sent[i];
      descent.highest = std::max<double>(descent.highest, x[i]);
    }
  }
  for (const float value : x) descent.left += std::pow(1.0 - value, 2) / kSize;
  return descent;
}

// A plain sum is slow. With momentum on the server the few values of one round go on for many while
// those held back wait, and without masking what was sent once goes on from here: both overshoot by
// twice what dense momentum does.
TEST(ErrorFeedbackConvergenceTest, MomentumCorrectionConvergesWithoutOvershoot) {
  EXPECT_GT(Descend(Momentum::kNone).left, 0.1);
  const Descent dense = Descend(Momentum::kDense);
  EXPECT_LT(dense.left, 0.001);
  EXPECT_NEAR(dense.highest, 1.15, 0.02);
  const Descent corrected = Descend(Momentum::kCorrected);
  EXPECT_LT(corrected.left, 0.003);
  EXPECT_LT(corrected.highest, 1.02);
  for (const Momentum failing : {Momentum::kUnmasked, Momentum::kOnServer}) {
    const Descent failure = Descend(failing);
    EXPECT_GT(failure.highest, 1.3);
    EXPECT_GT(failure.left, 2 * corrected.left);
  }
}

TEST(ErrorFeedbackConvergenceTest, MasksTheVelocityOfWhatWasSent) {
  ErrorFeedback feedback = Fresh(10, {.full_rounds = 0, .max_norm_ratio = 0, .momentum = 0.5});
  std::vector<float> delta(10);
  delta[0] = 1.0f;
  delta[1] = 0.5f;
  EXPECT_EQ(Decode(Prepare(feedback, delta), 10)[0], 1.0f);  // one of ten is sent
  EXPECT_THAT(feedback.velocity(), Each(0.0f));
  feedback.Discard();  // nothing of a lost update stays
  EXPECT_THAT(feedback.velocity(), Each(0.0f));
  Prepare(feedback, delta);
  feedback.Commit();
  EXPECT_EQ(feedback.velocity()[0], 0.0f);
  EXPECT_EQ(feedback.velocity()[1], 0.5f);
  // Nothing new: the residual 0.5 and half of the velocity.
  EXPECT_EQ(Decode(Prepare(feedback, std::vector<float>(10)), 10)[1], 0.75f);
}

// The default bound lets momentum grow to what it is worth, 1 / (1 - m) deltas.
TEST(ErrorFeedbackConvergenceTest, BoundsTheVelocityAboveItsLimit) {
  ErrorFeedback feedback = Fresh(100, {.momentum = 0.9});
  std::vector<float> delta(100, 1e-3f);
  delta[0] = 1e-2f;
  const EncodeOptions one = {.support = UpdateSupport::kTopK, .density = 0.01, .value_bits = 8};
  for (uint64_t round = 1; round <= 60; ++round) {
    Prepare(feedback, delta, one, round);
    feedback.Commit();
  }
  double sum = 0;
  for (const float value : feedback.velocity()) sum += value;
  EXPECT_GT(sum, 0.4);  // of 0.1: many of the 99 were sent once and started again
  EXPECT_LT(sum, 1.0);
}

TEST(ErrorFeedbackConvergenceTest, KeepsTheVelocityWithTheState) {
  const ErrorFeedbackOptions rules = {.full_rounds = 0, .max_norm_ratio = 0, .momentum = 0.9};
  ErrorFeedback feedback = Fresh(300, rules);
  Prepare(feedback, RandomDelta(300, 1));
  feedback.Commit();
  Prepare(feedback, RandomDelta(300, 2), kTopTenth, 8);
  const std::string state = feedback.Serialize();
  ErrorFeedback restored = Fresh(300, rules);
  ASSERT_TRUE(restored.Restore(state).ok());
  EXPECT_EQ(restored.Serialize(), state);
  restored.Commit();
  feedback.Commit();
  const auto next = [](ErrorFeedback& node) {
    return Prepare(node, RandomDelta(300, 3), kTopTenth, 9);
  };
  EXPECT_EQ(next(restored), next(feedback));
  // The run's setting changed: a velocity is dropped, or starts at 0.
  ErrorFeedback off = Fresh(300);
  ASSERT_TRUE(off.Restore(state).ok());
  EXPECT_TRUE(off.velocity().empty());
  ErrorFeedback on = Fresh(300, rules);
  ASSERT_TRUE(on.Restore(off.Serialize()).ok());
  EXPECT_THAT(on.velocity(), Each(0.0f));
  on.Commit();
  EXPECT_EQ(on.velocity().size(), 300u);
}

}  // namespace
}  // namespace fedge
