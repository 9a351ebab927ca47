// The knobs of run.gate: what a round's result must pass before it is published.
#ifndef FEDGE_SERVER_GATE_PLAN_H_
#define FEDGE_SERVER_GATE_PLAN_H_

#include <cstdint>

#include "common/training/dataset.h"
#include "server/config_limits.h"

namespace fedge {

namespace v1 {
class GateConfig;
}  // namespace v1

struct GatePlan {
  bool enabled = false;
  double max_regression = 0.05;       // nats a token, against the version before and the base
  double max_slice_regression = 0.2;  // of a slice, and of the worst tenth of the nodes
  SliceBy slice_by = SliceBy::kField;
  int64_t evaluation_nodes = 0;
  double canary_fraction = 0;

  bool asks_nodes() const { return evaluation_nodes > 0 || canary_fraction > 0; }
};

// `has_holdout`: the server has held-out data of its own. On by default where there is something to
// measure with: who gives a server a holdout wants to know that versions do not get worse on it,
// and the evaluation is made anyway.
void FillGate(const v1::GateConfig& config, bool has_holdout, Limits& limits, GatePlan& gate);

}  // namespace fedge

#endif  // FEDGE_SERVER_GATE_PLAN_H_
