// Exact weighted sums of updates: every value is turned into a 64-bit fixed-point integer once and
// summed as an integer, so the means have the same bits for any order, thread count, or tree of
// partial sums. What the next version is made of them: server/aggregation.h.
//
// Why 64 bits are enough: a value is at most 2^6 in magnitude and is held in units of 2^-26, so one
// is below 2^32; all weights together are below 2^31; hence every sum is below 2^63.
//
// Rounding: a multiple of 2^-26 is held exactly. Whatever the update codec decodes is one (IEEE
// halves are multiples of 2^-24, quantized values are small integers times such a half), so for
// received updates the sum is the true sum. Any other fp32 value is rounded to the nearest unit and
// adds at most 2^-27 = 7.5e-9 to the error of the mean. Means are then rounded to fp32 (half an
// ulp).
#ifndef FEDGE_SERVER_AGGREGATOR_H_
#define FEDGE_SERVER_AGGREGATOR_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/adapter/adapter_slice.h"
#include "common/base/large_page_allocator.h"
#include "server/aggregation_runs.h"
#include "server/aggregation_sketch.h"

namespace fedge {

// Largest weight of one update and of all updates of a round: training examples.
inline constexpr uint64_t kMaxUpdateWeight = uint64_t{1} << 24;
inline constexpr uint64_t kMaxTotalWeight = (uint64_t{1} << 31) - 1;

struct AggregatorOptions {
  // Also sum the weight behind each coordinate, for CoordinateMean: 4 bytes a parameter.
  bool coordinate_weights = false;
  // Also sum the products of the factors; nothing: no update has both.
  std::optional<SketchOptions> sketch;
};

// A decoded update. Views.
struct UpdateView {
  const SliceLayout* layout = nullptr;          // what of the adapter the node trained
  absl::Span<const uint32_t> coordinates = {};  // in the flat buffer, ascending; empty: all of it
  absl::Span<const float> values = {};
};

// Not thread-safe. Memory: 8 bytes a parameter and the options', whatever the number of nodes.
// An update costs time in the number of its values.
class UpdateAggregator {
 public:
  explicit UpdateAggregator(const LoraSpec& spec, AggregatorOptions options = {});

  // Adds `weight` times the update. InvalidArgument: a slice of another adapter, what SplitIntoRuns
  // and ProductSketch refuse, weight outside 1 to kMaxUpdateWeight. ResourceExhausted: the weights
  // of the round would pass kMaxTotalWeight. Nothing is added on error.
  absl::Status Accumulate(const UpdateView& update, uint64_t weight);
  // Adds another shard's sums. InvalidArgument: of another adapter or with other options.
  // ResourceExhausted: as above.
  absl::Status Merge(const UpdateAggregator& other);

  // sum(weight * value) / sum(weight), each component's over the updates whose slices have it (a
  // value that was not sent counts as zero); zero where there is none. FailedPrecondition when
  // nothing was accumulated, InvalidArgument when `mean` has another size; untouched then.
  absl::Status Mean(absl::Span<float> mean) const;
  // The same over the updates that sent the coordinate (SparseLoCo: Sarfi et al. 2025). Needs
  // coordinate_weights.
  absl::Status CoordinateMean(absl::Span<float> mean) const;

  // The runs that some update had in its slice, whole components, ascending.
  std::vector<SliceRun> TrainedRuns() const;
  const ProductSketch* sketch() const { return sketch_ ? &*sketch_ : nullptr; }
  // The weight behind each group of the sketch.
  std::vector<uint64_t> GroupWeights() const;
  uint64_t total_weight() const { return total_weight_; }
  int64_t num_updates() const { return num_updates_; }

 private:
  absl::Status CheckMean(absl::Span<float> mean) const;
  const std::vector<uint64_t>& weights(bool of_b) const { return of_b ? b_weights_ : a_weights_; }

  SliceLayout whole_;
  LargePageVector<int64_t> sums_;                // of weight * round(value * 2^26)
  std::vector<uint32_t> coordinate_weights_;     // empty without the option
  std::vector<uint64_t> a_weights_, b_weights_;  // by component
  std::optional<ProductSketch> sketch_;
  uint64_t total_weight_ = 0;
  int64_t num_updates_ = 0;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_AGGREGATOR_H_
