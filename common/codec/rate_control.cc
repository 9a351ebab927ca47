#include "common/codec/rate_control.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr double kAim = 0.98;  // of the budget
constexpr double kFilled = 0.95;

}  // namespace

double FloorBits(double density, int value_bits) {
  const double d = std::clamp(density, 0.0, 1.0);
  const double positions = d <= 0 || d >= 1 ? 0 : -d * std::log2(d) - (1 - d) * std::log2(1 - d);
  return positions + d * value_bits;
}

absl::StatusOr<double> FitDensity(
    uint64_t budget_bytes, uint64_t overhead_bytes, uint64_t num_parameters, double density,
    const std::function<absl::StatusOr<std::string>(double density)>& encode) {
  const double one = 1 / static_cast<double>(num_parameters);
  const auto budget = static_cast<double>(budget_bytes);
  const auto overhead = static_cast<double>(std::min(overhead_bytes, budget_bytes));
  double fits = 0;  // the largest density that fitted
  double over = 2;  // the smallest that did not
  double next = std::clamp(density, one, 1.0);
  for (int i = 0; i < kMaxRateTries; ++i) {
    ASSIGN_OR_RETURN(const std::string bytes, encode(next));
    const auto size = static_cast<double>(bytes.size());
    if (size <= budget) {
      fits = std::max(fits, next);
      if (size >= kFilled * budget || next >= 1) return fits;
    } else {
      over = std::min(over, next);
    }
    if (fits > 0 && over - fits <= one) return fits;
    // Bytes grow a little less than the density does.
    next *= std::max(kAim * budget - overhead, 1.0) / std::max(size - overhead, 1.0);
    const double high = over > 1 ? 1.0 : over;
    if (next <= fits || next >= over) next = (fits + high) / 2;
    next = std::clamp(next, one, 1.0);
    if (next <= one && over <= one) break;
  }
  if (fits > 0) return fits;
  return absl::ResourceExhaustedError(
      absl::StrCat("update: not one value fits a budget of ", budget_bytes, " bytes"));
}

}  // namespace fedge
