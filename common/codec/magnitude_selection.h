// Which coordinates of an update are sent: those with the largest magnitudes.
#ifndef FEDGE_COMMON_CODEC_MAGNITUDE_SELECTION_H_
#define FEDGE_COMMON_CODEC_MAGNITUDE_SELECTION_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace fedge {

// Magnitudes below the smallest half are not worth a place in an update.
inline constexpr float kMinSentMagnitude = 0x1p-24f;

// Indices, ascending, of the `count` largest magnitudes of `values` (finite, at most 2^32 - 1 of
// them); of equal magnitudes the lower index wins. Fewer when fewer reach kMinSentMagnitude.
// O(values), deterministic.
std::vector<uint32_t> SelectLargest(absl::Span<const float> values, uint64_t count);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_MAGNITUDE_SELECTION_H_
