// Devices' own measurements, cleaned and averaged.
#ifndef FEDGE_SERVER_ROUND_METRICS_H_
#define FEDGE_SERVER_ROUND_METRICS_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "server/coordinator.h"
#include "server/store.h"

namespace fedge {

namespace v1 {
class TaskMetrics;
}  // namespace v1

// Whether all losses are finite and not negative: others are not recorded.
bool IsPlausible(const v1::TaskMetrics& metrics);

using TaskKey = std::pair<uint64_t, std::string>;  // round, node

// Means over the contributing nodes that sent metrics. Sums run in the order of `contributions`
// (sorted by node and round), so that the result does not depend on arrival.
RoundMetrics Summarize(const std::vector<Contribution>& contributions,
                       const std::map<TaskKey, v1::TaskMetrics>& metrics);

}  // namespace fedge

#endif  // FEDGE_SERVER_ROUND_METRICS_H_
