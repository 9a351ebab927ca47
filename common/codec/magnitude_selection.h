// Which coordinates of an update are sent: those with the largest magnitudes.
#ifndef FEDGE_COMMON_CODEC_MAGNITUDE_SELECTION_H_
#define FEDGE_COMMON_CODEC_MAGNITUDE_SELECTION_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/adapter/adapter_slice.h"

namespace fedge {

// Magnitudes below the smallest half are not worth a place in an update, larger ones than the
// largest half do not fit.
inline constexpr float kMinSentMagnitude = 0x1p-24f;

// Values of a slice and where they are in it.
struct SelectedValues {
  std::vector<uint32_t> positions;  // in the slice, ascending
  std::vector<float> values;
};

// The `count` largest magnitudes of the slice of `flat`; of equal magnitudes the lower position
// wins. Fewer when fewer reach kMinSentMagnitude. InvalidArgument names a value that is not finite
// or beyond +-65504. Deterministic; reads the slice once: a sample gives a threshold that keeps
// somewhat more than `count`, among those the cut is exact.
absl::Status SelectLargest(absl::Span<const float> flat, const SliceLayout& layout, uint64_t count,
                           SelectedValues* selected);

// The same share of each run: of a run of n coordinates round(density n), of all at least one.
absl::Status SelectLargestPerRun(absl::Span<const float> flat, const SliceLayout& layout,
                                 double density, SelectedValues* selected);

// InvalidArgument names the first value of the slice that an update cannot hold.
absl::Status CheckMagnitudes(absl::Span<const float> flat, const SliceLayout& layout);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_MAGNITUDE_SELECTION_H_
