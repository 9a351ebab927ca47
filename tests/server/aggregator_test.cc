#include "server/aggregator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "common/base/rng.h"
#include "common/base/status.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// An adapter of `parameters` numbers, at least 2.
LoraSpec Spec(int64_t parameters) {
  const auto spec = LoraSpec::Create("llama", 1,
                                     {{.tensor = "blk.0.attn_q.weight",
                                       .in_features = parameters - 1,
                                       .out_features = 1,
                                       .rank = 1}});
  FEDGE_CHECK(spec.ok(), spec.status().message());
  return *spec;
}

// Adds whole, dense updates.
class DenseAggregator : public UpdateAggregator {
 public:
  explicit DenseAggregator(int64_t parameters)
      : UpdateAggregator(Spec(parameters)), layout_(SliceLayout::Whole(Spec(parameters))) {}
  absl::Status Add(const std::vector<float>& values, uint64_t weight) {
    return Accumulate({.layout = &layout_, .values = values}, weight);
  }

 private:
  SliceLayout layout_;
};

struct Update {
  std::vector<float> values;
  uint64_t weight;
};

std::vector<Update> RandomUpdates(size_t count, size_t size, uint64_t seed) {
  Rng rng(seed);
  std::vector<Update> updates(count);
  for (Update& update : updates) {
    update.weight = 1 + rng.Below(100000);
    update.values.resize(size);
    for (float& value : update.values) {
      // Magnitudes from 2^-40 to 2^5: plain fp32 summation would depend on the order.
      const int exponent = static_cast<int>(rng.Below(46)) - 40;
      value = static_cast<float>(std::ldexp(2.0 * rng.Uniform() - 1.0, exponent));
    }
  }
  return updates;
}

std::vector<float> MeanOf(const UpdateAggregator& aggregator, size_t size) {
  std::vector<float> mean(size);
  EXPECT_TRUE(aggregator.Mean(absl::MakeSpan(mean)).ok());
  return mean;
}

// All of `updates` in the given order.
std::vector<float> Aggregate(const std::vector<Update>& updates, const std::vector<size_t>& order) {
  DenseAggregator aggregator(static_cast<int64_t>(updates[0].values.size()));
  for (const size_t i : order) {
    EXPECT_TRUE(aggregator.Add(updates[i].values, updates[i].weight).ok());
  }
  return MeanOf(aggregator, updates[0].values.size());
}

TEST(UpdateAggregatorTest, AveragesWithWeights) {
  DenseAggregator aggregator(2);
  ASSERT_TRUE(aggregator.Add({1.0f, -4.0f}, 3).ok());
  ASSERT_TRUE(aggregator.Add({5.0f, 0.0f}, 1).ok());
  EXPECT_THAT(MeanOf(aggregator, 2), ElementsAre(2.0f, -3.0f));
  EXPECT_EQ(aggregator.total_weight(), 4u);
  EXPECT_EQ(aggregator.num_updates(), 2);
}

