#include "common/codec/magnitude_quantizer.h"

#include <algorithm>
#include <cmath>

#include "common/tensor/quantize.h"

namespace fedge {

// Non-negative halves are ordered as their bits are, so a neighbour is one bit pattern away.
uint16_t HalfAtMost(double magnitude) {
  uint16_t half = FloatToHalf(static_cast<float>(magnitude));
  while (static_cast<double>(HalfToFloat(half)) > magnitude) --half;
  return half;
}

uint16_t HalfAtLeast(double magnitude) {
  uint16_t half = FloatToHalf(static_cast<float>(magnitude));
  while (static_cast<double>(HalfToFloat(half)) < magnitude) ++half;
  return half;
}

uint16_t QuantizeGroup(absl::Span<const float> values, float base, int bits, uint32_t* words) {
  const uint32_t cells = 1u << (bits - 1);
  float largest = base;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  const double range = static_cast<double>(largest) - static_cast<double>(base);
  const uint16_t step = HalfAtLeast(range / (2.0 * cells));
  const double width = 2.0 * static_cast<double>(HalfToFloat(step));
  for (size_t i = 0; i < values.size(); ++i) {
    const double above = static_cast<double>(std::abs(values[i])) - static_cast<double>(base);
    const uint32_t cell = width > 0 ? static_cast<uint32_t>(above / width) : 0;
    const uint32_t sign = std::signbit(values[i]) ? 1 : 0;
    words[i] = std::min(cell, cells - 1) | (sign << (bits - 1));
  }
  return step;
}

}  // namespace fedge
