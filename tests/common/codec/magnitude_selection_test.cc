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

SelectedValues Select(const std::vector<float>& values, uint64_t count) {
  SelectedValues selected;
  const auto status = SelectLargest(values, testing::FlatLayout(values.size()), count, &selected);
  EXPECT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < selected.values.size(); ++i) {
    EXPECT_EQ(selected.values[i], values[selected.positions[i]]);
  }
  return selected;
}

TEST(SelectLargestTest, AgreesWithSorting) {
  const std::vector<float> values = testing::RandomDelta(5000, 1);
  for (const size_t count : {1u, 2u, 50u, 2500u, 4999u, 5000u, 9000u}) {
    EXPECT_EQ(Select(values, count).positions, SortedOracle(values, count)) << count;
  }
}

TEST(SelectLargestTest, AgreesWithSortingWhenManyAreEqual) {
  Rng rng(2);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> values(2 + rng.Below(300));
    for (float& value : values) {
      value = static_cast<float>(static_cast<int>(rng.Below(7)) - 3) * 0.25f;
      if (rng.Below(5) == 0) value *= 0x1p-23f;
    }
    const size_t count = static_cast<size_t>(rng.Below(values.size() + 2));
    ASSERT_EQ(Select(values, count).positions, SortedOracle(values, count)) << round;
  }
}

// Larger than what is sorted whole: a sample of the values chooses what to look at.
TEST(SelectLargestTest, AgreesWithSortingWhenItSamples) {
  const size_t size = 60000;
  std::vector<std::vector<float>> all = {testing::RandomDelta(size, 3)};
  all.push_back(std::vector<float>(size, 0.5f));  // all equal
  all.push_back(std::vector<float>(size));
  for (size_t i = 0; i < 100; ++i) all[2][i * 7] = 1.0f;  // hardly any
  all.push_back(std::vector<float>(size, 1e-3f));
  for (size_t i = 0; i < size; i += 9) all[3][i] = 1.0f;  // what a sample of every n-th sees only
  all.push_back(testing::RandomDelta(size, 4));
  std::fill(all[4].begin(), all[4].begin() + 50000, 0.0f);
  for (const std::vector<float>& values : all) {
    for (const size_t count : {1u, 60u, 600u, 6000u, 59999u}) {
      ASSERT_EQ(Select(values, count).positions, SortedOracle(values, count)) << count;
    }
  }
}

TEST(SelectLargestTest, TakesTheSameShareOfEachRun) {
  std::vector<float> values = testing::RandomDelta(3000, 5);
  const LoraModule a = {"blk.0.attn_q.weight", 1000, 200, 1, 0};
  const LoraModule b = {"blk.1.attn_q.weight", 1700, 100, 1, 0};
  const SliceLayout layout = SliceLayout::Whole(LoraSpec::Create("llama", 1, {a, b}).value());
  for (size_t i = 1200; i < values.size(); ++i) values[i] *= 100;  // the second module's
  SelectedValues selected;
  ASSERT_TRUE(SelectLargestPerRun(values, layout, 0.1, &selected).ok());
  std::vector<uint32_t> expected;
  for (const SliceRun& run : layout.runs()) {
    const auto begin = values.begin() + run.offset;
    for (const uint32_t i : SortedOracle(std::vector<float>(begin, begin + run.size),
                                         static_cast<size_t>(run.size) / 10)) {
      expected.push_back(static_cast<uint32_t>(run.offset) + i);
    }
  }
  EXPECT_EQ(selected.positions, expected);
  // One threshold for all takes nothing of the first module.
  EXPECT_GE(Select(values, 300).positions[0], 1200u);
  ASSERT_TRUE(SelectLargestPerRun(values, layout, 1e-6, &selected).ok());
  EXPECT_EQ(selected.positions.size(), 1u);
}

TEST(SelectLargestTest, NamesAValueThatDoesNotFit) {
  for (const size_t size : {50u, 60000u}) {
    for (const float bad : {NAN, INFINITY, -65505.0f}) {
      std::vector<float> values = testing::RandomDelta(size, 6);
      values[37] = bad;
      SelectedValues selected;
      const SliceLayout layout = testing::FlatLayout(size);
      for (const absl::Status& status :
           {SelectLargest(values, layout, 5, &selected), CheckMagnitudes(values, layout),
            SelectLargestPerRun(values, layout, 0.1, &selected)}) {
        EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
        EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("value 37 of the update"));
      }
      EXPECT_TRUE(selected.values.empty());
    }
  }
}

TEST(SelectLargestTest, BreaksTiesByIndex) {
  EXPECT_THAT(Select({1.0f, -2.0f, 2.0f, -1.0f, 1.0f}, 3).positions, ElementsAre(0, 1, 2));
}

TEST(SelectLargestTest, LeavesOutWhatAHalfCannotHold) {
  EXPECT_THAT(Select({0.0f, 0x1p-24f, -0x1.fp-25f, -0.0f, -0x1p-24f}, 5).positions,
              ElementsAre(1, 4));
  EXPECT_THAT(Select({0.0f, -0.0f}, 2).positions, IsEmpty());
  EXPECT_THAT(Select({1.0f, 2.0f}, 0).positions, IsEmpty());
}

}  // namespace
}  // namespace fedge
