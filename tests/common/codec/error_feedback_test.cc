#include "common/codec/error_feedback.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "common/tensor/quantize.h"
#include "tests/testing/update_samples.h"

namespace fedge {
namespace {

using ::testing::Each;
using testing::Flat;
using testing::FlatLayout;
using testing::RandomDelta;
using testing::SampleHeader;

constexpr EncodeOptions kTopTenth = {
    .support = UpdateSupport::kTopK, .density = 0.1, .value_bits = 8};

ErrorFeedback Fresh(size_t size) {
  return ErrorFeedback(Sha256Of("layout"), Sha256Of("base model"), size);
}

std::string Prepare(ErrorFeedback& feedback, const std::vector<float>& delta,
                    const EncodeOptions& options = kTopTenth) {
  auto bytes = feedback.Prepare(delta, FlatLayout(delta.size()), SampleHeader(), options);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.ok() ? *std::move(bytes) : std::string();
}

std::vector<float> Decode(const std::string& bytes, size_t size) {
  const SliceLayout layout = FlatLayout(size);
  auto decoded = DecodeUpdate(bytes, Sha256Of("layout"), layout);
  EXPECT_TRUE(decoded.ok()) << decoded.status();
  return decoded.ok() ? Flat(*decoded, layout) : std::vector<float>(size);
}

std::vector<float> ResidualOf(const ErrorFeedback& feedback) {
  return std::vector<float>(feedback.residual().begin(), feedback.residual().end());
}

TEST(ErrorFeedbackTest, CommitMakesWhatWasNotCarriedTheResidual) {
  const std::vector<float> delta = RandomDelta(500, 1);
  ErrorFeedback feedback = Fresh(500);
  EXPECT_FALSE(feedback.has_pending());
  const std::vector<float> sent = Decode(Prepare(feedback, delta), 500);
  EXPECT_TRUE(feedback.has_pending());
  EXPECT_THAT(feedback.residual(), Each(0.0f));
  feedback.Commit();
  EXPECT_FALSE(feedback.has_pending());
  for (size_t i = 0; i < 500; ++i) {
    ASSERT_EQ(feedback.residual()[i], HalfToFloat(FloatToHalf(delta[i] - sent[i]))) << i;
  }
}

TEST(ErrorFeedbackTest, ReplaysTheResidualInTheNextUpdate) {
  ErrorFeedback feedback = Fresh(20);
  std::vector<float> delta(20);
  delta[3] = 1.0f;
  delta[8] = 0.75f;
  delta[11] = -0.5f;
  const std::vector<float> first = Decode(Prepare(feedback, delta), 20);
  EXPECT_NE(first[3], 0.0f);
  EXPECT_NE(first[8], 0.0f);
  EXPECT_EQ(first[11], 0.0f);
  feedback.Commit();
  const std::vector<float> second = Decode(Prepare(feedback, std::vector<float>(20)), 20);
  EXPECT_NEAR(second[11], -0.5f, 0.002);
}

TEST(ErrorFeedbackTest, CarriesTheWholeSumInTheLongRun) {
  // What the server received plus what is still held back is what was trained, to fp16 precision.
  ErrorFeedback feedback = Fresh(400);
  std::vector<double> trained(400);
  std::vector<double> received(400);
  for (uint64_t round = 0; round < 30; ++round) {
    const std::vector<float> delta = RandomDelta(400, round);
    const std::vector<float> sent = Decode(Prepare(feedback, delta), 400);
    for (size_t i = 0; i < 400; ++i) {
      trained[i] += delta[i];
      received[i] += sent[i];
    }
    feedback.Commit();
  }
  double missing = 0;
  double total = 0;
  for (size_t i = 0; i < 400; ++i) {
    EXPECT_NEAR(trained[i], received[i] + feedback.residual()[i], 30 * 4e-6) << i;
    missing += std::pow(trained[i] - received[i], 2);
    total += std::pow(trained[i], 2);
  }
  EXPECT_LT(missing / total, 0.35);  // most arrived although each update had a tenth of the values
  EXPECT_GT(missing / total, 0.005);
}

TEST(ErrorFeedbackTest, DiscardKeepsTheResidualOfBefore) {
  ErrorFeedback feedback = Fresh(500);
  Prepare(feedback, RandomDelta(500, 1));
  feedback.Commit();
  const std::vector<float> before = ResidualOf(feedback);
  Prepare(feedback, RandomDelta(500, 2));
  feedback.Discard();
  EXPECT_FALSE(feedback.has_pending());
  EXPECT_EQ(ResidualOf(feedback), before);
  feedback.Discard();  // nothing pending: nothing happens
  EXPECT_EQ(ResidualOf(feedback), before);
}

TEST(ErrorFeedbackTest, PreparingAgainReplacesThePendingUpdate) {
  ErrorFeedback twice = Fresh(500);
  Prepare(twice, RandomDelta(500, 1));
  const std::string second = Prepare(twice, RandomDelta(500, 2));
  ErrorFeedback once = Fresh(500);
  EXPECT_EQ(second, Prepare(once, RandomDelta(500, 2)));
  twice.Commit();
  once.Commit();
  EXPECT_EQ(ResidualOf(twice), ResidualOf(once));
}

// The failure that the two phases prevent. A device trains the same step again after its update was
// lost, because the global adapter did not move. If the lost update's leftovers had become the
// residual, the small coordinate would be sent with twice what was trained.
TEST(ErrorFeedbackTest, WithoutDiscardALostUpdateCountsTwice) {
  const EncodeOptions top_half = {.support = UpdateSupport::kTopK, .density = 0.5, .value_bits = 8};
  const std::vector<float> step = {1.0f, 0.625f};

  ErrorFeedback careful = Fresh(2);
  Prepare(careful, step, top_half);  // lost on the way
  careful.Discard();
  EXPECT_EQ(Decode(Prepare(careful, step, top_half), 2), (std::vector<float>{1.0f, 0.0f}));
  careful.Commit();
  EXPECT_EQ(careful.residual()[1], 0.625f);

  ErrorFeedback careless = Fresh(2);
  Prepare(careless, step, top_half);  // lost on the way
  careless.Commit();
  EXPECT_EQ(Decode(Prepare(careless, step, top_half), 2), (std::vector<float>{0.0f, 1.25f}));
}

// Minimizes 1/2 |x - 1|^2 with one value an update. Coordinate 0 is noisy: its step alternates and
// is always the largest.
std::vector<float> TrainQuadratic(bool with_feedback, int rounds) {
  const size_t size = 8;
  const EncodeOptions one_value = {
      .support = UpdateSupport::kTopK, .density = 0.125, .value_bits = 8};
  std::vector<float> x(size);
  ErrorFeedback feedback = Fresh(size);
  for (int round = 0; round < rounds; ++round) {
    std::vector<float> delta(size);
    delta[0] = round % 2 == 0 ? 0.25f : -0.25f;
    for (size_t i = 1; i < size; ++i) delta[i] = 0.015625f * (1.0f - x[i]);
    const std::vector<float> sent = Decode(Prepare(feedback, delta, one_value), size);
    if (with_feedback) {
      feedback.Commit();
    } else {
      feedback.Discard();
    }
    for (size_t i = 0; i < size; ++i) x[i] += sent[i];
  }
  return x;
}

TEST(ErrorFeedbackTest, WithoutFeedbackSmallCoordinatesNeverArrive) {
  const std::vector<float> without = TrainQuadratic(false, 600);
  const std::vector<float> with = TrainQuadratic(true, 600);
  for (size_t i = 1; i < without.size(); ++i) {
    EXPECT_EQ(without[i], 0.0f) << i;      // not one of 600 updates moved it
    EXPECT_NEAR(with[i], 1.0f, 0.3) << i;  // the optimum, up to what is held back
    EXPECT_NE(with[i], 1.0f);
  }
}

TEST(ErrorFeedbackTest, RestoresExactlyWhatWasSerialized) {
  ErrorFeedback feedback = Fresh(300);
  Prepare(feedback, RandomDelta(300, 1));
  feedback.Commit();
  for (const bool pending : {false, true}) {
    if (pending) Prepare(feedback, RandomDelta(300, 2));
    const std::string state = feedback.Serialize();
    EXPECT_EQ(state.size(), 84u + 600u * (pending ? 2 : 1));
    ErrorFeedback restored = Fresh(300);
    ASSERT_TRUE(restored.Restore(state).ok());
    EXPECT_EQ(ResidualOf(restored), ResidualOf(feedback));
    EXPECT_EQ(restored.has_pending(), pending);
    EXPECT_EQ(restored.Serialize(), state);
    if (!pending) continue;
    restored.Commit();
    feedback.Commit();
    EXPECT_EQ(ResidualOf(restored), ResidualOf(feedback));
    // A restart changes no byte of what follows.
    EXPECT_EQ(Prepare(restored, RandomDelta(300, 3)), Prepare(feedback, RandomDelta(300, 3)));
  }
}

TEST(ErrorFeedbackTest, RefusesDamagedState) {
  ErrorFeedback feedback = Fresh(30);
  Prepare(feedback, RandomDelta(30, 1));
  const std::string state = feedback.Serialize();
  ErrorFeedback other = Fresh(30);
  for (size_t size = 0; size < state.size(); ++size) {
    ASSERT_EQ(other.Restore(state.substr(0, size)).code(), absl::StatusCode::kDataLoss) << size;
  }
  for (size_t bit = 0; bit < state.size() * 8; ++bit) {
    std::string flipped = state;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    const bool version_byte = bit / 8 == 4;
    ASSERT_EQ(other.Restore(flipped).code(),
              version_byte ? absl::StatusCode::kUnimplemented : absl::StatusCode::kDataLoss)
        << bit;
  }
  EXPECT_EQ(other.Restore(state + "x").code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(other.residual(), Each(0.0f));
  EXPECT_FALSE(other.has_pending());
}

TEST(ErrorFeedbackTest, RefusesStateAndUpdatesOfAnotherRun) {
  ErrorFeedback feedback = Fresh(30);
  ErrorFeedback layout(Sha256Of("other"), Sha256Of("base model"), 30);
  ErrorFeedback base(Sha256Of("layout"), Sha256Of("other"), 30);
  ErrorFeedback size = Fresh(31);
  for (ErrorFeedback* other : {&layout, &base, &size}) {
    EXPECT_EQ(feedback.Restore(other->Serialize()).code(), absl::StatusCode::kFailedPrecondition);
  }
  const std::vector<float> delta = RandomDelta(30, 1);
  EXPECT_EQ(layout.Prepare(delta, FlatLayout(30), SampleHeader(), kTopTenth).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(base.Prepare(delta, FlatLayout(30), SampleHeader(), kTopTenth).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(size.Prepare(delta, FlatLayout(30), SampleHeader(), kTopTenth).status().code(),
            absl::StatusCode::kInvalidArgument);
  const std::vector<float> bad(30, INFINITY);
  EXPECT_EQ(feedback.Prepare(bad, FlatLayout(30), SampleHeader(), kTopTenth).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(feedback.has_pending());
}

TEST(ErrorFeedbackDeathTest, CommitNeedsAPendingUpdate) {
  ErrorFeedback feedback = Fresh(3);
  EXPECT_DEATH(feedback.Commit(), "Commit without Prepare");
}

}  // namespace
}  // namespace fedge
