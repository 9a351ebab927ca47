// How a trellis shares its bits among groups of values: reverse water-filling (Cover and Thomas,
// Elements of Information Theory, section 10.3.3) over the rates there are. Where the energy is, a
// bit carries most of it; a group of little gets few bits, and its values wait.
//
// Internal to the codec.
#ifndef FEDGE_COMMON_CODEC_TRELLIS_RATES_H_
#define FEDGE_COMMON_CODEC_TRELLIS_RATES_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace fedge {

// Signs that share a bit, by rate; 0: nothing of the group is sent.
inline constexpr std::array<int, 13> kTrellisPeriods = {0, 64, 48, 32, 24, 16, 12,
                                                        8, 6,  4,  3,  2,  1};

// Bits of the path through `count` values.
inline uint64_t TrellisSteps(uint64_t count, int period) {
  const auto signs = static_cast<uint64_t>(period);
  return period == 0 ? 0 : (count + signs - 1) / signs;
}

struct TrellisGroup {
  uint64_t count = 0;
  double energy = 0;  // sum of squares
};

// The rate of each group, so that all paths together are at most `steps` long and carry as much
// energy as they can; no group gets less than a quarter of the mean rate, if that is a rate, lest
// its values wait for ever. The same on every machine.
std::vector<uint8_t> AllocateTrellisRates(absl::Span<const TrellisGroup> groups, uint64_t steps);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_TRELLIS_RATES_H_
