#include "common/codec/scale_groups.h"

#include <algorithm>
#include <cmath>

#include "common/codec/value_quantizer.h"

namespace fedge {
namespace {

// Squared deviation of the magnitudes from their group's mean: what any quantizer's error is
// proportional to.
double Deviation(absl::Span<const float> values, absl::Span<const uint32_t> ends) {
  double deviation = 0;
  size_t i = 0;
  for (const uint32_t end : ends) {
    double sum = 0;
    double squares = 0;
    const auto count = static_cast<double>(end - i);
    for (; i < end; ++i) {
      const double magnitude = std::abs(values[i]);
      sum += magnitude;
      squares += magnitude * magnitude;
    }
    deviation += std::max(0.0, squares - sum * sum / count);
  }
  return deviation;
}

}  // namespace

std::vector<uint32_t> CountByRun(const SliceLayout& layout, absl::Span<const uint32_t> positions,
                                 uint64_t count) {
  std::vector<uint32_t> by_run;
  by_run.reserve(layout.runs().size());
  const bool all = positions.empty() && count > 0;
  size_t i = 0;
  int64_t end = 0;
  for (const SliceRun& run : layout.runs()) {
    end += run.size;
    if (all) {
      by_run.push_back(static_cast<uint32_t>(run.size));
      continue;
    }
    const size_t first = i;
    while (i < positions.size() && positions[i] < end) ++i;
    by_run.push_back(static_cast<uint32_t>(i - first));
  }
  return by_run;
}

std::vector<uint32_t> GroupEnds(absl::Span<const uint32_t> by_run, int group_log2) {
  const uint64_t fewest = uint64_t{1} << group_log2;
  std::vector<uint32_t> ends;
  uint64_t end = 0;
  uint64_t begin = 0;
  for (const uint32_t count : by_run) {
    end += count;
    if (end - begin < fewest) continue;
    ends.push_back(static_cast<uint32_t>(end));
    begin = end;
  }
  if (end > begin) ends.push_back(static_cast<uint32_t>(end));
  return ends;
}

int ChooseGrouping(absl::Span<const uint32_t> by_run, absl::Span<const float> values,
                   int value_bits) {
  const int halves = ScaleHalves(value_bits);
  if (halves == 0 || values.size() < (size_t{2} << kSmallestGroup)) return kOneGroup;
  const double scale_bits = 16.0 * halves;
  const double coarse = Deviation(values, GroupEnds(by_run, kOneGroup));
  int best = kOneGroup;
  double best_gain = 0;
  for (int log2 = 14; log2 >= kSmallestGroup; --log2) {
    const std::vector<uint32_t> ends = GroupEnds(by_run, log2);
    const double fine = Deviation(values, ends);
    if (ends.size() < 2 || fine <= 0) continue;
    // ln x >= 2 (x - 1) / (x + 1), without a libm: half a bit for each factor of two.
    const double ratio = coarse / fine;
    const double saved_bits =
        1.4427 * static_cast<double>(values.size()) * (ratio - 1) / (ratio + 1);
    const double gain = saved_bits - scale_bits * static_cast<double>(ends.size() - 1);
    if (gain <= best_gain) continue;
    best_gain = gain;
    best = log2;
  }
  return best;
}

}  // namespace fedge
