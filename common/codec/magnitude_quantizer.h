// Values of a top-k update as a sign and a cell number. All magnitudes of a block are at least its
// `base`; a group of 64 divides what lies between the base and its largest magnitude into L equal
// cells of width 2 * step, and a value becomes the middle of its cell:
//
//   base           step  step
//   |--------------|--*--|--*--|--*--|  L = 2^(bits - 1) cells     value = +-(base + step (2 c +
//   1))
//
// Base and step are IEEE halves, so every decoded value is a multiple of 2^-24: the server's
// fixed-point sums hold it exactly.
#ifndef FEDGE_COMMON_CODEC_MAGNITUDE_QUANTIZER_H_
#define FEDGE_COMMON_CODEC_MAGNITUDE_QUANTIZER_H_

#include <cstdint>

#include "absl/types/span.h"

namespace fedge {

inline constexpr size_t kQuantizerGroup = 64;

// The largest half <= magnitude, for magnitudes of 2^-24 to 65504.
uint16_t HalfAtMost(double magnitude);
// The smallest half >= magnitude, for magnitudes of 0 to 65504.
uint16_t HalfAtLeast(double magnitude);

// What both sides compute for a code word: the lowest bits - 1 bits are the cell, the highest is
// the sign.
inline float DequantizeValue(float base, float step, uint32_t word, int bits) {
  const uint32_t sign = word >> (bits - 1);
  const uint32_t cell = word & ((1u << (bits - 1)) - 1);
  const float magnitude = base + step * static_cast<float>(2 * cell + 1);
  return sign != 0 ? -magnitude : magnitude;
}

// Chooses the step for one group (1 to 64 values, magnitudes in [base, 65504]) and writes a code
// word for each value. Returns the step as a half. |value - decoded| <= step (up to fp32 rounding).
uint16_t QuantizeGroup(absl::Span<const float> values, float base, int bits, uint32_t* words);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_MAGNITUDE_QUANTIZER_H_
