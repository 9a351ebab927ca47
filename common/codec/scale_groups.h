// Which values of an update share a scale: those of consecutive runs of the slice, until there are
// at least 2^g of them. Both sides see the same counts, so that only g travels. Internal to the
// codec.
#ifndef FEDGE_COMMON_CODEC_SCALE_GROUPS_H_
#define FEDGE_COMMON_CODEC_SCALE_GROUPS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/adapter/adapter_slice.h"

namespace fedge {

inline constexpr int kOneGroup = 31;
inline constexpr int kSmallestGroup = 9;  // what the encoder chooses at the least; bounds the size

// How many of the values each run of the slice has. `positions` ascending within the slice; empty:
// all `count` coordinates are sent.
std::vector<uint32_t> CountByRun(const SliceLayout& layout, absl::Span<const uint32_t> positions,
                                 uint64_t count);

// The index after each group's last value; the last is the number of values, none for no values.
std::vector<uint32_t> GroupEnds(absl::Span<const uint32_t> by_run, int group_log2);

// The grouping that pays: a finer one is taken when what it takes off the squared error is more
// than the bits of its scales would take off as precision (half a bit a value for a factor of 2).
int ChooseGrouping(absl::Span<const uint32_t> by_run, absl::Span<const float> values,
                   int value_bits);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_SCALE_GROUPS_H_
