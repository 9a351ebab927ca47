// An assignment as the device accepts it: every field checked once, against the base model it holds
// and against limits with names. What comes out cannot be wrong.
#ifndef FEDGE_CLIENT_TASK_H_
#define FEDGE_CLIENT_TASK_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/adapter/lora_adapter.h"
#include "common/codec/error_feedback.h"
#include "common/codec/update_codec.h"
#include "common/model/base_model.h"
#include "common/training/trainer.h"
#include "fedge/v1/federation.pb.h"

namespace fedge {

inline constexpr int64_t kMaxLocalSteps = 1'000'000;
inline constexpr int64_t kMaxBatchTokens = int64_t{1} << 20;

struct Task {
  std::string run_id;
  uint64_t round = 0;
  LoraSpec lora;
  uint64_t adapter_version = 0;
  v1::AdapterSource adapter;
  TrainOptions training;  // steps, batch, length, rates, slice and the node's own seed
  double validation_fraction = 0;
  uint64_t split_seed = 0;
  EncodeOptions codec;
  bool error_feedback = true;
  ErrorFeedbackOptions feedback;
  uint64_t frame = 0;  // of the adapter's coordinates: a residual of another one is dropped
  absl::Duration deadline;
};

// InvalidArgument: a module is out of bounds or the list is malformed.
absl::StatusOr<LoraSpec> LoraSpecFromProto(const v1::LoraSpecProto& proto);

// FailedPrecondition: the base model or an adapter's module is not what this device holds.
// InvalidArgument: a number is outside its limits.
absl::StatusOr<Task> ParseTask(const v1::Assignment& assignment, const std::string& node_id,
                               const BaseModel& base);

}  // namespace fedge

#endif  // FEDGE_CLIENT_TASK_H_
