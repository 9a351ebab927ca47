// A decoded update as the sums want it: checked once, run by run, dense or sparse alike.
#ifndef FEDGE_SERVER_AGGREGATION_RUNS_H_
#define FEDGE_SERVER_AGGREGATION_RUNS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/adapter/adapter_slice.h"

namespace fedge {

// Largest magnitude of a value; a LoRA parameter that moves further in one round has diverged.
inline constexpr float kMaxUpdateMagnitude = 64;

// The values an update has in one run of its slice. Views: what was decoded must outlive it.
class RunValues {
 public:
  RunValues(const SliceRun& run, int64_t first_component, absl::Span<const uint32_t> coordinates,
            absl::Span<const float> values)
      : run_(run), first_(first_component), coordinates_(coordinates), values_(values) {}

  const SliceRun& run() const { return run_; }
  // The module's components that the run covers: [first, first + count).
  int64_t first_component() const { return first_; }
  int64_t num_components() const { return run_.size / run_.row; }
  size_t num_values() const { return values_.size(); }

  // Calls f(component, column, value) in ascending order of coordinates. A component is the
  // module's; a column is an input feature in a run of A, an output feature in one of B.
  template <typename F>
  void ForEach(const F& f) const {
    ForEach(f, [](int64_t /*component*/, int64_t /*column*/) {});
  }
  // Also calls soon(component, column) some values ahead of f: a sparse update hops through sums
  // that fit no cache, which only the caller can fetch in time.
  template <typename F, typename Soon>
  void ForEach(const F& f, const Soon& soon) const {
    constexpr size_t kAhead = 16;
    Cursor ahead{first_, run_.offset}, now = ahead;
    const size_t size = values_.size();
    for (size_t i = 0; i < size + kAhead; ++i) {
      if (i < size) {
        const int64_t column = MoveTo(i, ahead);
        soon(ahead.component, column);
      }
      if (i >= kAhead) {
        const int64_t column = MoveTo(i - kAhead, now);
        f(now.component, column, values_[i - kAhead]);
      }
    }
  }

 private:
  struct Cursor {
    int64_t component;
    int64_t start;  // of the component
  };
  // The column of value i, which is not before the one the cursor is at.
  int64_t MoveTo(size_t i, Cursor& cursor) const {
    const int64_t at =
        coordinates_.empty() ? run_.offset + static_cast<int64_t>(i) : coordinates_[i];
    while (at >= cursor.start + run_.row) {
      cursor.start += run_.row;
      ++cursor.component;
    }
    return at - cursor.start;
  }

  SliceRun run_;
  int64_t first_;
  absl::Span<const uint32_t> coordinates_;  // empty: every coordinate of the run
  absl::Span<const float> values_;
};

// One RunValues for each run of `layout`. `coordinates` are ascending places in the flat buffer;
// without any, `values` are those of the whole slice, or none at all. InvalidArgument: counts that
// differ, coordinates that do not ascend or are outside the slice, a value that is not finite or
// beyond kMaxUpdateMagnitude.
absl::StatusOr<std::vector<RunValues>> SplitIntoRuns(const SliceLayout& layout,
                                                     absl::Span<const uint32_t> coordinates,
                                                     absl::Span<const float> values);

}  // namespace fedge

#endif  // FEDGE_SERVER_AGGREGATION_RUNS_H_
