#include "server/update_admission.h"

#include <cmath>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/server/rounds.h"
#include "tests/server/tiny_run.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using testing::MakeUpdate;
using testing::NodeName;
using testing::Rounds;
using testing::TinyPlan;

std::vector<float> Constant(const RunPlan& plan, float value) {
  return std::vector<float>(static_cast<size_t>(plan.lora.num_parameters()), value);
}

AdmittedUpdate Admitted(const RunPlan& plan, float value) {
  auto update = AdmitUpdate(plan, 1, 0, MakeUpdate(plan, {.values = Constant(plan, value)}));
  FEDGE_CHECK(update.ok(), update.status().message());
  return *std::move(update);
}

TEST(UpdateAdmissionTest, ClipsToTheFixedBound) {
  RunPlan plan = TinyPlan();
  plan.admission.max_norm = 1;
  AdmittedUpdate update = Admitted(plan, 3);
  const double root = std::sqrt(static_cast<double>(plan.lora.num_parameters()));
  EXPECT_DOUBLE_EQ(update.norm, 3 * root);
  EXPECT_DOUBLE_EQ(update.rms(), 3);
  ASSERT_TRUE(BoundNorm(plan.admission, 0, update).ok());
  EXPECT_EQ(update.norm, 1);
  EXPECT_FLOAT_EQ(update.update.values[0], static_cast<float>(1 / root));
  AdmittedUpdate small = Admitted(plan, 0.0625f);
  ASSERT_TRUE(BoundNorm(plan.admission, 0, small).ok());
  EXPECT_EQ(small.update.values, Constant(plan, 0.0625f));
}

TEST(UpdateAdmissionTest, TheBoundFollowsTheMedianOfEarlierRounds) {
  const RunPlan plan = TinyPlan();
  AdmittedUpdate update = Admitted(plan, 4);
  ASSERT_TRUE(BoundNorm(plan.admission, 0.5, update).ok());
  EXPECT_FLOAT_EQ(update.update.values[0], 1.5f);
  EXPECT_NEAR(update.rms(), 1.5, 1e-12);
  // A slice of half the size is compared by what a value of it is, not by its norm.
  const SliceLayout part = SliceLayout::Create(plan.lora, {SliceFactors::kBoth, 0, 1}).value();
  ASSERT_EQ(part.size() * 2, plan.lora.num_parameters());
  EXPECT_DOUBLE_EQ(NormLimit(plan.admission, 0.5, part),
                   1.5 * std::sqrt(static_cast<double>(part.size())));
  EXPECT_EQ(NormLimit(plan.admission, 0, part), std::numeric_limits<double>::infinity());
}

TEST(UpdateAdmissionTest, RefusesWithTheNumberAndWhereTheBoundComesFrom) {
  RunPlan plan = TinyPlan();
  plan.admission.norm_bound = NormBound::kReject;
  AdmittedUpdate update = Admitted(plan, 4);
  const absl::Status refused = BoundNorm(plan.admission, 0.5, update);
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("is above the bound 13.0"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("3 times the median of the last round"));
  EXPECT_TRUE(BoundNorm(plan.admission, 2, update).ok());
  EXPECT_EQ(update.update.values[0], 4);
}

TEST(UpdateAdmissionTest, LowerMedian) {
  EXPECT_EQ(LowerMedian({}), 0);
  EXPECT_EQ(LowerMedian({5}), 5);
  EXPECT_EQ(LowerMedian({9, 1, 5}), 5);
  EXPECT_EQ(LowerMedian({9, 1, 5, 2}), 2);
}

// Runs two rounds of four nodes; node 3 sends `last` in each place, the others 0.25.
LoraAdapter TwoRounds(float last, const std::vector<uint64_t>& order) {
  RunPlan plan = TinyPlan();
  plan.aggregation = AggregationMode::kFfa;
  Rounds rounds(plan);
  rounds.CheckInAll(4);
  for (uint64_t round = 1; round <= 2; ++round) {
    for (const uint64_t node : order) {
      const UpdateVerdict verdict =
          rounds.Submit(NodeName(node), {.round = round,
                                         .base_version = round - 1,
                                         .values = Constant(plan, node == 3 ? last : 0.25f)});
      EXPECT_EQ(verdict.verdict, Verdict::kAccepted) << verdict.reason;
    }
    rounds.coordinator.ConfirmPublished(round, testing::kStart);
    rounds.CheckInAll(4);
  }
  return rounds.coordinator.adapter();
}

TEST(UpdateAdmissionTest, ARoundWithoutHistoryIsBoundedByItsOwnMedian) {
  const LoraAdapter start = testing::TinyAdapter();
  // Both rounds: 0.25 from three nodes, 32 clipped to 0.75 from one: the mean is 0.375.
  const LoraAdapter end = TwoRounds(32, {0, 1, 2, 3});
  for (size_t i = 16; i < 28; ++i) {  // B of the first module
    EXPECT_NEAR(end.values()[i] - start.values()[i], 0.75, 1e-5);
  }
}

TEST(UpdateAdmissionTest, TheOrderOfArrivalsChangesNoBit) {
  const LoraAdapter first = TwoRounds(31.3f, {0, 1, 2, 3});
  const LoraAdapter second = TwoRounds(31.3f, {3, 1, 0, 2});
  EXPECT_TRUE(std::equal(first.values().begin(), first.values().end(), second.values().begin()));
}

TEST(UpdateAdmissionTest, FactorsInTurnHaveBoundsOfTheirOwn) {
  RunPlan plan = TinyPlan();
  plan.aggregation = AggregationMode::kRoLora;
  Rounds rounds(plan);
  rounds.CheckInAll(4);
  const float sent[] = {0.25f, 0.01f, 0.25f};  // B, A, B
  for (uint64_t round = 1; round <= 3; ++round) {
    for (uint64_t node = 0; node < 4; ++node) {
      rounds.Submit(
          NodeName(node),
          {.round = round, .base_version = round - 1, .values = Constant(plan, sent[round - 1])});
    }
    const auto published = rounds.Take<VersionPublished>();
    ASSERT_TRUE(published);
    EXPECT_EQ(published->state.typical_norm[0], 0.25);
    EXPECT_NEAR(published->state.typical_norm[1], round > 1 ? 0.01 : 0, 1e-4);
    rounds.coordinator.ConfirmPublished(round, testing::kStart);
  }
}

}  // namespace
}  // namespace fedge
