// From a round's sums to the next version: the aggregation modes of LoRA.
//
// The mean of products is not the product of means. A mode says what becomes of E = mean(B_i A_i) -
// mean(B_i) mean(A_i):
//
//   factor-averaging  left out (FedAvg on the factors)
//   rolora, ffa       there is none: a round changes one factor only
//   flexlora          B A = the best rank-r approximation of mean(B_i A_i)  (Bai et al. 2024)
//   fedex             kept, to a bounded rank, in frozen components         (Singhal et al. 2024)
//   flora             mean(B_i A_i) goes into frozen components of bounded rank, the trained ones
//                     start again                                           (Wang et al. 2024)
//
// Frozen components are the adapter's own, after the `trained_rank` that nodes train: nodes need
// not know of the mode, and a downstream file holds one adapter.
#ifndef FEDGE_SERVER_AGGREGATION_H_
#define FEDGE_SERVER_AGGREGATION_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/adapter/lora_adapter.h"
#include "server/aggregator.h"
#include "server/run_plan.h"

namespace fedge {

// What a version is made of; all of it must be stored to continue after a restart.
struct ModelState {
  LoraAdapter adapter;          // the fp32 master
  std::vector<float> momentum;  // state of the outer optimizer; empty: it has none
  uint64_t version = 0;
  // The median rms() of the updates of the last rounds, by NormSlot; 0: none yet
  // (server/update_admission.h).
  std::array<double, 2> typical_norm{};
};

// What the sums of a round that starts from `version` must be able to tell.
AggregatorOptions MakeAggregatorOptions(const RunPlan& plan, uint64_t version);

struct NextVersion {
  ModelState state;
  // ||mean(B_i A_i) - B A|| / ||mean(B_i A_i)|| in the Frobenius norm over all modules, B A before
  // the outer optimizer's step. Both norms are estimated by probes (unbiased in the squares); 0
  // where the mode is exact.
  double aggregation_error = 0;
};

// `sums` has at least one update and the options above, and `before.momentum` the optimizer's size
// or nothing. `mean`, when there is one, takes the place of the mean of the updates
// (server/robust_aggregation.h); the mode must not need means of products then. The same bits for
// any order of the updates. OutOfRange: a value would leave what can
// be served (names the limit). Costs O(rank^2 (in + out)) a module in the modes with a
// decomposition.
absl::StatusOr<NextVersion> CloseRound(const RunPlan& plan, const ModelState& before,
                                       const UpdateAggregator& sums,
                                       absl::Span<const float> mean = {});

}  // namespace fedge

#endif  // FEDGE_SERVER_AGGREGATION_H_
