// Devices' own measurements, cleaned and averaged.
#ifndef FEDGE_SERVER_ROUND_METRICS_H_
#define FEDGE_SERVER_ROUND_METRICS_H_

#include <map>
#include <string>
#include <vector>

#include "server/coordinator.h"
#include "server/store.h"

namespace fedge {

namespace v1 {
class TaskMetrics;
}  // namespace v1

// Whether all losses are finite and not negative: others are not recorded.
bool IsPlausible(const v1::TaskMetrics& metrics);

// Means over the contributing nodes that sent metrics. Sums run in the order of `contributions`
// (sorted by node), so that the result does not depend on arrival.
RoundMetrics Summarize(const std::vector<Contribution>& contributions,
                       const std::map<std::string, v1::TaskMetrics>& metrics);

}  // namespace fedge

#endif  // FEDGE_SERVER_ROUND_METRICS_H_
