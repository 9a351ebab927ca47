#include "server/robust_weights.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace fedge {
namespace {

constexpr int kMaxIterations = 1000;
constexpr double kConverged = 1e-9;
constexpr double kSmoothing = 1e-6;
constexpr double kUnits = 0x1p23;

// Updates with a finite distance to some other; a single one is its own company.
std::vector<size_t> Reachable(absl::Span<const double> distances, size_t n) {
  std::vector<size_t> reachable;
  for (size_t i = 0; i < n; ++i) {
    bool any = n == 1 && std::isfinite(distances[0]);
    for (size_t j = 0; j < n; ++j) any = any || (j != i && std::isfinite(distances[i * n + j]));
    if (any) reachable.push_back(i);
  }
  return reachable;
}

// Ascending distances from `from` to the other `members`; what is not a number is infinite.
std::vector<double> Neighbours(absl::Span<const double> distances, size_t n,
                               absl::Span<const size_t> members, size_t from) {
  std::vector<double> result;
  for (const size_t other : members) {
    if (other == from) continue;
    const double distance = distances[from * n + other];
    result.push_back(std::isfinite(distance) ? distance : std::numeric_limits<double>::infinity());
  }
  std::sort(result.begin(), result.end());
  return result;
}

}  // namespace

std::vector<uint64_t> MultiKrumWeights(absl::Span<const double> distances, size_t n,
                                       const RobustPlan& robust) {
  std::vector<uint64_t> weights(n, 0);
  const std::vector<size_t> members = Reachable(distances, n);
  const size_t count = members.size();
  if (count < 3) {
    for (const size_t member : members) weights[member] = 1;
    return weights;
  }
  const auto expected = static_cast<size_t>(ShareOf(robust.attackers, static_cast<int64_t>(count)));
  const size_t attackers = std::min(expected, (count - 3) / 2);
  const size_t near = count - attackers - 2;
  std::vector<std::pair<double, size_t>> scores;
  for (const size_t member : members) {
    const std::vector<double> neighbours = Neighbours(distances, n, members, member);
    const auto end = neighbours.begin() + static_cast<std::ptrdiff_t>(near);
    scores.emplace_back(std::accumulate(neighbours.begin(), end, 0.0), member);
  }
  std::sort(scores.begin(), scores.end());
  const size_t all = count - expected;
  const size_t keep = robust.keep > 0 ? std::min(static_cast<size_t>(robust.keep), all) : all;
  for (size_t i = 0; i < keep; ++i) {
    if (std::isfinite(scores[i].first)) weights[scores[i].second] = 1;
  }
  return weights;
}

std::vector<uint64_t> GeometricMedianWeights(absl::Span<const double> distances, size_t n) {
  std::vector<uint64_t> result(n, 0);
  const std::vector<size_t> members = Reachable(distances, n);
  const size_t count = members.size();
  // Of the update that lies best: fewer than half of the updates cannot make it large or small.
  double typical = std::numeric_limits<double>::infinity();
  for (const size_t member : members) {
    const std::vector<double> neighbours = Neighbours(distances, n, members, member);
    if (!neighbours.empty()) typical = std::min(typical, neighbours[neighbours.size() / 2]);
  }
  const double least = kSmoothing * std::sqrt(typical);
  std::vector<double> a(count, 1 / static_cast<double>(std::max<size_t>(count, 1)));
  std::vector<double> to_mean(count);
  const bool spread = count > 2 && std::isfinite(least) && least > 0;
  for (int iteration = 0; spread && iteration < kMaxIterations; ++iteration) {
    double mean_spread = 0;
    for (size_t i = 0; i < count; ++i) {
      to_mean[i] = 0;
      for (size_t j = 0; j < count; ++j) {
        if (a[j] > 0) to_mean[i] += a[j] * distances[members[i] * n + members[j]];
      }
      if (a[i] > 0 && std::isfinite(to_mean[i])) mean_spread += a[i] * to_mean[i];
    }
    double total = 0;
    std::vector<double> next(count);
    for (size_t i = 0; i < count; ++i) {
      const double square = std::max(0.0, to_mean[i] - mean_spread / 2);
      // Nothing in common with another: at no distance from the point, so without weight.
      next[i] = std::isfinite(square) ? 1 / std::max(least, std::sqrt(square)) : 0;
      total += next[i];
    }
    if (!(total > 0)) break;
    double change = 0;
    for (size_t i = 0; i < count; ++i) {
      next[i] /= total;
      change = std::max(change, std::abs(next[i] - a[i]));
    }
    a = std::move(next);
    if (change < kConverged) break;
  }
  for (size_t i = 0; i < count; ++i) {
    result[members[i]] = static_cast<uint64_t>(std::llround(a[i] * kUnits));
  }
  return result;
}

}  // namespace fedge
