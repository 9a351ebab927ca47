// All knobs of a run, defaults filled in and checked once: what the rest of the server works with.
#ifndef FEDGE_SERVER_RUN_PLAN_H_
#define FEDGE_SERVER_RUN_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/adapter/adapter_slice.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/digest.h"
#include "common/codec/error_feedback.h"
#include "common/codec/update_codec.h"
#include "common/model/base_model.h"
#include "common/training/adapter_init.h"
#include "server/gate_plan.h"
#include "server/outer_optimizer.h"
#include "server/pace_plan.h"
#include "server/trust_plan.h"

namespace fedge {

namespace v1 {
class RunConfig;
class ServerConfig;
}  // namespace v1

// How updates become the next version.
enum class AggregationMode {
  kFactorAveraging,  // A and B are averaged, each by itself
  kRoLora,           // B in versions 0, 2, ..., A in the others: exact, and half the bytes
  kFfa,              // B only: exact, half the bytes, A never leaves its seed
  kFlexLora,         // the mean of products, at rank r again
  kFedEx,            // as kFactorAveraging; what that leaves out is kept in frozen components
  kFlora,            // the mean of products goes into frozen components, the others start again
};
// As in the configuration: "rolora".
absl::string_view AggregationModeName(AggregationMode mode);
// Whether the mode needs the mean of products in factors: server/aggregation.h.
bool Decomposes(AggregationMode mode);
// Whether a coordinate means something else after each round.
bool RotatesFrame(AggregationMode mode);

// Nodes that train the first `rank` components only. The first rule that fits a node counts.
struct NodeRank {
  int64_t rank = 1;
  uint64_t below_memory_bytes = 0;  // nodes that report less memory than this
  double share = 0;                 // or: this share of all nodes, by a hash of their ids
};

// How versions travel to the devices (server/downlink.h).
enum class DownlinkEncoding { kDelta, kFp16, kExact };
struct DownlinkPlan {
  DownlinkEncoding encoding = DownlinkEncoding::kDelta;
  double bits_per_parameter = 1.0;  // of one version's delta, unless
  double density = 0;               // is above 0: the fraction of the values that it changes,
  int levels = 1;                   // in steps of a power of two, this many up to the smallest
  bool plain = false;               // an error counts the same in A and B
  // A version's change as trellis-coded signs, which bits_per_parameter (1 / 64 to 1) then are of.
  bool trellis = false;
  double relaxation = 1;  // of the trellis: common/codec/update_codec.h
};

struct RunPlan {
  std::string run_id = "default";
  uint64_t seed = 0;
  int64_t rounds = 20;
  int64_t nodes_per_round = 16;
  int64_t min_nodes = 16;
  double quorum = 0.5;
  absl::Duration round_deadline = absl::Minutes(10);  // the longest; a learned one may be earlier
  absl::Duration retry = absl::Seconds(5);
  PacePlan pace;
  LoraSpec lora;
  AdapterInit init;  // of version 0
  Digest base_model;
  // What each device is told to do.
  int64_t steps = 8;
  int64_t batch_size = 4;
  int64_t length = 128;
  float learning_rate = 2e-3f;                // of the first round
  float final_learning_rate_fraction = 0.1f;  // of it in the last round, along a cosine
  float clip_norm = 1;
  float weight_decay = 0;
  float completion_weight = 1;
  float lora_plus_ratio = 1;
  float lora_dropout = 0;
  float proximal_mu = 0;
  double validation_fraction = 0.1;
  EncodeOptions codec;
  bool error_feedback = true;
  ErrorFeedbackOptions feedback;
  int64_t warmup_rounds = 0;    // the density falls to codec.density over so many
  bool shared_support = false;  // of a seeded support: the same for all nodes of a round
  DownlinkPlan downlink;
  // What becomes of the updates.
  AggregationMode aggregation = AggregationMode::kFactorAveraging;
  int64_t components_per_round = 0;     // 0: all
  int64_t trained_rank = kMaxLoraRank;  // components after these are frozen: the server's
  std::vector<NodeRank> node_ranks;     // other nodes train all
  uint64_t max_update_bytes = 0;        // of an encoded update
  uint64_t max_examples_per_node = 1'000'000;
  bool coordinate_mean = false;  // over the nodes that sent a coordinate, not over all
  OuterOptimizer outer;
  RobustPlan robust;
  // What an update must pass, and what a node may ask for.
  AdmissionPlan admission;
  GatePlan gate;  // what a version must pass
};

// The adapter a run asks for, before the base model turns it into a LoraSpec.
struct LoraPlan {
  // The rank is that of trained and frozen components; alpha is what LoraSpec divides by it: rsLoRA
  // is in it, and frozen components do not change what a trained one counts.
  LoraTargets targets;
  int64_t trained_rank = 8;  // of the rank, what nodes train
};

// InvalidArgument names the field, its value and the limit: "run.lora.rank: 5000 is above 1024".
absl::StatusOr<LoraPlan> MakeLoraPlan(const v1::RunConfig& config);

// Everything else. `config` is checked whole (also the fields the run does not use).
absl::StatusOr<RunPlan> MakeRunPlan(const v1::ServerConfig& config, LoraSpec lora,
                                    const Digest& base_model);

// The seed of version 0's values. Devices are told it, so it is not the run's own.
uint64_t AdapterSeed(const RunPlan& plan);

// Components of the rank that nodes train.
int64_t TrainedRank(const RunPlan& plan);

}  // namespace fedge

#endif  // FEDGE_SERVER_RUN_PLAN_H_
