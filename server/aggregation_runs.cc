#include "server/aggregation_runs.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

absl::Status CheckValues(absl::Span<const float> values) {
  for (size_t i = 0; i < values.size(); ++i) {
    // Written so that NaN fails too.
    if (!(std::abs(values[i]) <= kMaxUpdateMagnitude)) {
      return absl::InvalidArgumentError(absl::StrCat("value ", i, " of the update is ", values[i],
                                                     "; the limit is +-", kMaxUpdateMagnitude,
                                                     " (did the training diverge?)"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckCounts(const SliceLayout& layout, absl::Span<const uint32_t> coordinates,
                         absl::Span<const float> values) {
  if (!coordinates.empty() && coordinates.size() != values.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the update has ", values.size(), " values for ",
                                                   coordinates.size(), " coordinates"));
  }
  if (coordinates.empty() && !values.empty() &&
      static_cast<int64_t>(values.size()) != layout.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the update has ", values.size(), " values, its slice has ", layout.size()));
  }
  for (size_t i = 1; i < coordinates.size(); ++i) {
    if (coordinates[i] <= coordinates[i - 1]) {
      return absl::InvalidArgumentError(absl::StrCat("the update's coordinate ", coordinates[i],
                                                     " follows ", coordinates[i - 1],
                                                     "; coordinates must ascend"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<RunValues>> SplitIntoRuns(const SliceLayout& layout,
                                                     absl::Span<const uint32_t> coordinates,
                                                     absl::Span<const float> values) {
  RETURN_IF_ERROR(CheckCounts(layout, coordinates, values));
  RETURN_IF_ERROR(CheckValues(values));
  std::vector<RunValues> runs;
  runs.reserve(layout.runs().size());
  size_t at = 0;
  for (const SliceRun& run : layout.runs()) {
    size_t end = at;
    if (!coordinates.empty()) {
      while (end < coordinates.size() && coordinates[end] < run.offset + run.size) ++end;
      if (end > at && coordinates[at] < run.offset) break;
    } else if (!values.empty()) {
      end = at + static_cast<size_t>(run.size);
    }
    runs.emplace_back(run, layout.slice().first_component,
                      coordinates.empty() ? coordinates : coordinates.subspan(at, end - at),
                      values.subspan(at, end - at));
    at = end;
  }
  if (at < values.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the update's coordinate ", coordinates[at],
                     " is outside its slice: ", DescribeSlice(layout.slice())));
  }
  return runs;
}

}  // namespace fedge
