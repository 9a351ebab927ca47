// How much of an update fits a budget of bytes. Internal to the codec.
#ifndef FEDGE_COMMON_CODEC_RATE_CONTROL_H_
#define FEDGE_COMMON_CODEC_RATE_CONTROL_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"

namespace fedge {

// H(d) + d b: the entropy of independent positions of density d and of b bits for each value.
double FloorBits(double density, int value_bits);

// Searches the density whose update fills `budget_bytes`: at most that many bytes and at least 95 %
// of them, where more than one value and not all of them fit. `encode`: the update at a density.
// Starts at `density`, corrects it by the secant of what came out; at most kMaxRateTries calls,
// deterministic. ResourceExhausted when nothing fits; errors of `encode`.
inline constexpr int kMaxRateTries = 12;
absl::StatusOr<double> FitDensity(
    uint64_t budget_bytes, uint64_t overhead_bytes, uint64_t num_parameters, double density,
    const std::function<absl::StatusOr<std::string>(double density)>& encode);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_RATE_CONTROL_H_
