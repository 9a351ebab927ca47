#include "common/codec/position_coder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "common/base/rng.h"

namespace fedge {
namespace {

// Each coordinate with probability `density`.
std::vector<uint32_t> RandomPositions(uint64_t size, double density, uint64_t seed) {
  Rng rng(seed);
  std::vector<uint32_t> positions;
  for (uint64_t i = 0; i < size; ++i) {
    if (rng.Uniform() < density) positions.push_back(static_cast<uint32_t>(i));
  }
  return positions;
}

double EntropyBits(double size, double count) {
  const double d = count / size;
  return size * (-d * std::log2(d) - (1 - d) * std::log2(1 - d));
}

struct Coded {
  std::string coded;
  std::string raw;
  double bits() const { return 8.0 * static_cast<double>(coded.size() + raw.size()); }
};

Coded Adaptive(const std::vector<uint32_t>& positions, uint64_t size) {
  Coded result;
  RangeEncoder coder;
  BitWriter raw(&result.raw);
  GapModel model(size, positions.size());
  uint32_t next = 0;
  for (const uint32_t position : positions) {
    model.Encode(position - next, &coder, &raw);
    next = position + 1;
  }
  raw.AlignToByte();
  result.coded = std::move(coder).Finish();
  return result;
}

void ExpectRoundTrip(const std::vector<uint32_t>& positions, uint64_t size) {
  const Coded coded = Adaptive(positions, size);
  RangeDecoder coder(coded.coded);
  BitReader raw(coded.raw);
  std::vector<uint32_t> read;
  ASSERT_TRUE(ReadAdaptivePositions(size, positions.size(), &coder, &raw, &read).ok());
  ASSERT_EQ(read, positions);
  EXPECT_TRUE(coder.AtEnd());
  int parameter = 0;
  const uint64_t bits = RicePositionBits(positions, &parameter);
  std::string rice;
  BitWriter writer(&rice);
  WriteRicePositions(positions, parameter, &writer);
  writer.AlignToByte();
  EXPECT_EQ(rice.size(), (bits + 7) / 8);
  EXPECT_LE(bits, RicePositionBound(size, positions.size()));
  BitReader reader(rice);
  read.clear();
  ASSERT_TRUE(ReadRicePositions(size, positions.size(), &reader, &read).ok());
  ASSERT_EQ(read, positions);
}

TEST(PositionCoderTest, ReadsBackWhatItWrote) {
  for (const uint64_t size : {2u, 64u, 5000u, 300000u}) {
    for (const double density : {0.0005, 0.01, 0.3, 0.97}) {
      const auto positions = RandomPositions(size, density, size);
      if (!positions.empty()) ExpectRoundTrip(positions, size);
    }
  }
  const auto last = static_cast<uint32_t>((uint64_t{1} << 31) - 1);
  ExpectRoundTrip({last}, uint64_t{1} << 31);
  ExpectRoundTrip({0, last}, uint64_t{1} << 31);
  std::vector<uint32_t> jumps;  // dense runs and leaps: the escape is needed
  for (uint32_t i = 0; i < 40; ++i) {
    for (uint32_t j = 0; j < 50; ++j) jumps.push_back(i * 40'000'000 + j);
  }
  ExpectRoundTrip(jumps, uint64_t{1} << 31);
}

TEST(PositionCoderTest, IsWithinOnePercentOfTheEntropy) {
  for (const double density : {0.001, 0.01, 0.1, 0.5}) {
    const uint64_t size = 2'200'000;
    const auto positions = RandomPositions(size, density, 7);
    const double floor =
        EntropyBits(static_cast<double>(size), static_cast<double>(positions.size()));
    const double ratio = Adaptive(positions, size).bits() / floor;
    EXPECT_GT(ratio, 0.99) << density;
    EXPECT_LT(ratio, 1.01) << density;
  }
}

TEST(PositionCoderTest, FollowsADensityThatChanges) {
  // Rows of 4 % and of 0.25 %: what one Rice parameter cannot follow.
  Rng rng(3);
  std::vector<uint32_t> positions;
  double floor = 0;
  for (uint32_t row = 0; row < 400; ++row) {
    const double density = row % 2 == 0 ? 0.04 : 0.0025;
    for (uint32_t i = 0; i < 4096; ++i) {
      if (rng.Uniform() < density) positions.push_back(row * 4096 + i);
    }
    floor += EntropyBits(4096, 4096 * density);
  }
  const uint64_t size = 400 * 4096;
  int parameter = 0;
  const auto rice = static_cast<double>(RicePositionBits(positions, &parameter));
  const double adaptive = Adaptive(positions, size).bits();
  EXPECT_LT(adaptive / floor, 1.06);
  EXPECT_GT(adaptive / floor, 1.0);
  EXPECT_GT(rice / floor, 1.10);
}

TEST(PositionCoderTest, RefusesPositionsBeyondTheSlice) {
  const auto positions = RandomPositions(1000, 0.2, 5);
  const Coded coded = Adaptive(positions, 1000);
  for (const uint64_t size : {uint64_t{positions.back()}, uint64_t{400}}) {
    RangeDecoder coder(coded.coded);
    BitReader raw(coded.raw);
    std::vector<uint32_t> read;
    // The model of another size reads other gaps: refused or not, none leaves the slice.
    const absl::Status status = ReadAdaptivePositions(size, positions.size(), &coder, &raw, &read);
    EXPECT_TRUE(status.ok() || absl::IsInvalidArgument(status));
    for (const uint32_t position : read) EXPECT_LT(position, size);
  }
  std::string rice;
  BitWriter writer(&rice);
  WriteRicePositions(positions, 2, &writer);
  writer.AlignToByte();
  for (size_t bytes = 0; bytes + 1 < rice.size(); ++bytes) {
    BitReader reader(absl::string_view(rice).substr(0, bytes));
    std::vector<uint32_t> read;
    EXPECT_EQ(ReadRicePositions(1000, positions.size(), &reader, &read).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(PositionCoderTest, SeededPositionsTakeOneOfEachPart) {
  std::vector<int> hits(1000);
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    const auto positions = SeededPositions(seed, 1000, 70);
    ASSERT_EQ(positions.size(), 70u);
    for (size_t i = 0; i < 70; ++i) {
      ASSERT_GE(positions[i], i * 1000 / 70);
      ASSERT_LT(positions[i], (i + 1) * 1000 / 70);
      ++hits[positions[i]];
    }
  }
  for (const int count : hits) {  // 210 on average
    EXPECT_GT(count, 130);
    EXPECT_LT(count, 300);
  }
  EXPECT_EQ(SeededPositions(1, 1000, 70), SeededPositions(1, 1000, 70));
  EXPECT_NE(SeededPositions(1, 1000, 70), SeededPositions(2, 1000, 70));
}

}  // namespace
}  // namespace fedge
