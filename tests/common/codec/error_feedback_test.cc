#include "common/codec/error_feedback.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "common/tensor/quantize.h"
#include "tests/testing/error_feedback_samples.h"
#include "tests/testing/update_samples.h"

namespace fedge {
namespace {

using testing::Decode;
using ::testing::Each;
using testing::Flat;
using testing::FlatLayout;
using testing::FlatSpec;
using testing::Fresh;
using testing::HeaderOf;
using testing::kNoRules;
using testing::kTopTenth;
using testing::Prepare;
using testing::RandomDelta;
using testing::ResidualOf;

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
    const size_t name = 2 + FlatSpec(300).modules()[0].tensor.size();
    EXPECT_EQ(state.size(), 120u + name + 600u * (pending ? 2 : 1));
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
  ErrorFeedback base(FlatSpec(30), Sha256Of("other"), 0);
  ErrorFeedback size = Fresh(31);
  EXPECT_EQ(feedback.Restore(base.Serialize()).code(), absl::StatusCode::kFailedPrecondition);
  const std::vector<float> delta = RandomDelta(30, 1);
  const UpdateHeader header = HeaderOf(FlatSpec(30));
  EXPECT_EQ(base.Prepare(delta, FlatLayout(30), header, kTopTenth).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(size.Prepare(delta, FlatLayout(30), header, kTopTenth).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(feedback.Prepare(delta, FlatLayout(31), header, kTopTenth).status().code(),
            absl::StatusCode::kInvalidArgument);
  const std::vector<float> bad(30, INFINITY);
  EXPECT_EQ(feedback.Prepare(bad, FlatLayout(30), header, kTopTenth).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(feedback.has_pending());
}

// A residual of coordinate 1, held back in round 1; what round `round` sends of it when nothing new
// was trained.
float SentAfterAbsence(const ErrorFeedbackOptions& options, uint64_t round) {
  const EncodeOptions one = {.support = UpdateSupport::kTopK, .density = 0.1, .value_bits = 8};
  ErrorFeedback feedback = Fresh(10, options);
  std::vector<float> delta(10);
  delta[0] = 1.0f;
  delta[1] = 0.5f;
  Prepare(feedback, delta, one, 1);
  feedback.Commit();
  return Decode(Prepare(feedback, std::vector<float>(10), one, round), 10)[1];
}

// What a node held back long ago was trained from an adapter that is gone.
TEST(ErrorFeedbackTest, ReplaysLessAfterALongAbsence) {
  const ErrorFeedbackOptions rule = {.full_rounds = 25, .max_norm_ratio = 0};
  EXPECT_EQ(SentAfterAbsence(rule, 2), 0.5f);
  EXPECT_EQ(SentAfterAbsence(rule, 26), 0.5f);
  EXPECT_NEAR(SentAfterAbsence(rule, 36), 0.3f, 0.001);
  EXPECT_EQ(SentAfterAbsence(rule, 51), 0.0f);
  EXPECT_EQ(SentAfterAbsence(rule, 5000), 0.0f);
  EXPECT_EQ(SentAfterAbsence(kNoRules, 5000), 0.5f);  // the failure: years later, all of it
}

// With a decay what waits counts less each round: nothing that is old is replayed for long.
TEST(ErrorFeedbackTest, ForgetsAShareEachRound) {
  const auto held_after = [](const ErrorFeedbackOptions& options, int rounds) {
    ErrorFeedback feedback = Fresh(20, options);
    std::vector<float> delta(20);
    delta[3] = 1;
    delta[5] = 0.9f;
    delta[8] = 0.5f;  // never among the two largest
    for (int round = 0; round < rounds; ++round) {
      Prepare(feedback, delta);
      feedback.Commit();
      delta[8] = 0;
    }
    return feedback.residual()[8];
  };
  EXPECT_EQ(held_after({.full_rounds = 0, .max_norm_ratio = 0, .decay = 0.5}, 1), 0.5f);
  EXPECT_EQ(held_after({.full_rounds = 0, .max_norm_ratio = 0, .decay = 0.5}, 3), 0.125f);
  EXPECT_EQ(held_after(kNoRules, 3), 0.5f);
}

// One diverged round must not shape the updates of many after it.
TEST(ErrorFeedbackTest, BoundsTheResidualByTheDelta) {
  const auto sent_after_burst = [](const ErrorFeedbackOptions& options) {
    ErrorFeedback feedback = Fresh(500, options);
    std::vector<float> burst = RandomDelta(500, 1);
    for (float& value : burst) value *= 1000;
    Prepare(feedback, burst);
    feedback.Commit();
    const std::vector<float> delta = RandomDelta(500, 2);
    double norm = 0;
    double sent = 0;
    for (const float value : delta) norm += static_cast<double>(value) * value;
    for (const float value : Decode(Prepare(feedback, delta), 500)) {
      sent += static_cast<double>(value) * value;
    }
    return std::sqrt(sent / norm);
  };
  EXPECT_LE(sent_after_burst({.full_rounds = 0, .max_norm_ratio = 3}), 4.0);
  EXPECT_GT(sent_after_burst({.full_rounds = 0, .max_norm_ratio = 3}), 1.0);
  EXPECT_GT(sent_after_burst(kNoRules), 100.0);  // the failure
}

// The server turned the frame: coordinate i is now the last but i.
TEST(ErrorFeedbackTest, DropsAResidualOfAnotherFrame) {
  std::vector<float> delta(10);
  delta[0] = 1.0f;
  delta[1] = 0.5f;
  ErrorFeedback before = Fresh(10);
  Prepare(before, delta);
  before.Commit();
  const std::string state = before.Serialize();
  ErrorFeedback after = Fresh(10, kNoRules, 1);
  const absl::Status refused = after.Restore(state);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(refused.message(),
            "error-feedback state: of frame 0, the adapter is in frame 1; what it holds has no "
            "place there");
  EXPECT_THAT(after.residual(), Each(0.0f));
  // The failure: with the tag as it was, the residual comes back where nothing was held back.
  ErrorFeedback careless = Fresh(10, kNoRules, 0);
  ASSERT_TRUE(careless.Restore(state).ok());
  EXPECT_NE(Decode(Prepare(careless, std::vector<float>(10)), 10)[1], 0.0f);
}

LoraSpec RankSpec(int64_t rank) {
  const LoraModule a = {"blk.0.attn_q.weight", 6, 4, rank, 0};
  const LoraModule b = {"blk.1.attn_q.weight", 5, 3, rank, 0};
  return LoraSpec::Create("llama", 8, {a, b}).value();
}

TEST(ErrorFeedbackTest, KeepsTheCommonComponentsWhenTheRankChanges) {
  for (const auto& [from, to] : {std::pair<int64_t, int64_t>{4, 2}, {2, 4}}) {
    const LoraSpec old_spec = RankSpec(from);
    const LoraSpec new_spec = RankSpec(to);
    ErrorFeedback before(old_spec, Sha256Of("base model"), 0, kNoRules);
    const auto size = static_cast<size_t>(old_spec.num_parameters());
    ASSERT_TRUE(before
                    .Prepare(RandomDelta(size, 3), SliceLayout::Whole(old_spec), HeaderOf(old_spec),
                             kTopTenth)
                    .ok());
    before.Commit();
    ErrorFeedback after(new_spec, Sha256Of("base model"), 0, kNoRules);
    ASSERT_TRUE(after.Restore(before.Serialize()).ok());
    EXPECT_FALSE(after.has_pending());
    for (size_t m = 0; m < 2; ++m) {
      const LoraModule& x = old_spec.modules()[m];
      const LoraModule& y = new_spec.modules()[m];
      for (int64_t c = 0; c < to; ++c) {
        for (int64_t i = 0; i < y.in_features; ++i) {
          const size_t at = static_cast<size_t>(y.offset + c * y.in_features + i);
          const size_t was = static_cast<size_t>(x.offset + c * x.in_features + i);
          ASSERT_EQ(after.residual()[at], c < from ? before.residual()[was] : 0.0f);
        }
        for (int64_t o = 0; o < y.out_features; ++o) {
          const size_t at = static_cast<size_t>(y.offset + y.a_size() + c * y.out_features + o);
          const size_t was = static_cast<size_t>(x.offset + x.a_size() + c * x.out_features + o);
          ASSERT_EQ(after.residual()[at], c < from ? before.residual()[was] : 0.0f);
        }
      }
    }
    // The failure: by plain position, B's first component would come from a component of A.
    const size_t b_of_new = static_cast<size_t>(new_spec.modules()[0].a_size());
    const size_t b_of_old = static_cast<size_t>(old_spec.modules()[0].a_size());
    EXPECT_EQ(after.residual()[b_of_new], before.residual()[b_of_old]);
    if (to < from) {
      EXPECT_NE(after.residual()[b_of_new], before.residual()[b_of_new]);
    }
  }
}

// Rounds that train A and B in turn: what A held back is still there when A's turn comes.
TEST(ErrorFeedbackTest, KeepsWhatIsOutsideTheSlice) {
  const LoraSpec spec = RankSpec(4);
  const SliceLayout a = SliceLayout::Create(spec, {SliceFactors::kA, 0, 4}).value();
  const SliceLayout b = SliceLayout::Create(spec, {SliceFactors::kB, 0, 4}).value();
  ErrorFeedback feedback(spec, Sha256Of("base model"), 0, kNoRules);
  std::vector<double> trained(static_cast<size_t>(spec.num_parameters()));
  std::vector<double> received = trained;
  for (uint64_t round = 0; round < 20; ++round) {
    const SliceLayout& layout = round % 2 == 0 ? b : a;
    std::vector<float> delta = RandomDelta(trained.size(), round);
    layout.ClearOutside(absl::MakeSpan(delta));
    const auto bytes = feedback.Prepare(delta, layout, HeaderOf(spec, round + 1), kTopTenth);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    feedback.Commit();
    const std::vector<float> sent =
        Flat(DecodeUpdate(*bytes, spec.layout_hash(), layout).value(), layout);
    for (size_t i = 0; i < trained.size(); ++i) {
      trained[i] += delta[i];
      received[i] += sent[i];
    }
  }
  double held = 0;
  for (size_t i = 0; i < trained.size(); ++i) {
    EXPECT_NEAR(trained[i], received[i] + feedback.residual()[i], 20 * 4e-6) << i;
    held += std::abs(feedback.residual()[i]);
  }
  EXPECT_GT(held, 1e-3);  // the sum above is not one of zeros
}

TEST(ErrorFeedbackDeathTest, CommitNeedsAPendingUpdate) {
  ErrorFeedback feedback = Fresh(3);
  EXPECT_DEATH(feedback.Commit(), "Commit without Prepare");
}

}  // namespace
}  // namespace fedge
