#include "common/codec/magnitude_selection.h"

#include <algorithm>
#include <bit>
#include <functional>

namespace fedge {
namespace {

// The bits of |value|: ordered as the magnitudes are.
uint32_t MagnitudeBits(float value) { return std::bit_cast<uint32_t>(value) & 0x7FFFFFFFu; }

constexpr uint32_t kMinSentBits = std::bit_cast<uint32_t>(kMinSentMagnitude);
constexpr int kBinShift = 16;  // a bin = sign-less exponent and 7 bits of mantissa
constexpr size_t kBins = size_t{1} << (31 - kBinShift);

struct Cut {
  uint32_t threshold;  // larger magnitudes are all sent,
  uint64_t ties;       // and this many, the first ones, of exactly this magnitude
};

// Finds the cut by a histogram over coarse magnitudes and an exact selection within one bin, which
// costs two light passes instead of a selection over a copy of all values.
Cut FindCut(absl::Span<const float> values, uint64_t count) {
  std::vector<uint32_t> histogram(kBins);
  for (const float value : values) ++histogram[MagnitudeBits(value) >> kBinShift];
  uint64_t above = 0;  // values in higher bins
  size_t bin = kBins - 1;
  while (bin > 0 && above + histogram[bin] < count) above += histogram[bin--];
  std::vector<uint32_t> members;
  members.reserve(histogram[bin]);
  for (const float value : values) {
    const uint32_t bits = MagnitudeBits(value);
    if (bits >> kBinShift == bin) members.push_back(bits);
  }
  const auto nth = members.begin() + static_cast<ptrdiff_t>(count - above - 1);
  std::nth_element(members.begin(), nth, members.end(), std::greater<>());
  const uint32_t threshold = *nth;
  const auto larger = std::count_if(members.begin(), members.end(),
                                    [threshold](uint32_t bits) { return bits > threshold; });
  return {threshold, count - above - static_cast<uint64_t>(larger)};
}

}  // namespace

std::vector<uint32_t> SelectLargest(absl::Span<const float> values, uint64_t count) {
  count = std::min<uint64_t>(count, values.size());
  if (count == 0) return {};
  Cut cut = FindCut(values, count);
  if (cut.threshold < kMinSentBits) cut = {kMinSentBits - 1, 0};  // all that are large enough
  std::vector<uint32_t> selected;
  selected.reserve(count);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t bits = MagnitudeBits(values[i]);
    if (bits < cut.threshold) continue;
    if (bits == cut.threshold) {
      if (cut.ties == 0) continue;
      --cut.ties;
    }
    selected.push_back(static_cast<uint32_t>(i));
  }
  return selected;
}

}  // namespace fedge
