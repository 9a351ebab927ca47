#include "server/aggregator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "common/base/rng.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

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
  UpdateAggregator aggregator(static_cast<int64_t>(updates[0].values.size()));
  for (const size_t i : order) {
    EXPECT_TRUE(aggregator.Accumulate(updates[i].values, updates[i].weight).ok());
  }
  return MeanOf(aggregator, updates[0].values.size());
}

TEST(UpdateAggregatorTest, AveragesWithWeights) {
  UpdateAggregator aggregator(2);
  ASSERT_TRUE(aggregator.Accumulate({1.0f, -4.0f}, 3).ok());
  ASSERT_TRUE(aggregator.Accumulate({5.0f, 0.0f}, 1).ok());
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
    std::vector<UpdateAggregator> parts(shards, UpdateAggregator(97));
    for (size_t i = 0; i < updates.size(); ++i) {
      ASSERT_TRUE(parts[i % shards].Accumulate(updates[i].values, updates[i].weight).ok());
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
  UpdateAggregator aggregator(1);
  ASSERT_TRUE(aggregator.Accumulate({64.0f}, 1).ok());
  ASSERT_TRUE(aggregator.Accumulate({0x1p-24f}, 1).ok());
  ASSERT_TRUE(aggregator.Accumulate({-64.0f}, 1).ok());
  ASSERT_TRUE(aggregator.Accumulate({0.0f}, 1).ok());
  EXPECT_THAT(MeanOf(aggregator, 1), ElementsAre(0x1p-26f));
}

TEST(UpdateAggregatorTest, ReturnsAValueAllNodesAgreeOnUnchanged) {
  UpdateAggregator aggregator(3);
  const std::vector<float> values = {0x1.554p-9f, -0x1.8p-20f, 63.96875f};
  for (uint64_t weight = 1; weight < 2000; weight += 7) {
    ASSERT_TRUE(aggregator.Accumulate(values, weight).ok());
  }
  EXPECT_EQ(MeanOf(aggregator, 3), values);
}

TEST(UpdateAggregatorTest, HoldsTheExtremesOfAllLimitsAtOnce) {
  UpdateAggregator aggregator(2);
  uint64_t left = kMaxTotalWeight;
  while (left > 0) {
    const uint64_t weight = std::min(left, kMaxUpdateWeight);
    ASSERT_TRUE(aggregator.Accumulate({kMaxUpdateMagnitude, -kMaxUpdateMagnitude}, weight).ok());
    left -= weight;
  }
  EXPECT_EQ(aggregator.total_weight(), kMaxTotalWeight);
  EXPECT_THAT(MeanOf(aggregator, 2), ElementsAre(64.0f, -64.0f));
  const absl::Status full = aggregator.Accumulate({0.0f, 0.0f}, 1);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  UpdateAggregator one(2);
  ASSERT_TRUE(one.Accumulate({0.0f, 0.0f}, 1).ok());
  EXPECT_EQ(aggregator.Merge(one).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(aggregator.num_updates(), 128);
}

TEST(UpdateAggregatorTest, RejectsBadUpdatesAndAddsNothingOfThem) {
  UpdateAggregator aggregator(3);
  ASSERT_TRUE(aggregator.Accumulate({1.0f, 2.0f, 3.0f}, 5).ok());
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const float over = std::nextafter(kMaxUpdateMagnitude, infinity);
  for (const float bad : {nan, infinity, -infinity, over, -over}) {
    const absl::Status status = aggregator.Accumulate({7.0f, 7.0f, bad}, 1);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr("value 2 of the update is"));
  }
  EXPECT_EQ(aggregator.Accumulate({7.0f, 7.0f}, 1).code(), absl::StatusCode::kInvalidArgument);
  for (const uint64_t weight : {uint64_t{0}, kMaxUpdateWeight + 1, ~uint64_t{0}}) {
    EXPECT_EQ(aggregator.Accumulate({7.0f, 7.0f, 7.0f}, weight).code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(aggregator.Merge(UpdateAggregator(2)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(aggregator.total_weight(), 5u);
  EXPECT_EQ(aggregator.num_updates(), 1);
  EXPECT_THAT(MeanOf(aggregator, 3), ElementsAre(1.0f, 2.0f, 3.0f));
}

TEST(UpdateAggregatorTest, HasNoMeanOfNothing) {
  const UpdateAggregator aggregator(2);
  std::vector<float> mean = {9.0f, 9.0f};
  EXPECT_EQ(aggregator.Mean(absl::MakeSpan(mean)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(mean, ElementsAre(9.0f, 9.0f));
  std::vector<float> short_mean(1);
  EXPECT_EQ(aggregator.Mean(absl::MakeSpan(short_mean)).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fedge
