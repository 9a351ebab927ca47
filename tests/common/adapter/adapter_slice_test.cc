#include "common/adapter/adapter_slice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <utility>
#include <vector>

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A [2, 3], B [2, 2]; A [1, 2], B [1, 3]: offsets 0, 6 and 10, 12; 15 values.
LoraSpec Spec() {
  auto spec = LoraSpec::Create("llama", 4,
                               {{.tensor = "a", .in_features = 3, .out_features = 2, .rank = 2},
                                {.tensor = "b", .in_features = 2, .out_features = 3, .rank = 1}});
  EXPECT_TRUE(spec.ok()) << spec.status();
  return *std::move(spec);
}

SliceLayout Layout(SliceFactors factors, int64_t first, int64_t end) {
  auto layout = SliceLayout::Create(Spec(), {factors, first, end});
  EXPECT_TRUE(layout.ok()) << layout.status();
  return layout.ok() ? *std::move(layout) : SliceLayout();
}

std::vector<float> Counting(int64_t size) {
  std::vector<float> values(static_cast<size_t>(size));
  std::iota(values.begin(), values.end(), 0.0f);
  return values;
}

std::vector<float> Gathered(const SliceLayout& layout) {
  std::vector<float> sliced(static_cast<size_t>(layout.size()));
  layout.Gather(Counting(15), absl::MakeSpan(sliced));
  return sliced;
}

TEST(SliceLayoutTest, TakesTheFactorsAndComponentsOfEachModule) {
  EXPECT_THAT(Gathered(Layout(SliceFactors::kA, 0, kMaxLoraRank)),
              ElementsAre(0, 1, 2, 3, 4, 5, 10, 11));
  EXPECT_THAT(Gathered(Layout(SliceFactors::kB, 0, kMaxLoraRank)),
              ElementsAre(6, 7, 8, 9, 12, 13, 14));
  EXPECT_THAT(Gathered(Layout(SliceFactors::kBoth, 0, 1)),
              ElementsAre(0, 1, 2, 6, 7, 10, 11, 12, 13, 14));
  // The second module has no second component.
  EXPECT_THAT(Gathered(Layout(SliceFactors::kBoth, 1, 2)), ElementsAre(3, 4, 5, 8, 9));
}

TEST(SliceLayoutTest, TheWholeIsEveryCoordinateInOrder) {
  const SliceLayout whole = SliceLayout::Whole(Spec());
  EXPECT_TRUE(whole.whole());
  EXPECT_EQ(Gathered(whole), Counting(15));
  EXPECT_FALSE(Layout(SliceFactors::kBoth, 0, 1).whole());
}

TEST(SliceLayoutTest, RunsNameTheirModuleAndRows) {
  const SliceLayout layout = Layout(SliceFactors::kBoth, 1, 2);
  ASSERT_EQ(layout.runs().size(), 2u);
  EXPECT_EQ(layout.runs()[1].offset, 8);
  EXPECT_EQ(layout.runs()[1].size, 2);
  EXPECT_EQ(layout.runs()[1].row, 2);
  EXPECT_EQ(layout.runs()[1].module, 0);
  EXPECT_TRUE(layout.runs()[1].is_b);
}

TEST(SliceLayoutTest, ScatterPutsBackAndLeavesTheRest) {
  const SliceLayout layout = Layout(SliceFactors::kB, 1, 2);
  std::vector<float> flat = Counting(15);
  layout.Scatter({-1.0f, -2.0f}, absl::MakeSpan(flat));
  std::vector<float> expected = Counting(15);
  expected[8] = -1;
  expected[9] = -2;
  EXPECT_EQ(flat, expected);
}

TEST(SliceLayoutTest, ClearOutsideLeavesTheSlice) {
  std::vector<float> flat(15, 1.0f);
  Layout(SliceFactors::kBoth, 1, 2).ClearOutside(absl::MakeSpan(flat));
  EXPECT_THAT(flat, ElementsAre(0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0));
}

TEST(SliceLayoutTest, RefusesWhatNoModuleHas) {
  for (const AdapterSlice& slice :
       std::vector<AdapterSlice>{{SliceFactors::kBoth, 2, 4},
                                 {SliceFactors::kBoth, 1, 1},
                                 {SliceFactors::kBoth, -1, 1},
                                 {SliceFactors::kBoth, 0, 1025},
                                 {static_cast<SliceFactors>(3), 0, 1}}) {
    EXPECT_EQ(SliceLayout::Create(Spec(), slice).status().code(),
              absl::StatusCode::kInvalidArgument)
        << DescribeSlice(slice);
  }
  EXPECT_THAT(SliceLayout::Create(Spec(), {SliceFactors::kA, 2, 4}).status().message(),
              HasSubstr("A, components 2-3"));
}

}  // namespace
}  // namespace fedge
