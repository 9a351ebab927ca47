#include "common/codec/trellis_rates.h"

#include <algorithm>
#include <queue>
#include <utility>

namespace fedge {
namespace {

constexpr int kRates = static_cast<int>(kTrellisPeriods.size());

// Share of a group's energy that a rate carries (trellis_code.h), made concave: each step to the
// next rate carries less a bit than the one before.
constexpr std::array<double, kTrellisPeriods.size()> kCarried = {
    0, 0.0179, 0.0238, 0.0357, 0.0475, 0.0710, 0.0942, 0.139, 0.182, 0.263, 0.338, 0.461, 0.637};

// One step up of one group.
struct Raise {
  double gain;  // energy a bit
  size_t group;

  // Of equal gains the first group comes first.
  bool operator<(const Raise& other) const {
    return gain != other.gain ? gain < other.gain : group > other.group;
  }
};

uint64_t StepsOf(const TrellisGroup& group, int rate) {
  return TrellisSteps(group.count, kTrellisPeriods[static_cast<size_t>(rate)]);
}

// A quarter of the mean for each, nothing where there is no such rate or it is too much.
int LeastRate(absl::Span<const TrellisGroup> groups, uint64_t steps) {
  uint64_t count = 0;
  for (const TrellisGroup& group : groups) count += group.count;
  int least = 0;
  while (least + 1 < kRates &&
         4 * TrellisSteps(count, kTrellisPeriods[static_cast<size_t>(least + 1)]) <= steps) {
    ++least;
  }
  uint64_t taken = 0;
  for (const TrellisGroup& group : groups) taken += StepsOf(group, least);
  return taken <= steps ? least : 0;
}

}  // namespace

std::vector<uint8_t> AllocateTrellisRates(absl::Span<const TrellisGroup> groups, uint64_t steps) {
  const int least = LeastRate(groups, steps);
  std::vector<uint8_t> rates(groups.size(), static_cast<uint8_t>(least));
  std::priority_queue<Raise> raises;
  const auto offer = [&](size_t i) {
    const int rate = rates[i];
    if (rate + 1 == kRates) return;
    const uint64_t bits = StepsOf(groups[i], rate + 1) - StepsOf(groups[i], rate);
    const double carried =
        kCarried[static_cast<size_t>(rate + 1)] - kCarried[static_cast<size_t>(rate)];
    raises.push({groups[i].energy * carried / static_cast<double>(std::max<uint64_t>(bits, 1)), i});
  };
  for (size_t i = 0; i < groups.size(); ++i) {
    steps -= StepsOf(groups[i], least);
    offer(i);
  }
  while (!raises.empty()) {
    const size_t i = raises.top().group;
    raises.pop();
    const uint64_t bits = StepsOf(groups[i], rates[i] + 1) - StepsOf(groups[i], rates[i]);
    if (bits > steps) continue;  // its last rate; others may have room
    steps -= bits;
    ++rates[i];
    offer(i);
  }
  return rates;
}

}  // namespace fedge
