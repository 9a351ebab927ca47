#include "common/base/large_page_allocator.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>

namespace fedge {
namespace {

template <typename T>
bool StartsAt(const LargePageVector<T>& values, uintptr_t alignment) {
  return reinterpret_cast<uintptr_t>(values.data()) % alignment == 0;
}

TEST(LargePageAllocatorTest, StartsOnACacheLineAndFromTwoMebibytesOnALargePage) {
  for (const size_t size : {1, 7, 1000}) {
    EXPECT_TRUE(StartsAt(LargePageVector<int64_t>(size), 64)) << size;
  }
  EXPECT_TRUE(StartsAt(LargePageVector<int64_t>((2 << 20) / 8), 2 << 20));
  EXPECT_TRUE(StartsAt(LargePageVector<int64_t>((5 << 20) / 8 + 1), 2 << 20));
}

TEST(LargePageAllocatorTest, AVectorGrowsAndKeepsItsValues) {
  LargePageVector<int64_t> values(1000);
  std::iota(values.begin(), values.end(), 0);
  values.resize(1'000'000, -1);
  for (int64_t i = 0; i < 1000; ++i) ASSERT_EQ(values[static_cast<size_t>(i)], i);
  EXPECT_EQ(values.back(), -1);
  const LargePageVector<int64_t> copy = values;
  EXPECT_EQ(copy, values);
}

}  // namespace
}  // namespace fedge
