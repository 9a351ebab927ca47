// PairwiseDistances of server/robust_aggregation.h.
#include <array>
#include <cmath>
#include <limits>

#include "common/base/status.h"
#include "server/robust_aggregation.h"

namespace fedge {
namespace {

// Independent sums keep the adder busy; their number is part of the result's bits.
constexpr size_t kLanes = 8;

double SquaredDistance(const float* x, const float* y, size_t size) {
  std::array<double, kLanes> sums{};
  size_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const double difference = static_cast<double>(x[i + lane]) - static_cast<double>(y[i + lane]);
      sums[lane] += difference * difference;
    }
  }
  for (; i < size; ++i) {
    const double difference = static_cast<double>(x[i]) - static_cast<double>(y[i]);
    sums[i % kLanes] += difference * difference;
  }
  double sum = 0;
  for (const double lane : sums) sum += lane;
  return sum;
}

}  // namespace

absl::StatusOr<std::vector<double>> PairwiseDistances(const LoraSpec& spec,
                                                      const UpdateSource& updates,
                                                      size_t tile_bytes) {
  const size_t n = updates.size();
  ASSIGN_OR_RETURN(const std::vector<size_t> usable, UsableUpdates(spec, updates));
  std::vector<double> sums(n * n, 0);
  std::vector<int64_t> common(n * n, 0);
  int64_t trained = 0;  // coordinates, by any
  RETURN_IF_ERROR(ForEachPiece(spec, updates, usable, tile_bytes, [&](const UpdatePiece& piece) {
    trained += piece.size;
    for (size_t i = 0; i < piece.rows.size(); ++i) {
      common[piece.trained[i] * n + piece.trained[i]] += piece.size;
      for (size_t j = 0; j < i; ++j) {
        const size_t at = piece.trained[i] * n + piece.trained[j];
        sums[at] += SquaredDistance(piece.rows[i], piece.rows[j], static_cast<size_t>(piece.size));
        common[at] += piece.size;
      }
    }
  }));
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      const size_t at = i * n + j;
      const double distance =
          common[at] > 0
              ? sums[at] * (static_cast<double>(trained) / static_cast<double>(common[at]))
              : std::numeric_limits<double>::infinity();
      sums[at] = sums[j * n + i] = distance;
    }
  }
  return sums;
}

}  // namespace fedge
