// Exact weighted averaging of updates: every value is turned into a 64-bit fixed-point integer once
// and summed as an integer, so the mean has the same bits for any order, thread count, or tree of
// partial sums.
//
// Why 64 bits are enough: a value is at most 2^6 in magnitude and is held in units of 2^-26, so one
// is below 2^32; all weights together are below 2^31; hence every sum is below 2^63.
//
// Rounding: a multiple of 2^-26 is held exactly. Whatever the update codec decodes is one (IEEE
// halves are multiples of 2^-24, quantized values are small integers times such a half), so for
// received updates the sum is the true sum. Any other fp32 value is rounded to the nearest unit and
// adds at most 2^-27 = 7.5e-9 to the error of the mean. Mean() then rounds to fp32 (half an ulp).
#ifndef FEDGE_SERVER_AGGREGATOR_H_
#define FEDGE_SERVER_AGGREGATOR_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/adapter/adapter_slice.h"
#include "common/codec/update_codec.h"

namespace fedge {

// Largest magnitude of a value; a LoRA parameter that moves further in one round has diverged.
inline constexpr float kMaxUpdateMagnitude = 64;
// Largest weight of one update and of all updates of a round: training examples.
inline constexpr uint64_t kMaxUpdateWeight = uint64_t{1} << 24;
inline constexpr uint64_t kMaxTotalWeight = (uint64_t{1} << 31) - 1;

// Accumulate / Merge / Mean. Not thread-safe. Memory: 8 bytes a parameter, whatever the number of
// nodes.
class UpdateAggregator {
 public:
  explicit UpdateAggregator(int64_t num_parameters);

  // Adds `weight` times `values`. InvalidArgument: wrong size, non-finite value, a magnitude over
  // kMaxUpdateMagnitude, weight outside 1 to kMaxUpdateWeight. ResourceExhausted: the weights of
  // the round would pass kMaxTotalWeight. Nothing is added on error.
  absl::Status Accumulate(absl::Span<const float> values, uint64_t weight);
  // The same for an update decoded with `layout`, at the cost of the values sent; what was not sent
  // counts as zero.
  absl::Status Accumulate(const DecodedUpdate& update, const SliceLayout& layout, uint64_t weight);
  // Adds another shard's sums. InvalidArgument: another size. ResourceExhausted: as above.
  absl::Status Merge(const UpdateAggregator& other);
  // sum(weight * value) / sum(weight). FailedPrecondition when nothing was accumulated,
  // InvalidArgument when `mean` has another size; `mean` is untouched then.
  absl::Status Mean(absl::Span<float> mean) const;

  uint64_t total_weight() const { return total_weight_; }
  int64_t num_updates() const { return num_updates_; }

 private:
  // Before anything is added.
  absl::Status Check(absl::Span<const float> values, uint64_t weight) const;

  std::vector<int64_t> sums_;  // of weight * round(value * 2^26)
  uint64_t total_weight_ = 0;
  int64_t num_updates_ = 0;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_AGGREGATOR_H_
