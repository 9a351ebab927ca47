// The knobs of a run that say when a round begins, ends and is given up on.
#ifndef FEDGE_SERVER_PACE_PLAN_H_
#define FEDGE_SERVER_PACE_PLAN_H_

#include <cstdint>

#include "absl/time/time.h"
#include "server/config_limits.h"

namespace fedge {

namespace v1 {
class RunConfig;
}  // namespace v1
struct RunPlan;

struct PacePlan {
  // No cohort: each node that checks in trains the newest version, and every
  // RunPlan::nodes_per_round accepted updates make a version (FedBuff: Nguyen et al. 2022).
  bool is_async = false;
  // For each update that a round needs: nodes that are drawn or, asynchronous, train at a time.
  double over_selection = 1;
  // A node without a sign of life for so long, beside the time its task should take, is given up.
  absl::Duration lease = absl::Minutes(1);
  // An update of a version so many versions back still counts; 0: only the round's own.
  int64_t max_staleness = 0;
  // The run ends when so many versions one after the other were not better; 0: it does not.
  int64_t patience = 0;
  double min_improvement = 0;  // nats a token of held-out data
};

// What is left of an update whose version has `staleness` newer ones: 1 / sqrt(1 + s) (FedBuff).
double StalenessFactor(uint64_t staleness);

// Nodes that are drawn or, asynchronous, train at a time.
int64_t CohortSize(const RunPlan& plan);

// Fills in and checks plan.pace; all else of the plan is there.
void FillPace(const v1::RunConfig& config, Limits& limits, RunPlan& plan);

}  // namespace fedge

#endif  // FEDGE_SERVER_PACE_PLAN_H_
