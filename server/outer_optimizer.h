// The server's step from the mean update, its "pseudo-gradient" (Reddi et al. 2021, algorithm 2).
//
// Coordinates that a round did not train are left alone, and so is their state: momentum neither
// moves them nor decays, since in rounds that alternate factors or components it would otherwise
// push what stands still, in a frame the other part has left, and forget the rest by half.
#ifndef FEDGE_SERVER_OUTER_OPTIMIZER_H_
#define FEDGE_SERVER_OUTER_OPTIMIZER_H_

#include <cstddef>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace fedge {

enum class OuterOptimizerKind {
  kSgd,       // x += rate * d
  kNesterov,  // m = beta1 m + d; x += rate * (d + beta1 m)    (DiLoCo: Douillard et al. 2023)
  kAdam,      // m = beta1 m + (1 - beta1) d; v = beta2 v + (1 - beta2) d^2;
              // x += rate * m / (sqrt(v) + epsilon)           (FedAdam, without bias correction)
  kYogi,      // as kAdam with v -= (1 - beta2) d^2 sign(v - d^2)
};

// As in the configuration: "nesterov".
absl::string_view OuterOptimizerName(OuterOptimizerKind kind);

struct OuterOptimizer {
  OuterOptimizerKind kind = OuterOptimizerKind::kSgd;
  double learning_rate = 1;
  double beta1 = 0;
  double beta2 = 0.99;
  double epsilon = 1e-3;  // how far a coordinate moves in a round and counts as moving

  // Floats of state for `parameters`: 0, the momentum, or the momentum followed by the second
  // moments. Where it is made it is all zero; second moments start at epsilon^2 (as in the paper).
  size_t StateSize(size_t parameters) const;
  void InitializeState(absl::Span<float> state) const;
  // One step on coordinates [first, first + mean.size()) of `values`, whose state is `state`
  // (whole). In double, rounded once.
  void Step(absl::Span<const float> mean, size_t first, absl::Span<float> values,
            absl::Span<float> state) const;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_OUTER_OPTIMIZER_H_
