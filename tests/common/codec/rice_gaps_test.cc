#include "common/codec/rice_gaps.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "common/base/rng.h"

namespace fedge {
namespace {

// Gaps of positions chosen independently with probability `density`.
std::vector<uint32_t> RandomGaps(double density, uint32_t limit, uint64_t seed) {
  Rng rng(seed);
  std::vector<uint32_t> gaps;
  uint32_t gap = 0;
  for (uint32_t i = 0; i < limit; ++i, ++gap) {
    if (rng.Uniform() >= density) continue;
    gaps.push_back(gap);
    gap = static_cast<uint32_t>(-1);
  }
  return gaps;
}

TEST(RiceGapsTest, ChoosesTheSmallestParameterOfAll) {
  Rng rng(1);
  for (int round = 0; round < 500; ++round) {
    std::vector<uint32_t> gaps(1 + rng.Below(60));
    const int shape = static_cast<int>(rng.Below(17));
    for (uint32_t& gap : gaps) {
      gap = static_cast<uint32_t>(rng.Below(uint64_t{1} << (1 + rng.Below(1 + shape))));
    }
    int brute_force = 0;
    for (int k = 1; k <= kMaxRiceParameter; ++k) {
      if (RiceBits(gaps, k) < RiceBits(gaps, brute_force)) brute_force = k;
    }
    ASSERT_EQ(BestRiceParameter(gaps), brute_force) << round;
  }
  EXPECT_EQ(BestRiceParameter({}), 0);
  EXPECT_EQ(BestRiceParameter({131071u}), 16);  // 1 + 1 + 16 bits; 17: 0 + 1 + 17, not fewer
}

TEST(RiceGapsTest, RoundTripsAndWritesWhatRiceBitsSays) {
  for (const double density : {0.0001, 0.01, 0.1, 0.5, 1.0}) {
    const std::vector<uint32_t> gaps = RandomGaps(density, 131072, 2);
    for (int k = BestRiceParameter(gaps); k <= kMaxRiceParameter; k += 5) {
      std::string bytes = "before";
      AppendRiceGaps(gaps, k, &bytes);
      bytes.erase(0, 6);
      EXPECT_EQ(bytes.size(), (RiceBits(gaps, k) + 7) / 8);
      std::vector<uint32_t> positions;
      const auto consumed = ReadRicePositions(bytes + "after", static_cast<uint32_t>(gaps.size()),
                                              k, 131072, &positions);
      ASSERT_TRUE(consumed.ok()) << consumed.status();
      EXPECT_EQ(*consumed, bytes.size());
      ASSERT_EQ(positions.size(), gaps.size());
      uint32_t next = 0;
      for (size_t i = 0; i < gaps.size(); ++i) {
        ASSERT_EQ(positions[i], next + gaps[i]);
        next = positions[i] + 1;
      }
    }
  }
}

TEST(RiceGapsTest, StaysNearTheEntropyOfIndependentPositions) {
  for (const double density : {0.001, 0.01, 0.05, 0.1}) {
    double bits = 0;
    double count = 0;
    for (uint64_t seed = 0; seed < 8; ++seed) {
      const std::vector<uint32_t> gaps = RandomGaps(density, 131072, seed);
      bits += static_cast<double>(RiceBits(gaps, BestRiceParameter(gaps)));
      count += static_cast<double>(gaps.size());
    }
    const double d = count / (8 * 131072);
    const double entropy = (-d * std::log2(d) - (1 - d) * std::log2(1 - d)) / d;
    EXPECT_LT(bits / count, entropy * 1.025) << density;
    EXPECT_GT(bits / count, entropy * 0.99) << density;  // better than entropy cannot be
  }
}

TEST(RiceGapsTest, RejectsWhatLeavesTheLimit) {
  std::string bytes;
  AppendRiceGaps({3, 4}, 1, &bytes);  // positions 3 and 8
  std::vector<uint32_t> positions;
  EXPECT_TRUE(ReadRicePositions(bytes, 2, 1, 9, &positions).ok());
  EXPECT_EQ(ReadRicePositions(bytes, 2, 1, 8, &positions).status().code(),
            absl::StatusCode::kInvalidArgument);
  // A count far beyond the bytes is refused before anything is allocated for it.
  std::vector<uint32_t> untouched;
  EXPECT_EQ(ReadRicePositions(bytes, 131072, 1, 131072, &untouched).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(untouched.capacity(), 0u);
}

TEST(RiceGapsTest, RejectsPaddingThatIsNotZero) {
  std::string bytes;
  AppendRiceGaps({0}, 0, &bytes);
  std::vector<uint32_t> positions;
  EXPECT_TRUE(ReadRicePositions(bytes, 1, 0, 8, &positions).ok());
  for (int bit = 1; bit < 8; ++bit) {
    const std::string dirty(1, static_cast<char>(bytes[0] | (1 << bit)));
    EXPECT_EQ(ReadRicePositions(dirty, 1, 0, 8, &positions).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace fedge
