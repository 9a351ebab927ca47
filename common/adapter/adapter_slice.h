// The part of an adapter that a task trains and sends: one or both factors, a range of the rank's
// components. Alternating factors by round (RoLoRA, Chen et al. 2024), a frozen A (FFA-LoRA, Sun et
// al. 2024), smaller ranks for slow nodes and components that take turns are all slices; a node
// leaves what is outside its slice as it got it.
//
// Since a component is one contiguous run of A and one of B (lora_adapter.h), a slice is at most
// one run for each factor of a module. Its coordinates, run after run, are what an update's
// coordinates mean (proto/UPDATE_FORMAT.md).
#ifndef FEDGE_COMMON_ADAPTER_ADAPTER_SLICE_H_
#define FEDGE_COMMON_ADAPTER_ADAPTER_SLICE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/adapter/lora_adapter.h"

namespace fedge {

enum class SliceFactors : uint8_t { kBoth = 0, kA = 1, kB = 2 };

struct AdapterSlice {
  SliceFactors factors = SliceFactors::kBoth;
  // Components [first, end) of every module, as far as it has them.
  int64_t first_component = 0;
  int64_t end_component = kMaxLoraRank;

  friend bool operator==(const AdapterSlice& x, const AdapterSlice& y) {
    return x.factors == y.factors && x.first_component == y.first_component &&
           x.end_component == y.end_component;
  }
  friend bool operator!=(const AdapterSlice& x, const AdapterSlice& y) { return !(x == y); }
};

// "A and B", "A, components 0-3": for logs and errors.
std::string DescribeSlice(const AdapterSlice& slice);

// Coordinates [offset, offset + size) of the flat buffer: components of one factor of one module.
struct SliceRun {
  int64_t offset = 0;
  int64_t size = 0;
  int64_t row = 0;  // length of one component: in_features for A, out_features for B
  int32_t module = 0;
  bool is_b = false;
};

// A slice of one adapter shape. Immutable.
class SliceLayout {
 public:
  SliceLayout() = default;
  // InvalidArgument: a component range that is empty or out of bounds, an unknown choice of
  // factors, or a slice that no module of `spec` has a part of.
  static absl::StatusOr<SliceLayout> Create(const LoraSpec& spec, const AdapterSlice& slice);
  static SliceLayout Whole(const LoraSpec& spec);

  const AdapterSlice& slice() const { return slice_; }
  absl::Span<const SliceRun> runs() const { return runs_; }  // ascending
  int64_t size() const { return size_; }                     // coordinates
  int64_t adapter_size() const { return adapter_size_; }     // of the whole flat buffer
  bool whole() const { return size_ == adapter_size_; }

  // flat [adapter_size] -> sliced [size] and back; what is outside the slice is left as it is.
  void Gather(absl::Span<const float> flat, absl::Span<float> sliced) const;
  void Scatter(absl::Span<const float> sliced, absl::Span<float> flat) const;
  // Zeros outside the slice: makes a gradient one of the slice alone.
  void ClearOutside(absl::Span<float> flat) const;

 private:
  AdapterSlice slice_;
  std::vector<SliceRun> runs_;
  int64_t size_ = 0;
  int64_t adapter_size_ = 0;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_ADAPTER_ADAPTER_SLICE_H_
