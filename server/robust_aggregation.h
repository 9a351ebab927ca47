// A round's updates combined so that a share of nodes that lie cannot decide the result.
//
//   median            of each coordinate                                  (Yin et al. 2018)
//   trimmed-mean      of each coordinate, without the largest and smallest (Yin et al. 2018)
//   multi-krum        the mean of the updates that lie closest together   (Blanchard et al. 2017)
//   geometric-median  the point with the least sum of distances to all: Weiszfeld's algorithm,
//                     smoothed                                            (RFA: Pillutla et al.
//                     2022)
//
// Every node counts the same: the number of examples is a node's own word. A coordinate is combined
// over the nodes that trained it; one that a node trained but did not send is 0. The last two give
// each update a weight, and what then happens is the usual exact sum with these weights: they work
// for all aggregation modes. They see the updates only through the distances of all pairs.
//
// The same bits for any order of the updates and any size of tiles. One thread.
#ifndef FEDGE_SERVER_ROBUST_AGGREGATION_H_
#define FEDGE_SERVER_ROBUST_AGGREGATION_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/adapter/lora_adapter.h"
#include "server/aggregation.h"
#include "server/run_plan.h"
#include "server/update_source.h"
#include "server/update_tiles.h"

namespace fedge {

// median and trimmed-mean; coordinates that no update trained are 0. `mean`: a value for each
// parameter. FailedPrecondition: no usable update; otherwise the errors of reading. Costs
// O(n log n) a coordinate for n updates.
absl::Status CoordinateRule(const RobustPlan& robust, const LoraSpec& spec,
                            const UpdateSource& updates, absl::Span<float> mean,
                            size_t tile_bytes = kDefaultTileBytes);

// multi-krum and geometric-median: a weight for each update, at most kMaxUpdateWeight; 0 for those
// left out. Errors as above.
absl::StatusOr<std::vector<uint64_t>> UpdateWeights(const RobustPlan& robust, const LoraSpec& spec,
                                                    const UpdateSource& updates,
                                                    size_t tile_bytes = kDefaultTileBytes);

// Squared distances of all pairs, n x n row-major, over the coordinates that both trained, scaled
// to the number of all: updates of different ranks compare. Infinite for updates that are not
// usable and pairs with nothing in common. Costs O(n^2) a coordinate.
absl::StatusOr<std::vector<double>> PairwiseDistances(const LoraSpec& spec,
                                                      const UpdateSource& updates,
                                                      size_t tile_bytes = kDefaultTileBytes);

// CloseRound with the plan's rule in the place of the mean. `updates`: all that were accepted, at
// least one. Their weights in the sums are in `weights` then, as many as updates.
absl::StatusOr<NextVersion> CloseRobustRound(const RunPlan& plan, const ModelState& before,
                                             const UpdateSource& updates,
                                             std::vector<uint64_t>& weights);

}  // namespace fedge

#endif  // FEDGE_SERVER_ROBUST_AGGREGATION_H_
