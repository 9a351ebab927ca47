// The knobs of a run against nodes that lie: what an update must pass, and how the updates that
// passed are combined.
#ifndef FEDGE_SERVER_TRUST_PLAN_H_
#define FEDGE_SERVER_TRUST_PLAN_H_

#include <cstdint>

#include "absl/strings/string_view.h"
#include "server/config_limits.h"
#include "server/node_quota.h"

namespace fedge {

namespace v1 {
class AdmissionConfig;
class AggregationConfig;
}  // namespace v1
struct RunPlan;

// What becomes of an update whose norm is above the bound.
enum class NormBound { kOff, kClip, kReject };

struct AdmissionPlan {
  NormBound norm_bound = NormBound::kClip;
  double max_norm = 0;           // L2; 0: the bound follows from earlier rounds
  double norm_ratio = 3;         // to their median
  int64_t quarantine_after = 3;  // rejected updates in a row; 0: never
  int64_t quarantine_rounds = 10;
  NodeQuotaLimits quota;
};

// What takes the place of the weighted mean: server/robust_aggregation.h.
enum class RobustRule { kNone, kMedian, kTrimmedMean, kMultiKrum, kGeometricMedian };
// As in the configuration: "multi-krum".
absl::string_view RobustRuleName(RobustRule rule);
// Whether the rule gives each update a weight (multi-krum, geometric median), which works for every
// aggregation mode, and not each coordinate a value.
bool WeighsUpdates(RobustRule rule);

struct RobustPlan {
  RobustRule rule = RobustRule::kNone;
  double attackers = 0.2;  // share of a cohort
  int64_t keep = 0;        // multi-krum: updates averaged; 0: all but the attackers
};

// The smallest whole number that is at least `share` of `count`.
int64_t ShareOf(double share, int64_t count);

// Fill in and check run.admission and run.aggregation.robust*. `plan`: all else of the run.
void FillAdmission(const v1::AdmissionConfig& config, Limits& limits, AdmissionPlan& admission);
void FillRobust(const v1::AggregationConfig& config, const RunPlan& plan, Limits& limits,
                RobustPlan& robust);

}  // namespace fedge

#endif  // FEDGE_SERVER_TRUST_PLAN_H_
