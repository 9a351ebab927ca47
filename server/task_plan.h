// What a run's tasks say: the slice, the density and the learning rate of a round, and the parts of
// an assignment that never change.
#ifndef FEDGE_SERVER_TASK_PLAN_H_
#define FEDGE_SERVER_TASK_PLAN_H_

#include <cstdint>

#include "absl/strings/string_view.h"
#include "common/adapter/adapter_slice.h"
#include "server/run_plan.h"

namespace fedge {

namespace v1 {
class AdapterSliceProto;
class Assignment;
}  // namespace v1

// The parts of an assignment that are the same for all nodes and rounds of a run: run id, base
// model, LoRA layout, training and codec plans.
void FillAssignment(const RunPlan& plan, v1::Assignment& assignment);

// What a round that starts from `version` trains. Components take turns, in rolora both factors of
// the same components one after the other.
AdapterSlice SliceOf(const RunPlan& plan, uint64_t version);
// The part of it that fits one node; memory_bytes 0: unknown.
AdapterSlice NodeSlice(const RunPlan& plan, uint64_t version, absl::string_view node_id,
                       uint64_t memory_bytes);
// Whether `slice` is what NodeSlice gives some node for `version`.
bool IsPlannedSlice(const RunPlan& plan, uint64_t version, const AdapterSlice& slice);
void FillSlice(const AdapterSlice& slice, v1::AdapterSliceProto& proto);

// The density of a round that starts from `version`: from 0.25 down to the plan's, by the same
// factor each round of the warm-up (Lin et al. 2018).
double CodecDensity(const RunPlan& plan, uint64_t version);

// The local learning rate of a task that starts from `version`: local training is noisy, and the
// noise of the last rounds would stay in the adapter.
float LocalLearningRate(const RunPlan& plan, uint64_t version);

}  // namespace fedge

#endif  // FEDGE_SERVER_TASK_PLAN_H_
