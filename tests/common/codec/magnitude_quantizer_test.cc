#include "common/codec/magnitude_quantizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/base/rng.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

TEST(HalfBoundsTest, EncloseEveryMagnitudeTightly) {
  Rng rng(1);
  for (int i = 0; i < 20000; ++i) {
    const double magnitude = std::ldexp(1 + rng.Uniform(), static_cast<int>(rng.Below(39)) - 24);
    const uint16_t below = HalfAtMost(magnitude);
    ASSERT_LE(HalfToFloat(below), magnitude);
    ASSERT_GT(HalfToFloat(static_cast<uint16_t>(below + 1)), magnitude);
    const uint16_t above = HalfAtLeast(magnitude);
    ASSERT_GE(HalfToFloat(above), magnitude);
    ASSERT_LT(HalfToFloat(static_cast<uint16_t>(above - 1)), magnitude);
  }
  EXPECT_EQ(HalfAtLeast(0), 0);
  EXPECT_EQ(HalfToFloat(HalfAtMost(65504)), 65504.0f);
  EXPECT_EQ(HalfToFloat(HalfAtLeast(0x1p-60)), 0x1p-24f);
}

TEST(QuantizeGroupTest, ErrsByAtMostOneStepWithSignKept) {
  Rng rng(2);
  for (const int bits : {2, 4, 8}) {
    double worst = 0;
    for (int round = 0; round < 300; ++round) {
      std::vector<float> values(1 + rng.Below(kQuantizerGroup));
      const double scale = std::ldexp(1.0, static_cast<int>(rng.Below(30)) - 20);
      float smallest = INFINITY;
      for (float& value : values) {
        value = static_cast<float>(scale * (0.25 + rng.Uniform()));
        smallest = std::min(smallest, value);
        if (rng.Below(2) == 0) value = -value;
      }
      const float base = HalfToFloat(HalfAtMost(smallest));
      std::vector<uint32_t> words(values.size());
      const float step = HalfToFloat(QuantizeGroup(values, base, bits, words.data()));
      for (size_t i = 0; i < values.size(); ++i) {
        ASSERT_LT(words[i], 1u << bits);
        const float decoded = DequantizeValue(base, step, words[i], bits);
        ASSERT_EQ(std::signbit(decoded), std::signbit(values[i]));
        const double error = std::abs(static_cast<double>(decoded) - values[i]);
        ASSERT_LE(error, step + std::abs(values[i]) * 0x1p-23);
        worst = std::max(worst, error / step);
        // The server's unit: every decoded value is a whole number of 2^-24.
        ASSERT_EQ(std::ldexp(decoded, 24), std::round(std::ldexp(decoded, 24)));
      }
    }
    EXPECT_GT(worst, 0.97) << bits;  // the bound is not slack
  }
}

TEST(QuantizeGroupTest, HoldsEqualMagnitudesWithoutError) {
  const std::vector<float> values = {0.375f, -0.375f, 0.375f};
  std::vector<uint32_t> words(values.size());
  EXPECT_EQ(QuantizeGroup(values, 0.375f, 4, words.data()), 0);
  EXPECT_EQ(DequantizeValue(0.375f, 0, words[0], 4), 0.375f);
  EXPECT_EQ(DequantizeValue(0.375f, 0, words[1], 4), -0.375f);
}

TEST(QuantizeGroupTest, SurvivesTheLargestHalf) {
  const std::vector<float> values = {65504.0f, -65504.0f, 0x1p-24f};
  for (const int bits : {2, 4, 8}) {
    std::vector<uint32_t> words(values.size());
    const float step = HalfToFloat(QuantizeGroup(values, 0x1p-24f, bits, words.data()));
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_LE(std::abs(DequantizeValue(0x1p-24f, step, words[i], bits) - values[i]),
                step * 1.000001f);
    }
  }
}

}  // namespace
}  // namespace fedge
