#include "server/robust_aggregation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/rng.h"
#include "server/robust_weights.h"
#include "tests/server/rounds.h"
#include "tests/server/tiny_run.h"

namespace fedge {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using testing::NodeName;
using testing::Rounds;
using testing::TinyPlan;
using testing::TinySpec;

AdmittedUpdate Make(const LoraSpec& spec, std::vector<float> values, AdapterSlice slice = {}) {
  AdmittedUpdate update;
  update.layout = SliceLayout::Create(spec, slice).value();
  update.update.values = std::move(values);
  return update;
}

// Each update is one number in all of its coordinates.
HeldUpdates Constants(const LoraSpec& spec, const std::vector<float>& numbers) {
  HeldUpdates updates;
  for (size_t i = 0; i < numbers.size(); ++i) {
    updates.Add(
        NodeName(i), Digest(),
        Make(spec, std::vector<float>(static_cast<size_t>(spec.num_parameters()), numbers[i])));
  }
  return updates;
}

std::vector<float> Mean(RobustPlan robust, const LoraSpec& spec, const UpdateSource& updates,
                        size_t tile_bytes = kDefaultTileBytes) {
  std::vector<float> mean(static_cast<size_t>(spec.num_parameters()), -1);
  const absl::Status status =
      CoordinateRule(robust, spec, updates, absl::MakeSpan(mean), tile_bytes);
  EXPECT_TRUE(status.ok()) << status;
  return mean;
}

// Squared distances of numbers on a line.
std::vector<double> Line(const std::vector<double>& places) {
  std::vector<double> distances;
  for (const double x : places) {
    for (const double y : places) distances.push_back((x - y) * (x - y));
  }
  return distances;
}

double Point(const std::vector<uint64_t>& weights, const std::vector<double>& places) {
  double sum = 0;
  double total = 0;
  for (size_t i = 0; i < places.size(); ++i) {
    sum += static_cast<double>(weights[i]) * places[i];
    total += static_cast<double>(weights[i]);
  }
  return sum / total;
}

constexpr RobustPlan kMedian{.rule = RobustRule::kMedian};

TEST(CoordinateRuleTest, MedianOfOddAndEvenCounts) {
  const LoraSpec spec = TinySpec();
  EXPECT_THAT(Mean(kMedian, spec, Constants(spec, {5, -1, 2})), Each(2.0f));
  EXPECT_THAT(Mean(kMedian, spec, Constants(spec, {5, -1, 2, 3})), Each(2.5f));
  EXPECT_THAT(Mean(kMedian, spec, Constants(spec, {7})), Each(7.0f));
}

TEST(CoordinateRuleTest, TrimmedMeanLeavesOutAShareAtEachEnd) {
  const LoraSpec spec = TinySpec();
  const HeldUpdates updates = Constants(spec, {60, 1, 2, 3, -60});
  EXPECT_THAT(Mean({.rule = RobustRule::kTrimmedMean, .attackers = 0.2}, spec, updates),
              Each(2.0f));
  EXPECT_THAT(Mean({.rule = RobustRule::kTrimmedMean, .attackers = 0}, spec, updates), Each(1.2f));
  // More than there is to leave out: the median stays.
  EXPECT_THAT(
      Mean({.rule = RobustRule::kTrimmedMean, .attackers = 0.49}, spec, Constants(spec, {4, 1})),
      Each(2.5f));
}

TEST(CoordinateRuleTest, WhatWasNotSentCountsAsZero) {
  const LoraSpec spec = TinySpec();
  HeldUpdates updates = Constants(spec, {2, 4});
  AdmittedUpdate sparse = Make(spec, {9, 6});
  sparse.update.coordinates = {0, 3};
  updates.Add("sparse", Digest(), sparse);
  const std::vector<float> mean = Mean(kMedian, spec, updates);
  EXPECT_EQ(mean[0], 4);
  EXPECT_EQ(mean[1], 2);
  EXPECT_EQ(mean[3], 4);
}

TEST(CoordinateRuleTest, CombinesOverTheNodesThatTrainedACoordinate) {
  const LoraSpec spec = TinySpec();
  HeldUpdates updates = Constants(spec, {2});
  const AdapterSlice first{SliceFactors::kB, 0, 1};
  const auto size = static_cast<size_t>(SliceLayout::Create(spec, first)->size());
  updates.Add("x", Digest(), Make(spec, std::vector<float>(size, 4), first));
  updates.Add("y", Digest(), Make(spec, std::vector<float>(size, 30), first));
  const std::vector<float> mean = Mean(kMedian, spec, updates);
  EXPECT_EQ(mean[0], 2);       // A of component 0: one node
  EXPECT_EQ(mean[16], 4);      // B of component 0: all three
  EXPECT_EQ(mean[16 + 6], 2);  // B of component 1
}

HeldUpdates Random(const LoraSpec& spec, const std::vector<uint64_t>& order, double outlier = 0) {
  HeldUpdates updates;
  for (const uint64_t node : order) {
    Rng rng(node + 1);
    std::vector<float> values(static_cast<size_t>(spec.num_parameters()));
    for (float& value : values) value = static_cast<float>(0.01 * rng.Normal() + 0.02);
    // Two attackers of five, at the largest value that is let in.
    if (outlier != 0 && node < 2) {
      for (float& value : values) value = static_cast<float>(outlier);
    }
    updates.Add(NodeName(node), Digest(), Make(spec, values));
  }
  return updates;
}

LoraSpec LongSpec() {
  return LoraSpec::Create(
             "llama", 4,
             {{.tensor = "blk.0.attn_q.weight", .in_features = 5000, .out_features = 24, .rank = 2},
              {.tensor = "blk.0.ffn_up.weight", .in_features = 8, .out_features = 9001, .rank = 2}})
      .value();
}

TEST(CoordinateRuleTest, OrderOfArrivalsAndTileSizeChangeNoBit) {
  const LoraSpec spec = LongSpec();
  for (const RobustRule rule : {RobustRule::kMedian, RobustRule::kTrimmedMean}) {
    const RobustPlan plan{.rule = rule};
    const std::vector<float> mean = Mean(plan, spec, Random(spec, {0, 1, 2, 3, 4}));
    EXPECT_EQ(Mean(plan, spec, Random(spec, {4, 2, 0, 3, 1})), mean);
    for (const size_t tile_bytes : {1, 30'000, 200'000}) {
      EXPECT_EQ(Mean(plan, spec, Random(spec, {0, 1, 2, 3, 4}), tile_bytes), mean);
    }
  }
}

TEST(CoordinateRuleTest, LeavesOutWhatAdmissionShouldHaveRefused) {
  const LoraSpec spec = TinySpec();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_THAT(Mean(kMedian, spec, Constants(spec, {1, nan, 3, infinity, 2})), Each(2.0f));
  std::vector<float> mean(static_cast<size_t>(spec.num_parameters()));
  EXPECT_EQ(CoordinateRule(kMedian, spec, Constants(spec, {nan}), absl::MakeSpan(mean)).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(PairwiseDistancesTest, AreThoseOfTheCommonCoordinatesScaled) {
  const LoraSpec spec = TinySpec();
  HeldUpdates updates = Constants(spec, {2, 5});
  const AdapterSlice first{SliceFactors::kBoth, 0, 1};
  const auto size = static_cast<size_t>(SliceLayout::Create(spec, first)->size());
  updates.Add("x", Digest(), Make(spec, std::vector<float>(size, 3), first));
  const auto distances = PairwiseDistances(spec, updates);
  ASSERT_TRUE(distances.ok());
  const auto n = static_cast<double>(spec.num_parameters());
  EXPECT_THAT(*distances, ElementsAre(0, 9 * n, n, 9 * n, 0, 4 * n, n, 4 * n, 0));
}

TEST(PairwiseDistancesTest, OrderAndTileSizeChangeNoBit) {
  const LoraSpec spec = LongSpec();
  const auto distances = PairwiseDistances(spec, Random(spec, {0, 1, 2, 3, 4}));
  EXPECT_EQ(*PairwiseDistances(spec, Random(spec, {3, 4, 1, 2, 0})), *distances);
  for (const size_t tile_bytes : {1, 30'000, 200'000}) {
    EXPECT_EQ(*PairwiseDistances(spec, Random(spec, {0, 1, 2, 3, 4}), tile_bytes), *distances);
  }
}

TEST(MultiKrumTest, PicksThoseThatLieTogether) {
  const std::vector<double> places = {0, 1, 1.5, 2, 40, 41, 2.5};
  // f = 2 of 7: the sums of squares to the 3 nearest decide.
  EXPECT_THAT(
      MultiKrumWeights(Line(places), 7, {.rule = RobustRule::kMultiKrum, .attackers = 0.28}),
      ElementsAre(1, 1, 1, 1, 0, 0, 1));
  EXPECT_THAT(MultiKrumWeights(Line(places), 7,
                               {.rule = RobustRule::kMultiKrum, .attackers = 0.28, .keep = 1}),
              ElementsAre(0, 0, 1, 0, 0, 0, 0));
}

TEST(MultiKrumTest, NeverPicksWhatIsNotANumber) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double bad : {nan, infinity}) {
    std::vector<double> distances = Line({0, 1, 2, 3, 4, 5});
    for (size_t i = 0; i < 6; ++i) distances[3 * 6 + i] = distances[i * 6 + 3] = bad;
    EXPECT_EQ(MultiKrumWeights(distances, 6, {.rule = RobustRule::kMultiKrum})[3], 0u);
    EXPECT_EQ(GeometricMedianWeights(distances, 6)[3], 0u);
  }
  EXPECT_THAT(MultiKrumWeights({nan, nan, nan, nan}, 2, {.rule = RobustRule::kMultiKrum}),
              ElementsAre(0, 0));
}

TEST(MultiKrumTest, ANaNUpdateIsNotChosen) {
  const LoraSpec spec = TinySpec();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto weights = UpdateWeights({.rule = RobustRule::kMultiKrum}, spec,
                                     Constants(spec, {1, 2, nan, 1.5, 1.2f}));
  ASSERT_TRUE(weights.ok());
  EXPECT_EQ((*weights)[2], 0u);
  EXPECT_GE(std::accumulate(weights->begin(), weights->end(), uint64_t{0}), 3u);
}

TEST(MultiKrumTest, SmallCohortsAreAveraged) {
  EXPECT_THAT(MultiKrumWeights({0}, 1, {.rule = RobustRule::kMultiKrum}), ElementsAre(1));
  EXPECT_THAT(MultiKrumWeights(Line({0, 9}), 2, {.rule = RobustRule::kMultiKrum}),
              ElementsAre(1, 1));
}

TEST(GeometricMedianTest, IsTheMedianOnALine) {
  const std::vector<double> places = {-3, 0, 1, 4, 30};
  EXPECT_NEAR(Point(GeometricMedianWeights(Line(places), 5), places), 1, 1e-3);
}

TEST(GeometricMedianTest, IsTheCentreOfASquareAndTheFermatPoint) {
  // Corners of a square: the centre; equal weights by symmetry.
  const std::vector<double> square = {0, 1, 2, 1, 1, 0, 1, 2, 2, 1, 0, 1, 1, 2, 1, 0};
  EXPECT_THAT(GeometricMedianWeights(square, 4), Each(uint64_t{1} << 21));
  // (0,0), (4,0), (2,1): the angle at the third is 126.87 degrees, above 120: it is the point.
  const std::vector<double> obtuse = {0, 16, 5, 16, 0, 5, 5, 5, 0};
  const std::vector<uint64_t> weights = GeometricMedianWeights(obtuse, 3);
  EXPECT_GT(weights[2], (uint64_t{1} << 23) * 0.99);
}

TEST(GeometricMedianTest, EqualAndFewUpdatesHaveEqualWeights) {
  EXPECT_THAT(GeometricMedianWeights(std::vector<double>(9, 0), 3), Each(2796203));
  EXPECT_THAT(GeometricMedianWeights(Line({0, 100}), 2), Each(uint64_t{1} << 22));
}

TEST(RobustRulesTest, FortyPercentOfAttackersDoNotMoveTheResultFar) {
  const LoraSpec spec = LongSpec();
  for (const double outlier : {-64.0, 64.0}) {
    const HeldUpdates updates = Random(spec, {0, 1, 2, 3, 4}, outlier);
    std::vector<float> mean = Mean(kMedian, spec, updates);
    for (const float value : mean) ASSERT_NEAR(value, 0.02, 0.06);
    mean = Mean({.rule = RobustRule::kTrimmedMean, .attackers = 0.4}, spec, updates);
    for (const float value : mean) ASSERT_NEAR(value, 0.02, 0.06);
    const auto krum =
        UpdateWeights({.rule = RobustRule::kMultiKrum, .attackers = 0.4}, spec, updates);
    EXPECT_THAT(*krum, ElementsAre(0, 0, 1, 1, 1));
    const auto median = UpdateWeights({.rule = RobustRule::kGeometricMedian}, spec, updates);
    EXPECT_LT((*median)[0] + (*median)[1], (uint64_t{1} << 23) * 2e-3);
  }
}

// The same at the values that a rule alone would see without any bound: 10^6 times what honest
// updates are.
TEST(RobustRulesTest, DistancesOfAMillionDoNotFoolTheWeights) {
  std::vector<double> places;
  for (int i = 0; i < 12; ++i) places.push_back(0.1 * i);
  for (int i = 0; i < 8; ++i) places.push_back(1e6 + i % 3);
  const std::vector<uint64_t> krum =
      MultiKrumWeights(Line(places), 20, {.rule = RobustRule::kMultiKrum, .attackers = 0.4});
  for (size_t i = 0; i < 20; ++i) EXPECT_EQ(krum[i], i < 12 ? 1u : 0u) << i;
  const double point = Point(GeometricMedianWeights(Line(places), 20), places);
  EXPECT_GT(point, 0);
  EXPECT_LT(point, 1.2);
}

class RobustRoundTest : public ::testing::TestWithParam<RobustRule> {};

// Round 1 of five nodes with two that send 1.5 everywhere; returns the change of the adapter.
std::vector<float> OneRound(RunPlan plan, const std::vector<uint64_t>& order) {
  plan.nodes_per_round = plan.min_nodes = 5;
  plan.admission.norm_bound = NormBound::kOff;
  Rounds rounds(plan);
  rounds.CheckInAll(5);
  for (const uint64_t node : order) {
    const std::vector<float> values(static_cast<size_t>(plan.lora.num_parameters()),
                                    node < 2 ? 1.5f : 0.25f + 0.01f * static_cast<float>(node));
    const auto verdict = rounds.Submit(NodeName(node), {.values = values});
    EXPECT_EQ(verdict.verdict, Verdict::kAccepted) << verdict.reason;
  }
  const auto published = rounds.Take<VersionPublished>();
  FEDGE_CHECK(published.has_value());
  EXPECT_EQ(published->contributions.size(), 5u);
  const LoraAdapter start = testing::TinyAdapter();
  std::vector<float> change;
  for (size_t i = 0; i < start.values().size(); ++i) {
    change.push_back(published->state.adapter.values()[i] - start.values()[i]);
  }
  return change;
}

TEST_P(RobustRoundTest, ClosesARoundWithAttackersInAnyOrder) {
  RunPlan plan = TinyPlan();
  plan.robust = {.rule = GetParam(), .attackers = 0.4};
  const std::vector<float> change = OneRound(plan, {0, 1, 2, 3, 4});
  for (const float value : change) ASSERT_NEAR(value, 0.28, 0.05);
  EXPECT_EQ(OneRound(plan, {4, 0, 3, 1, 2}), change);
}

TEST_P(RobustRoundTest, OnlyTheFactorThatWasTrainedMoves) {
  RunPlan plan = TinyPlan();
  plan.aggregation = AggregationMode::kFfa;
  plan.robust = {.rule = GetParam(), .attackers = 0.4};
  const std::vector<float> change = OneRound(plan, {0, 1, 2, 3, 4});
  EXPECT_EQ(change[0], 0);              // of A
  EXPECT_NEAR(change[16], 0.28, 0.05);  // of B
}

INSTANTIATE_TEST_SUITE_P(All, RobustRoundTest,
                         ::testing::Values(RobustRule::kMedian, RobustRule::kTrimmedMean,
                                           RobustRule::kMultiKrum, RobustRule::kGeometricMedian));

TEST(RobustRoundTest, WeightsWorkForModesThatSumProducts) {
  for (const AggregationMode mode : {AggregationMode::kFlexLora, AggregationMode::kFedEx}) {
    RunPlan plan = TinyPlan();
    plan.aggregation = mode;
    if (mode == AggregationMode::kFedEx) plan.trained_rank = 1;
    plan.robust = {.rule = RobustRule::kMultiKrum, .attackers = 0.4};
    plan.nodes_per_round = plan.min_nodes = 5;
    Rounds rounds(plan);
    rounds.CheckInAll(5);
    for (uint64_t node = 0; node < 5; ++node) {
      const std::vector<float> values(static_cast<size_t>(plan.lora.num_parameters()),
                                      node < 2 ? 1.5f : 0.25f);
      rounds.Submit(NodeName(node), {.values = values});
    }
    const auto published = rounds.Take<VersionPublished>();
    ASSERT_TRUE(published);
    EXPECT_EQ(published->contributions[0].weight, 0u);
    EXPECT_EQ(published->contributions[4].weight, 1u);
    for (const float value : published->state.adapter.values()) ASSERT_LT(std::abs(value), 4);
  }
}

}  // namespace
}  // namespace fedge