TEST(UpdateAggregatorTest, GivesTheSameBitsForEveryOrder) {
  const std::vector<Update> updates = RandomUpdates(24, 97, 1);
  std::vector<size_t> order(updates.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const std::vector<float> expected = Aggregate(updates, order);
  Rng rng(2);
  for (int i = 0; i < 50; ++i) {
    rng.Shuffle(absl::MakeSpan(order));
    ASSERT_EQ(Aggregate(updates, order), expected);
  }
}

TEST(UpdateAggregatorTest, GivesTheSameBitsForEveryTreeOfShards) {
  const std::vector<Update> updates = RandomUpdates(24, 97, 3);
  std::vector<size_t> order(updates.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const std::vector<float> expected = Aggregate(updates, order);
  for (const size_t shards : {2u, 3u, 7u, 24u, 40u}) {
    std::vector<DenseAggregator> parts(shards, DenseAggregator(97));
    for (size_t i = 0; i < updates.size(); ++i) {
      ASSERT_TRUE(parts[i % shards].Add(updates[i].values, updates[i].weight).ok());
    }
    // From the right, so that empty shards and deep chains occur too.
    for (size_t i = shards - 1; i > 0; --i) ASSERT_TRUE(parts[i / 2].Merge(parts[i]).ok());
    EXPECT_EQ(MeanOf(parts[0], 97), expected) << shards << " shards";
    EXPECT_EQ(parts[0].num_updates(), 24);
  }
}

TEST(UpdateAggregatorTest, StaysWithinTheStatedRoundingBound) {
  const std::vector<Update> updates = RandomUpdates(16, 500, 4);
  std::vector<size_t> order(updates.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const std::vector<float> mean = Aggregate(updates, order);
  double worst = 0;
  for (size_t i = 0; i < mean.size(); ++i) {
    double sum = 0;
    double weight = 0;
    for (const Update& update : updates) {
      sum += static_cast<double>(update.weight) * update.values[i];
      weight += static_cast<double>(update.weight);
    }
    const double error = std::abs(mean[i] - sum / weight);
    ASSERT_LE(error, 0x1p-27 + std::abs(sum / weight) * 0x1.01p-24) << i;
    worst = std::max(worst, error);
  }
  EXPECT_GT(worst, 0x1p-31);  // suspiciously exact would mean the values were too tame
}

TEST(UpdateAggregatorTest, SumsHalvesExactly) {
  // The smallest IEEE half beside the largest value: fp32 sums would lose the small one.
  DenseAggregator aggregator(2);
  for (const float value : {64.0f, 0x1p-24f, -64.0f, 0.0f}) {
    ASSERT_TRUE(aggregator.Add({value, -value}, 1).ok());
  }
  EXPECT_THAT(MeanOf(aggregator, 2), ElementsAre(0x1p-26f, -0x1p-26f));
}

TEST(UpdateAggregatorTest, ReturnsAValueAllNodesAgreeOnUnchanged) {
  DenseAggregator aggregator(3);
  const std::vector<float> values = {0x1.554p-9f, -0x1.8p-20f, 63.96875f};
  for (uint64_t weight = 1; weight < 2000; weight += 7) {
    ASSERT_TRUE(aggregator.Add(values, weight).ok());
  }
  EXPECT_EQ(MeanOf(aggregator, 3), values);
}

TEST(UpdateAggregatorTest, HoldsTheExtremesOfAllLimitsAtOnce) {
  DenseAggregator aggregator(2);
  uint64_t left = kMaxTotalWeight;
  while (left > 0) {
    const uint64_t weight = std::min(left, kMaxUpdateWeight);
    ASSERT_TRUE(aggregator.Add({kMaxUpdateMagnitude, -kMaxUpdateMagnitude}, weight).ok());
    left -= weight;
  }
  EXPECT_EQ(aggregator.total_weight(), kMaxTotalWeight);
  EXPECT_THAT(MeanOf(aggregator, 2), ElementsAre(64.0f, -64.0f));
  const absl::Status full = aggregator.Add({0.0f, 0.0f}, 1);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  DenseAggregator one(2);
  ASSERT_TRUE(one.Add({0.0f, 0.0f}, 1).ok());
  EXPECT_EQ(aggregator.Merge(one).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(aggregator.num_updates(), 128);
}

TEST(UpdateAggregatorTest, RejectsBadUpdatesAndAddsNothingOfThem) {
  DenseAggregator aggregator(3);
  ASSERT_TRUE(aggregator.Add({1.0f, 2.0f, 3.0f}, 5).ok());
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const float over = std::nextafter(kMaxUpdateMagnitude, infinity);
  for (const float bad : {nan, infinity, -infinity, over, -over}) {
    const absl::Status status = aggregator.Add({7.0f, 7.0f, bad}, 1);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr("value 2 of the update is"));
  }
  EXPECT_EQ(aggregator.Add({7.0f, 7.0f}, 1).code(), absl::StatusCode::kInvalidArgument);
  for (const uint64_t weight : {uint64_t{0}, kMaxUpdateWeight + 1, ~uint64_t{0}}) {
    EXPECT_EQ(aggregator.Add({7.0f, 7.0f, 7.0f}, weight).code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(aggregator.Merge(DenseAggregator(2)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(aggregator.total_weight(), 5u);
  EXPECT_EQ(aggregator.num_updates(), 1);
  EXPECT_THAT(MeanOf(aggregator, 3), ElementsAre(1.0f, 2.0f, 3.0f));
}

TEST(UpdateAggregatorTest, HasNoMeanOfNothing) {
  const DenseAggregator aggregator(2);
  std::vector<float> mean = {9.0f, 9.0f};
  EXPECT_EQ(aggregator.Mean(absl::MakeSpan(mean)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(mean, ElementsAre(9.0f, 9.0f));
  std::vector<float> short_mean(1);
  EXPECT_EQ(aggregator.Mean(absl::MakeSpan(short_mean)).code(), absl::StatusCode::kInvalidArgument);
}

// Sparse updates and slices, on two modules of rank 3.
class SlicedAggregatorTest : public ::testing::Test {
 protected:
  SlicedAggregatorTest() {
    spec_ = LoraSpec::Create("llama", 1,
                             {{.tensor = "a", .in_features = 4, .out_features = 5, .rank = 3},
                              {.tensor = "b", .in_features = 2, .out_features = 6, .rank = 3}})
                .value();
  }
  SliceLayout Layout(SliceFactors factors, int64_t first, int64_t end) const {
    return SliceLayout::Create(spec_,
                               {.factors = factors, .first_component = first, .end_component = end})
        .value();
  }
  std::vector<float> Mean(const UpdateAggregator& sums) const {
    return MeanOf(sums, static_cast<size_t>(spec_.num_parameters()));
  }
  LoraSpec spec_;
};

TEST_F(SlicedAggregatorTest, AddsTheSameForSparseAndDenseOfEverySlice) {
  Rng rng(5);
  const AggregatorOptions options{
      .coordinate_weights = false,
      .sketch =
          SketchOptions{.seed = 3, .range = 5, .corange = 11, .probes = 4, .group_ends = {1, 3}}};
  UpdateAggregator sparse(spec_, options);
  UpdateAggregator dense(spec_, options);
  for (const SliceFactors factors : {SliceFactors::kBoth, SliceFactors::kA, SliceFactors::kB}) {
    for (int64_t first = 0; first < 3; ++first) {
      for (int64_t end = first + 1; end <= 3; ++end) {
        const SliceLayout layout = Layout(factors, first, end);
        std::vector<float> flat(static_cast<size_t>(spec_.num_parameters()));
        std::vector<float> mask(flat.size());
        layout.Scatter(std::vector<float>(static_cast<size_t>(layout.size()), 1.0f),
                       absl::MakeSpan(mask));
        std::vector<uint32_t> coordinates;
        std::vector<float> values;
        for (uint32_t i = 0; i < flat.size(); ++i) {
          if (mask[i] == 0 || rng.Below(3) > 0) continue;
          flat[i] = static_cast<float>(rng.Normal());
          coordinates.push_back(i);
          values.push_back(flat[i]);
        }
        std::vector<float> gathered(static_cast<size_t>(layout.size()));
        layout.Gather(flat, absl::MakeSpan(gathered));
        const uint64_t weight = 1 + rng.Below(9);
        ASSERT_TRUE(
            sparse
                .Accumulate({.layout = &layout, .coordinates = coordinates, .values = values},
                            weight)
                .ok());
        ASSERT_TRUE(dense.Accumulate({.layout = &layout, .values = gathered}, weight).ok());
      }
    }
  }
  EXPECT_EQ(Mean(sparse), Mean(dense));
  const std::vector<uint64_t> weights = sparse.GroupWeights();
  EXPECT_EQ(weights, dense.GroupWeights());
  for (int64_t module = 0; module < 2; ++module) {
    EXPECT_EQ(sparse.sketch()->Right(module, weights), dense.sketch()->Right(module, weights));
    EXPECT_EQ(sparse.sketch()->Left(module, weights), dense.sketch()->Left(module, weights));
    EXPECT_GT(sparse.sketch()->Right(module, weights).norm(), 0);
  }
}

TEST_F(SlicedAggregatorTest, AveragesAComponentOverTheWeightOfThoseWhoTrainedIt) {
  UpdateAggregator sums(spec_);
  const SliceLayout small = Layout(SliceFactors::kBoth, 0, 1);
  const SliceLayout whole = Layout(SliceFactors::kBoth, 0, 3);
  const std::vector<float> ones(static_cast<size_t>(small.size()), 1.0f);
  const std::vector<float> fives(static_cast<size_t>(whole.size()), 5.0f);
  ASSERT_TRUE(sums.Accumulate({.layout = &small, .values = ones}, 3).ok());
  ASSERT_TRUE(sums.Accumulate({.layout = &whole, .values = fives}, 1).ok());
  const std::vector<float> mean = Mean(sums);
  std::vector<float> first(ones.size());
  small.Gather(mean, absl::MakeSpan(first));
  EXPECT_EQ(first, std::vector<float>(first.size(), 2.0f));  // (3 * 1 + 1 * 5) / 4
  EXPECT_EQ(std::count(mean.begin(), mean.end(), 5.0f), static_cast<int64_t>(2 * 9 + 2 * 8));
}

TEST_F(SlicedAggregatorTest, AveragesACoordinateOverTheWeightOfThoseWhoSentIt) {
  UpdateAggregator sums(spec_, {.coordinate_weights = true, .sketch = std::nullopt});
  const SliceLayout whole = Layout(SliceFactors::kBoth, 0, 3);
  const std::vector<uint32_t> one = {7};
  const std::vector<uint32_t> two = {7, 30};
  ASSERT_TRUE(sums.Accumulate({.layout = &whole, .coordinates = one, .values = {8.0f}}, 1).ok());
  ASSERT_TRUE(
      sums.Accumulate({.layout = &whole, .coordinates = two, .values = {4.0f, 4.0f}}, 3).ok());
  ASSERT_TRUE(sums.Accumulate({.layout = &whole}, 4).ok());  // nothing was worth sending
  std::vector<float> mean(static_cast<size_t>(spec_.num_parameters()));
  ASSERT_TRUE(sums.CoordinateMean(absl::MakeSpan(mean)).ok());
  EXPECT_EQ(mean[7], 5.0f);
  EXPECT_EQ(mean[30], 4.0f);
  EXPECT_EQ(std::count(mean.begin(), mean.end(), 0.0f), static_cast<int64_t>(mean.size()) - 2);
  EXPECT_EQ(Mean(sums)[7], 2.5f);
  EXPECT_EQ(Mean(sums)[30], 1.5f);
}

TEST_F(SlicedAggregatorTest, SaysWhatWasTrained) {
  UpdateAggregator sums(spec_);
  EXPECT_TRUE(sums.TrainedRuns().empty());
  const SliceLayout part = Layout(SliceFactors::kB, 1, 3);
  const std::vector<float> values(static_cast<size_t>(part.size()));
  ASSERT_TRUE(sums.Accumulate({.layout = &part, .values = values}, 2).ok());
  const std::vector<SliceRun> trained = sums.TrainedRuns();
  ASSERT_EQ(trained.size(), part.runs().size());
  for (size_t i = 0; i < trained.size(); ++i) {
    EXPECT_EQ(trained[i].offset, part.runs()[i].offset);
    EXPECT_EQ(trained[i].size, part.runs()[i].size);
    EXPECT_TRUE(trained[i].is_b);
  }
}

TEST_F(SlicedAggregatorTest, RejectsCoordinatesThatAreNotOfTheSlice) {
  UpdateAggregator sums(spec_);
  const SliceLayout part = Layout(SliceFactors::kB, 1, 2);  // module a: 17-21, module b: 39-44
  const auto refusal = [&](std::vector<uint32_t> coordinates, std::vector<float> values) {
    const absl::Status status =
        sums.Accumulate({.layout = &part, .coordinates = coordinates, .values = values}, 1);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const std::vector<float> three = {1, 1, 1};
  EXPECT_THAT(refusal({16, 17, 18}, three), HasSubstr("coordinate 16 is outside its slice: B"));
  EXPECT_THAT(refusal({17, 18, 22}, three), HasSubstr("coordinate 22 is outside"));
  EXPECT_THAT(refusal({17, 38, 39}, three), HasSubstr("coordinate 38 is outside"));
  EXPECT_THAT(refusal({21, 39, 45}, three), HasSubstr("coordinate 45 is outside"));
  EXPECT_THAT(refusal({17, 39, 4000000000u}, three), HasSubstr("coordinate 4000000000 is"));
  EXPECT_THAT(refusal({17, 17, 18}, three), HasSubstr("coordinates must ascend"));
  EXPECT_THAT(refusal({18, 17, 19}, three), HasSubstr("coordinate 17 follows 18"));
  EXPECT_THAT(refusal({17, 18}, three), HasSubstr("3 values for 2 coordinates"));
  EXPECT_THAT(refusal({}, three), HasSubstr("3 values, its slice has 11"));
  EXPECT_EQ(sums.num_updates(), 0);
  EXPECT_TRUE(
      sums.Accumulate({.layout = &part, .coordinates = {17, 21, 44}, .values = three}, 1).ok());
}

TEST_F(SlicedAggregatorTest, RejectsAProductBeyondTheSketchAndAddsNothingOfIt) {
  const auto spec = LoraSpec::Create(
      "llama", 1, {{.tensor = "a", .in_features = 64, .out_features = 4, .rank = 1}});
  UpdateAggregator sums(*spec,
                        {.coordinate_weights = false,
                         .sketch = SketchOptions{.seed = 1, .probes = 4, .group_ends = {1}}});
  const SliceLayout whole = SliceLayout::Whole(*spec);
  std::vector<float> values(68, 64.0f);
  const absl::Status status = sums.Accumulate({.layout = &whole, .values = values}, 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the limit is 120"));
  EXPECT_EQ(sums.num_updates(), 0);
  std::fill(values.begin(), values.end(), 0.5f);
  EXPECT_TRUE(sums.Accumulate({.layout = &whole, .values = values}, 1).ok());
}

}  // namespace
}  // namespace fedge
