#include "common/codec/magnitude_selection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "tests/testing/update_samples.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// The definition: sort by magnitude, then index.
std::vector<uint32_t> SortedOracle(const std::vector<float>& values, size_t count) {
  std::vector<uint32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return std::abs(values[a]) > std::abs(values[b]);
  });
  order.resize(std::min(count, order.size()));
  std::erase_if(order, [&](uint32_t i) { return std::abs(values[i]) < kMinSentMagnitude; });
  std::sort(order.begin(), order.end());
  return order;
}

TEST(SelectLargestTest, AgreesWithSorting) {
  const std::vector<float> values = testing::RandomDelta(5000, 1);
  for (const size_t count : {1u, 2u, 50u, 2500u, 4999u, 5000u, 9000u}) {
    EXPECT_EQ(SelectLargest(values, count), SortedOracle(values, count)) << count;
  }
}

TEST(SelectLargestTest, AgreesWithSortingWhenManyAreEqual) {
  Rng rng(2);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> values(1 + rng.Below(300));
    for (float& value : values) {
      value = static_cast<float>(static_cast<int>(rng.Below(7)) - 3) * 0.25f;
      if (rng.Below(5) == 0) value *= 0x1p-23f;
    }
    const size_t count = static_cast<size_t>(rng.Below(values.size() + 2));
    ASSERT_EQ(SelectLargest(values, count), SortedOracle(values, count)) << round;
  }
}

TEST(SelectLargestTest, BreaksTiesByIndex) {
  EXPECT_THAT(SelectLargest({1.0f, -2.0f, 2.0f, -1.0f, 1.0f}, 3), ElementsAre(0, 1, 2));
}

TEST(SelectLargestTest, LeavesOutWhatAHalfCannotHold) {
  EXPECT_THAT(SelectLargest({0.0f, 0x1p-24f, -0x1.fp-25f, -0.0f, -0x1p-24f}, 5), ElementsAre(1, 4));
  EXPECT_THAT(SelectLargest({0.0f, -0.0f}, 2), IsEmpty());
  EXPECT_THAT(SelectLargest({1.0f}, 0), IsEmpty());
  EXPECT_THAT(SelectLargest({}, 3), IsEmpty());
}

}  // namespace
}  // namespace fedge
