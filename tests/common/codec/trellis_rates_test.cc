#include "common/codec/trellis_rates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "common/base/rng.h"

namespace fedge {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

uint64_t StepsOf(const std::vector<TrellisGroup>& groups, const std::vector<uint8_t>& rates) {
  uint64_t steps = 0;
  for (size_t i = 0; i < groups.size(); ++i) {
    steps += TrellisSteps(groups[i].count, kTrellisPeriods[rates[i]]);
  }
  return steps;
}

TEST(TrellisRatesTest, GroupsOfOneEnergyGetOneRate) {
  const std::vector<TrellisGroup> groups(10, {960, 5});
  const struct {
    uint64_t steps;
    int period;
  } kTable[] = {{9600, 1}, {4800, 2}, {2400, 4}, {1200, 8}, {600, 16}, {150, 64}};
  for (const auto& row : kTable) {
    for (const uint8_t rate : AllocateTrellisRates(groups, row.steps)) {
      EXPECT_EQ(kTrellisPeriods[rate], row.period) << row.steps;
    }
  }
}

TEST(TrellisRatesTest, BitsGoWhereTheEnergyIs) {
  // Of a quarter bit on average the loud group takes half; a bit for each sign would be too much.
  const std::vector<TrellisGroup> groups = {{960, 1}, {960, 100}, {960, 1}, {960, 1}};
  const std::vector<uint8_t> rates = AllocateTrellisRates(groups, 960);
  EXPECT_EQ(kTrellisPeriods[rates[1]], 2);
  for (const size_t quiet : {0, 2, 3}) EXPECT_EQ(kTrellisPeriods[rates[quiet]], 6) << quiet;
  EXPECT_LE(StepsOf(groups, rates), 960u);
}

TEST(TrellisRatesTest, NothingIsLeftWaitingWhileThereIsARateForIt) {
  // The loud group could take all there is.
  const std::vector<TrellisGroup> groups = {{96'000, 1e9}, {32'000, 0}};
  const struct {
    uint64_t steps;
    int least;
  } kTable[] = {{32'000, 16}, {16'000, 32}, {8'000, 64}};
  for (const auto& row : kTable) {
    const uint8_t rate = AllocateTrellisRates(groups, row.steps)[1];
    EXPECT_GT(rate, 0) << row.steps;
    EXPECT_LE(kTrellisPeriods[rate], row.least) << row.steps;
  }
  // A quarter of 1/32 is no rate.
  EXPECT_EQ(AllocateTrellisRates({{{96'000, 1e9}, {32'000, 0}}}, 4'000)[1], 0);
}

TEST(TrellisRatesTest, StaysWithinTheStepsAndLeavesNoneThatWouldHelp) {
  Rng rng(1);
  for (int round = 0; round < 300; ++round) {
    std::vector<TrellisGroup> groups(1 + rng.Below(40));
    uint64_t count = 0;
    for (TrellisGroup& group : groups) {
      group = {1 + rng.Below(3000), std::exp(3 * rng.Normal())};
      count += group.count;
    }
    const uint64_t steps = 1 + rng.Below(count);
    const std::vector<uint8_t> rates = AllocateTrellisRates(groups, steps);
    const uint64_t used = StepsOf(groups, rates);
    ASSERT_LE(used, steps);
    for (size_t i = 0; i < groups.size(); ++i) {
      if (static_cast<size_t>(rates[i]) + 1 == kTrellisPeriods.size()) continue;
      std::vector<uint8_t> raised = rates;
      ++raised[i];
      ASSERT_GT(StepsOf(groups, raised), steps) << i;
    }
  }
}

TEST(TrellisRatesTest, OddInputIsFine) {
  EXPECT_TRUE(AllocateTrellisRates({}, 10).empty());
  EXPECT_THAT(AllocateTrellisRates(std::vector<TrellisGroup>{{100, 1}, {100, 1}}, 1),
              ElementsAre(0, 0));
  EXPECT_THAT(AllocateTrellisRates(std::vector<TrellisGroup>(3, {10, 0}), 30), Each(12));
}

}  // namespace
}  // namespace fedge
