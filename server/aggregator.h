// Exact weighted averaging of updates: every value is turned into a fixed-point integer once and
// summed in 128-bit integers, so the mean has the same bits for any order, thread count, or tree of
// partial sums.
#ifndef FEDGE_SERVER_AGGREGATOR_H_
#define FEDGE_SERVER_AGGREGATOR_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace fedge {

// Accumulate / Merge / Mean. Not thread-safe. Memory: O(parameters), not O(nodes).
class UpdateAggregator {
 public:
  explicit UpdateAggregator(int64_t num_parameters);

  // Adds `weight` (>= 1, at most 2^32) times `values`. InvalidArgument: wrong size, non-finite
  // value, a magnitude over 2^15, weight out of range; nothing is added then.
  absl::Status Accumulate(absl::Span<const float> values, uint64_t weight);
  // Adds another shard's sums.
  absl::Status Merge(const UpdateAggregator& other);
  // sum(weight * value) / sum(weight). FailedPrecondition when nothing was accumulated.
  absl::Status Mean(absl::Span<float> mean) const;

  uint64_t total_weight() const { return total_weight_; }
  int64_t num_updates() const { return num_updates_; }

 private:
  std::vector<__int128> sums_;
  uint64_t total_weight_ = 0;
  int64_t num_updates_ = 0;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_AGGREGATOR_H_
