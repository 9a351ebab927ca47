// Values of an update as words of 1 to 8 bits: a sign and the cell of the magnitude. A group of
// values shares two IEEE halves, from which both sides make the magnitudes of the cells:
//
//   1 bit    scale                     the mean magnitude
//   2 bits   low, high                 the centroids of the two cells (Lloyd 1957), found exactly
//   3, 4, 8  base, step                base + step (2 c + 1): cells of equal width from the base on
//
// Halves are multiples of 2^-24, and so is every decoded value: the server's fixed-point sums hold
// it exactly. Internal to the codec.
#ifndef FEDGE_COMMON_CODEC_VALUE_QUANTIZER_H_
#define FEDGE_COMMON_CODEC_VALUE_QUANTIZER_H_

#include <array>
#include <cstdint>

#include "absl/types/span.h"

namespace fedge {

inline constexpr float kLargestHalf = 65504;
inline constexpr float kSmallestHalf = 0x1p-24f;

// The largest half <= magnitude, for magnitudes of 0 to 65504.
uint16_t HalfAtMost(double magnitude);
// The smallest half >= magnitude, for magnitudes of 0 to 65504.
uint16_t HalfAtLeast(double magnitude);

// The two numbers of a group; with one bit only the first travels.
struct ValueScale {
  uint16_t first = 0;
  uint16_t second = 0;
};

// How many halves a group has.
inline int ScaleHalves(int value_bits) { return value_bits == 1 ? 1 : value_bits == 16 ? 0 : 2; }

// Magnitudes of the cells, ascending. False when the scale is not one: negative, not finite,
// centroids out of order, a cell beyond the largest half.
class LevelTable {
 public:
  bool Assign(ValueScale scale, int value_bits);
  int size() const { return size_; }
  float magnitude(uint32_t cell) const { return magnitudes_[cell]; }
  // `word`: the cell in the low value_bits - 1 bits, the sign above.
  float Value(uint32_t word) const { return values_[word]; }

  // The word of the level nearest to `value`.
  uint32_t Nearest(float value) const;
  // The word of one of the two levels around `value`, the upper one with the probability that makes
  // the mean `value` (magnitudes beyond the last level become it). `uniform` in [0, 1).
  uint32_t Stochastic(float value, double uniform) const;

 private:
  int size_ = 0;  // cells
  int bits_ = 1;
  bool uniform_ = false;
  float base_ = 0;
  float width_ = 0;  // of a cell
  std::array<float, 128> magnitudes_;
  std::array<float, 256> values_;
};

// The scale for `values` (at least one; magnitudes up to 65504) with the least squared error that
// the width allows; `from_zero`: cells start at zero (values of all sizes), not at the smallest
// magnitude. `stochastic`: cells from zero to the largest magnitude, as unbiased rounding needs.
ValueScale FitScale(absl::Span<const float> values, int value_bits, bool from_zero,
                    bool stochastic);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_VALUE_QUANTIZER_H_
