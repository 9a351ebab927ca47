// Weights of updates from the squared distances of all pairs: server/robust_aggregation.h has the
// rules. Pure arithmetic.
#ifndef FEDGE_SERVER_ROBUST_WEIGHTS_H_
#define FEDGE_SERVER_ROBUST_WEIGHTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/trust_plan.h"

namespace fedge {

// `distances`: n x n squared, symmetric; infinite, or not a number, from an update that must not be
// chosen. 1 for each update chosen, 0 for others: all when fewer than 3 are usable, otherwise the
// `keep` with the least sum of distances to their n - f - 2 nearest (Blanchard et al. 2017, section
// 4); of equals the first. f, the attackers among n, is at most (n - 3) / 2.
std::vector<uint64_t> MultiKrumWeights(absl::Span<const double> distances, size_t n,
                                       const RobustPlan& robust);

// The weights a_i, in units of 2^-23, of the point sum a_i x_i with the least sum of distances.
// Since sum a_i = 1, |x_i - sum a_j x_j|^2 = sum_j a_j D_ij - 1/2 sum_jk a_j a_k D_jk: an iteration
// of Weiszfeld's algorithm, a_i ~ 1 / |x_i - point|, needs no updates. Distances below 10^-6 of a
// typical one count as that (smoothing: Pillutla et al. 2022, algorithm 2).
std::vector<uint64_t> GeometricMedianWeights(absl::Span<const double> distances, size_t n);

}  // namespace fedge

#endif  // FEDGE_SERVER_ROBUST_WEIGHTS_H_
