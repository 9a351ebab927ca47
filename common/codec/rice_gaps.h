// Golomb-Rice coding of the gaps between the coordinates sent (Golomb 1966; Rice, Plaunt 1971): gap
// g with parameter k is g >> k ones, a zero, and the low k bits of g. Within 1.5 % of the entropy
// when positions are independent.
#ifndef FEDGE_COMMON_CODEC_RICE_GAPS_H_
#define FEDGE_COMMON_CODEC_RICE_GAPS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace fedge {

inline constexpr int kMaxRiceParameter = 17;

// Bits of `gaps` coded with `parameter`, before padding.
uint64_t RiceBits(absl::Span<const uint32_t> gaps, int parameter);

// The parameter in [0, kMaxRiceParameter] with the fewest bits, the smallest one of equals.
int BestRiceParameter(absl::Span<const uint32_t> gaps);

// Appends the coded gaps, padded with zero bits to a whole byte.
void AppendRiceGaps(absl::Span<const uint32_t> gaps, int parameter, std::string* out);

// Reads `count` positions below `limit`, strictly increasing, from the start of `bytes` into
// `positions` (replaced). Returns the bytes consumed. InvalidArgument: the bytes end early, a gap
// leaves the limit, padding is not zero. Allocates at most 4 bytes for each bit of `bytes`.
absl::StatusOr<size_t> ReadRicePositions(absl::string_view bytes, uint32_t count, int parameter,
                                         uint32_t limit, std::vector<uint32_t>* positions);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_RICE_GAPS_H_
