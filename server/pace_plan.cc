#include "server/pace_plan.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "fedge/v1/config.pb.h"
#include "server/run_plan.h"

namespace fedge {
namespace {

constexpr int64_t kSyncStaleness = 3;
constexpr int64_t kAsyncStaleness = 64;
constexpr double kAsyncOverSelection = 2;

// Why an update of an older version means nothing to the newest one; nullptr: it does mean
// something.
const char* WhyNotStale(const RunPlan& plan) {
  if (RotatesFrame(plan.aggregation)) {
    return "the mode makes new factors each round; use factor-averaging, fedex or ffa";
  }
  if (plan.aggregation == AggregationMode::kRoLora || plan.components_per_round > 0) {
    return "rounds train different parts of the adapter in turn; use factor-averaging, fedex or "
           "ffa, and no components_per_round";
  }
  if (plan.robust.rule != RobustRule::kNone) {
    return "run.aggregation.robust compares updates of one version; use none";
  }
  return nullptr;
}

void FillEarlyStopping(const v1::EarlyStoppingConfig& config, Limits& limits, PacePlan& pace) {
  pace.patience = config.patience();
  limits.Within<int64_t>("run.early_stopping.patience", pace.patience, 1, 1'000'000);
  pace.min_improvement = config.min_improvement();
  limits.Within("run.early_stopping.min_improvement", pace.min_improvement, 0.0, 100.0);
}

}  // namespace

double StalenessFactor(uint64_t staleness) {
  return 1 / std::sqrt(1 + static_cast<double>(staleness));
}

int64_t CohortSize(const RunPlan& plan) {
  const double size = plan.pace.over_selection * static_cast<double>(plan.nodes_per_round);
  return static_cast<int64_t>(std::ceil(size - 1e-9));
}

void FillPace(const v1::RunConfig& config, Limits& limits, RunPlan& plan) {
  PacePlan& pace = plan.pace;
  if (config.has_mode() && config.mode() != "sync" && config.mode() != "async") {
    limits.Fail(absl::StrCat("run.mode: '", config.mode(), "' is not known; use sync or async"));
  }
  pace.is_async = config.mode() == "async";
  pace.over_selection = config.has_over_selection() ? config.over_selection()
                        : pace.is_async             ? kAsyncOverSelection
                                                    : 1.0;
  limits.Within("run.over_selection", pace.over_selection, 1.0, 100.0);
  const double lease = config.has_lease_seconds()
                           ? config.lease_seconds()
                           : std::max(60.0, 6 * absl::ToDoubleSeconds(plan.retry));
  // A node that waits asks again after up to twice the pace of check-ins.
  limits.Within("run.lease_seconds", lease, 2 * absl::ToDoubleSeconds(plan.retry), 7.0 * 86400);
  pace.lease = absl::Seconds(lease);
  const char* const why_not = WhyNotStale(plan);
  pace.max_staleness = config.has_max_staleness() ? config.max_staleness()
                       : why_not != nullptr       ? 0
                       : pace.is_async            ? kAsyncStaleness
                                                  : kSyncStaleness;
  limits.Within<int64_t>("run.max_staleness", pace.max_staleness, 0, 1000);
  if (why_not != nullptr && pace.is_async) {
    limits.Fail(absl::StrCat("run.mode: async folds in updates of older versions, but ", why_not));
  } else if (why_not != nullptr && pace.max_staleness > 0) {
    limits.Fail(absl::StrCat("run.max_staleness: ", pace.max_staleness, ", but ", why_not));
  } else if (pace.is_async && pace.max_staleness == 0) {
    limits.Fail("run.max_staleness: 0, but async needs at least 1");
  }
  if (config.has_early_stopping()) FillEarlyStopping(config.early_stopping(), limits, pace);
}

}  // namespace fedge
