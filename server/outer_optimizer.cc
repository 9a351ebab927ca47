#include "server/outer_optimizer.h"

#include <algorithm>
#include <cmath>

#include "common/base/status.h"

namespace fedge {
namespace {

bool IsAdaptive(OuterOptimizerKind kind) {
  return kind == OuterOptimizerKind::kAdam || kind == OuterOptimizerKind::kYogi;
}

}  // namespace

absl::string_view OuterOptimizerName(OuterOptimizerKind kind) {
  switch (kind) {
    case OuterOptimizerKind::kSgd:
      return "sgd";
    case OuterOptimizerKind::kNesterov:
      return "nesterov";
    case OuterOptimizerKind::kAdam:
      return "adam";
    case OuterOptimizerKind::kYogi:
      return "yogi";
  }
  FEDGE_CHECK(false, "outer optimizer ", static_cast<int>(kind));
}

size_t OuterOptimizer::StateSize(size_t parameters) const {
  if (IsAdaptive(kind)) return 2 * parameters;
  return kind == OuterOptimizerKind::kNesterov ? parameters : 0;
}

void OuterOptimizer::InitializeState(absl::Span<float> state) const {
  std::fill(state.begin(), state.end(), 0.0f);
  if (!IsAdaptive(kind)) return;
  const absl::Span<float> second = state.subspan(state.size() / 2);
  std::fill(second.begin(), second.end(), static_cast<float>(epsilon * epsilon));
}

void OuterOptimizer::Step(absl::Span<const float> mean, size_t first, absl::Span<float> values,
                          absl::Span<float> state) const {
  FEDGE_CHECK(first + mean.size() <= values.size() && state.size() == StateSize(values.size()));
  for (size_t i = 0; i < mean.size(); ++i) {
    const size_t at = first + i;
    const double d = mean[i];
    double step = d;
    if (kind != OuterOptimizerKind::kSgd) {
      const double gain = IsAdaptive(kind) ? 1 - beta1 : 1.0;
      const double m = beta1 * state[at] + gain * d;
      state[at] = static_cast<float>(m);
      step = d + beta1 * state[at];
    }
    if (IsAdaptive(kind)) {
      float& second = state[values.size() + at];
      const double v = second;
      const double square = d * d;
      second =
          static_cast<float>(kind == OuterOptimizerKind::kAdam ? beta2 * v + (1 - beta2) * square
                                                               : v - (1 - beta2) * square *
                                                                         (v > square   ? 1.0
                                                                          : v < square ? -1.0
                                                                                       : 0.0));
      step = state[at] / (std::sqrt(static_cast<double>(second)) + epsilon);
    }
    values[at] = static_cast<float>(values[at] + learning_rate * step);
  }
}

}  // namespace fedge
