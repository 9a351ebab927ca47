#include "server/robust_aggregation.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "server/robust_weights.h"

namespace fedge {
namespace {

absl::Status NoUsableUpdate(size_t count) {
  return absl::FailedPreconditionError(
      absl::StrCat("none of the round's ", count, " updates can be combined"));
}

// The mean of values[drop, n - drop) in ascending order. Adding 0 turns -0 into 0: which of the two
// a sort puts first is left open.
float TrimmedMean(absl::Span<float> values, size_t drop) {
  std::sort(values.begin(), values.end());
  double sum = 0;
  for (size_t i = drop; i < values.size() - drop; ++i) sum += static_cast<double>(values[i]);
  return static_cast<float>(sum / static_cast<double>(values.size() - 2 * drop)) + 0.0f;
}

// Values that are left out at each end.
size_t DropCount(const RobustPlan& robust, size_t count) {
  const size_t most = (count - 1) / 2;  // leaves one or, of an even number, two: the median
  if (robust.rule == RobustRule::kMedian) return most;
  return std::min(most,
                  static_cast<size_t>(ShareOf(robust.attackers, static_cast<int64_t>(count))));
}

}  // namespace

absl::Status CoordinateRule(const RobustPlan& robust, const LoraSpec& spec,
                            const UpdateSource& updates, absl::Span<float> mean,
                            size_t tile_bytes) {
  FEDGE_CHECK(static_cast<int64_t>(mean.size()) == spec.num_parameters());
  ASSIGN_OR_RETURN(const std::vector<size_t> usable, UsableUpdates(spec, updates));
  if (usable.empty()) return NoUsableUpdate(updates.size());
  std::fill(mean.begin(), mean.end(), 0.0f);
  std::vector<float> values;
  return ForEachPiece(spec, updates, usable, tile_bytes, [&](const UpdatePiece& piece) {
    const size_t count = piece.rows.size();
    const size_t drop = DropCount(robust, count);
    values.resize(count);
    for (size_t at = 0; at < static_cast<size_t>(piece.size); ++at) {
      size_t nonzero = 0;
      for (size_t i = 0; i < count; ++i) {
        values[i] = piece.rows[i][at];
        nonzero += values[i] != 0 ? 1 : 0;
      }
      // Of sparse updates most coordinates have so few values that all are cut off.
      if (nonzero <= drop) continue;
      mean[static_cast<size_t>(piece.offset) + at] = TrimmedMean(absl::MakeSpan(values), drop);
    }
  });
}

absl::StatusOr<std::vector<uint64_t>> UpdateWeights(const RobustPlan& robust, const LoraSpec& spec,
                                                    const UpdateSource& updates,
                                                    size_t tile_bytes) {
  ASSIGN_OR_RETURN(const std::vector<double> distances,
                   PairwiseDistances(spec, updates, tile_bytes));
  std::vector<uint64_t> weights = robust.rule == RobustRule::kMultiKrum
                                      ? MultiKrumWeights(distances, updates.size(), robust)
                                      : GeometricMedianWeights(distances, updates.size());
  const bool any = std::any_of(weights.begin(), weights.end(), [](uint64_t w) { return w > 0; });
  if (!any) return NoUsableUpdate(updates.size());
  return weights;
}

absl::StatusOr<NextVersion> CloseRobustRound(const RunPlan& plan, const ModelState& before,
                                             const UpdateSource& updates,
                                             std::vector<uint64_t>& weights) {
  const RobustRule rule = plan.robust.rule;
  weights.assign(updates.size(), 1);
  std::vector<float> mean;
  if (WeighsUpdates(rule)) {
    ASSIGN_OR_RETURN(weights, UpdateWeights(plan.robust, plan.lora, updates));
  } else if (rule != RobustRule::kNone) {
    mean.resize(static_cast<size_t>(plan.lora.num_parameters()));
    RETURN_IF_ERROR(CoordinateRule(plan.robust, plan.lora, updates, absl::MakeSpan(mean)));
  }
  UpdateAggregator sums(plan.lora, MakeAggregatorOptions(plan, before.version));
  for (size_t i = 0; i < updates.size(); ++i) {
    ASSIGN_OR_RETURN(const std::shared_ptr<const AdmittedUpdate> update, updates.Read(i));
    if (rule == RobustRule::kNone) weights[i] = update->weight;
    if (weights[i] == 0) continue;
    RETURN_IF_ERROR(sums.Accumulate({.layout = &update->layout,
                                     .coordinates = update->update.coordinates,
                                     .values = update->update.values},
                                    weights[i]));
  }
  return CloseRound(plan, before, sums, mean);
}

}  // namespace fedge
