#include "server/gate_plan.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "fedge/v1/config.pb.h"

namespace fedge {

void FillGate(const v1::GateConfig& config, bool has_holdout, Limits& limits, GatePlan& gate) {
  if (config.has_max_regression()) gate.max_regression = config.max_regression();
  limits.Within("run.gate.max_regression", gate.max_regression, 0.0, 100.0);
  if (config.has_max_slice_regression()) gate.max_slice_regression = config.max_slice_regression();
  limits.Within("run.gate.max_slice_regression", gate.max_slice_regression, 0.0, 100.0);
  const std::string& slices = config.slices();
  if (slices == "node") {
    gate.slice_by = SliceBy::kNode;
  } else if (slices == "completion") {
    gate.slice_by = SliceBy::kCompletion;
  } else if (!slices.empty() && slices != "field") {
    limits.Fail(absl::StrCat("run.gate.slices: '", slices,
                             "' is not known; use field, node or completion"));
  }
  gate.evaluation_nodes = config.evaluation_nodes();
  limits.AtMost<int64_t>("run.gate.evaluation_nodes", gate.evaluation_nodes, 1000);
  gate.canary_fraction = config.canary_fraction();
  limits.Within("run.gate.canary_fraction", gate.canary_fraction, 0.0, 1.0);
  gate.enabled = has_holdout || gate.asks_nodes();
  if (!config.has_enabled()) return;
  if (config.enabled() && !gate.enabled) {
    limits.Fail(
        "run.gate.enabled: there is nothing to measure a version with; give a holdout, "
        "run.gate.evaluation_nodes or run.gate.canary_fraction");
  }
  gate.enabled = config.enabled();
}

}  // namespace fedge
