#include "common/adapter/adapter_slice.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {

std::string DescribeSlice(const AdapterSlice& slice) {
  std::string text = slice.factors == SliceFactors::kA   ? "A"
                     : slice.factors == SliceFactors::kB ? "B"
                                                         : "A and B";
  if (slice.first_component > 0 || slice.end_component < kMaxLoraRank) {
    absl::StrAppend(&text, ", components ", slice.first_component, "-", slice.end_component - 1);
  }
  return text;
}

absl::StatusOr<SliceLayout> SliceLayout::Create(const LoraSpec& spec, const AdapterSlice& slice) {
  if (slice.factors > SliceFactors::kB) {
    return absl::InvalidArgumentError(
        absl::StrCat("slice: factors ", static_cast<int>(slice.factors), ", known are 0 to 2"));
  }
  if (slice.first_component < 0 || slice.end_component > kMaxLoraRank ||
      slice.first_component >= slice.end_component) {
    return absl::InvalidArgumentError(absl::StrCat("slice: components [", slice.first_component,
                                                   ", ", slice.end_component,
                                                   ") are not within 0 to ", kMaxLoraRank));
  }
  SliceLayout layout;
  layout.slice_ = slice;
  layout.adapter_size_ = spec.num_parameters();
  for (size_t i = 0; i < spec.modules().size(); ++i) {
    const LoraModule& module = spec.modules()[i];
    const int64_t first = slice.first_component;
    const int64_t count = std::min(slice.end_component, module.rank) - first;
    if (count <= 0) continue;
    const auto add = [&](int64_t offset, int64_t row, bool is_b) {
      layout.runs_.push_back(
          {offset + first * row, count * row, row, static_cast<int32_t>(i), is_b});
      layout.size_ += count * row;
    };
    if (slice.factors != SliceFactors::kB) add(module.offset, module.in_features, false);
    if (slice.factors != SliceFactors::kA) {
      add(module.offset + module.a_size(), module.out_features, true);
    }
  }
  if (layout.size_ == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("slice: no module of the adapter has ", DescribeSlice(slice)));
  }
  return layout;
}

SliceLayout SliceLayout::Whole(const LoraSpec& spec) {
  absl::StatusOr<SliceLayout> layout = Create(spec, AdapterSlice());
  FEDGE_CHECK(layout.ok(), layout.status().message());
  return *std::move(layout);
}

void SliceLayout::Gather(absl::Span<const float> flat, absl::Span<float> sliced) const {
  FEDGE_CHECK(static_cast<int64_t>(flat.size()) == adapter_size_ &&
                  static_cast<int64_t>(sliced.size()) == size_,
              "slice of ", size_, " of ", adapter_size_, " values");
  float* to = sliced.data();
  for (const SliceRun& run : runs_) to = std::copy_n(flat.data() + run.offset, run.size, to);
}

void SliceLayout::Scatter(absl::Span<const float> sliced, absl::Span<float> flat) const {
  FEDGE_CHECK(static_cast<int64_t>(flat.size()) == adapter_size_ &&
                  static_cast<int64_t>(sliced.size()) == size_,
              "slice of ", size_, " of ", adapter_size_, " values");
  const float* from = sliced.data();
  for (const SliceRun& run : runs_) {
    std::copy_n(from, run.size, flat.data() + run.offset);
    from += run.size;
  }
}

void SliceLayout::ClearOutside(absl::Span<float> flat) const {
  FEDGE_CHECK(static_cast<int64_t>(flat.size()) == adapter_size_, "slice of ", adapter_size_,
              " values");
  float* done = flat.data();
  for (const SliceRun& run : runs_) {
    std::fill(done, flat.data() + run.offset, 0.0f);
    done = flat.data() + run.offset + run.size;
  }
  std::fill(done, flat.data() + flat.size(), 0.0f);
}

}  // namespace fedge
