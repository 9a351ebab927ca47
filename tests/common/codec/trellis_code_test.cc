#include "common/codec/trellis_code.h"

#include <hwy/targets.h>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common/base/rng.h"
#include "common/codec/trellis_rates.h"
#include "gtest/gtest.h"

namespace fedge {
namespace {

std::vector<float> Gaussian(size_t size, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(size);
  for (float& value : values) value = static_cast<float>(rng.Normal());
  return values;
}

using Parts = std::vector<TrellisPart>;

std::vector<int> SignsAlong(const TrellisCode& code, const std::vector<uint8_t>& path,
                            const Parts& parts) {
  TrellisSigns signs(code);
  std::vector<int> found;
  size_t step = 0;
  for (const TrellisPart& part : parts) {
    signs.Begin(part.period);
    for (size_t i = 0; i < part.values.size(); ++i) {
      if (signs.needs_bit()) signs.Feed(path[step++]);
      found.push_back(signs.Next() ? 1 : -1);
    }
  }
  EXPECT_EQ(step, path.size());
  return found;
}

std::vector<int> BestSigns(const TrellisCode& code, const Parts& parts) {
  return SignsAlong(code, FindTrellisPath(code, parts), parts);
}

double Product(const std::vector<float>& values, const std::vector<int>& signs) {
  double product = 0;
  for (size_t i = 0; i < values.size(); ++i) product += static_cast<double>(values[i]) * signs[i];
  return product;
}

// The share of the energy that the best multiple of the signs takes away.
double Captured(const std::vector<float>& values, const std::vector<int>& signs) {
  double energy = 0;
  for (const float value : values) energy += static_cast<double>(value) * value;
  const double product = Product(values, signs);
  return product * product / static_cast<double>(values.size()) / energy;
}

// Every path of a few steps, by the definition alone.
double BestProduct(const TrellisCode& code, const std::vector<float>& values, const Parts& parts) {
  size_t steps = 0;
  for (const TrellisPart& part : parts) steps += TrellisSteps(part.values.size(), part.period);
  double best = -1e30;
  for (uint32_t bits = 0; bits < (1u << steps); ++bits) {
    std::vector<uint8_t> path(steps);
    for (size_t i = 0; i < steps; ++i) path[i] = (bits >> i) & 1;
    best = std::max(best, Product(values, SignsAlong(code, path, parts)));
  }
  return best;
}

TEST(TrellisCodeTest, FindsTheBestOfAllPaths) {
  const TrellisCode code(5);
  for (const int period : {1, 2, 3, 8, 13, 64}) {
    const std::vector<float> values = Gaussian(static_cast<size_t>(10 * period - period / 2), 3);
    const Parts whole = {{values, period}};
    EXPECT_NEAR(Product(values, BestSigns(code, whole)), BestProduct(code, values, whole), 1e-3)
        << period;
  }
}

// The path goes on from part to part; a part's last pattern ends with it.
TEST(TrellisCodeTest, FindsTheBestPathThroughPartsOfOtherPeriods) {
  const TrellisCode code(6);
  const std::vector<float> values = Gaussian(60, 4);
  const absl::Span<const float> all = values;
  const Parts parts = {{all.subspan(0, 3), 1},
                       {all.subspan(3, 21), 8},
                       {all.subspan(24, 0), 2},
                       {all.subspan(24, 34), 16},
                       {all.subspan(58, 2), 3}};
  EXPECT_EQ(FindTrellisPath(code, parts).size(), 3u + 3 + 3 + 1);
  EXPECT_NEAR(Product(values, BestSigns(code, parts)), BestProduct(code, values, parts), 1e-3);
}

TEST(TrellisCodeTest, CarriesWhatTheTableSays) {
  const std::vector<float> values = Gaussian(60'000, 1);
  const struct {
    int period;
    double captured;
  } kTable[] = {{1, 0.63}, {2, 0.45}, {4, 0.255}, {8, 0.133}, {16, 0.068}};
  const TrellisCode code(9);
  for (const auto& row : kTable) {
    const double captured = Captured(values, BestSigns(code, {{values, row.period}}));
    EXPECT_GT(captured, row.captured) << row.period;
    EXPECT_LT(captured, 1 - std::exp2(-2.0 / row.period)) << row.period;
  }
}

TEST(TrellisCodeTest, ABitForEachSignSendsEverySign) {
  const std::vector<float> values = Gaussian(9000, 2);  // more than two windows
  const std::vector<int> signs = BestSigns(TrellisCode(1), {{values, 1}});
  for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(signs[i] > 0, values[i] > 0) << i;
}

// All targets of the machine: bytes do not depend on who sends them.
TEST(TrellisCodeTest, IsTheSameOnEveryTarget) {
  for (const int period : {1, 5, 8, 16, 33, 64}) {
    const TrellisCode code(4);
    std::vector<float> values = Gaussian(5000 * static_cast<size_t>(period) - 1, 7);
    for (size_t i = 0; i < values.size(); i += 3) values[i] = 0;  // equal paths
    const Parts whole = {{values, period}};
    const std::vector<uint8_t> expected = FindTrellisPath(code, whole);
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      hwy::SetSupportedTargetsForTest(target);
      EXPECT_EQ(FindTrellisPath(code, whole), expected) << period << hwy::TargetName(target);
    }
    hwy::SetSupportedTargetsForTest(0);
  }
}

TEST(TrellisCodeTest, PathsOfZerosAndNothingAreFine) {
  const TrellisCode code(1);
  const std::vector<float> zeros(9);
  EXPECT_TRUE(FindTrellisPath(code, {}).empty());
  EXPECT_TRUE(FindTrellisPath(code, {{}}).empty());
  EXPECT_EQ(FindTrellisPath(code, {{zeros, 4}}).size(), 3u);
}

TEST(TrellisCodeTest, TheSeedDrawsThePatterns) {
  const TrellisCode code(1), same(1), other(2);
  EXPECT_EQ(code.pattern(7), same.pattern(7));
  EXPECT_NE(code.pattern(7), other.pattern(7));
  EXPECT_EQ(code.pattern(6), ~code.pattern(7));
}

}  // namespace
}  // namespace fedge
