#include "server/task_plan.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/training/optimizer.h"
#include "fedge/v1/federation.pb.h"

namespace fedge {

void FillAssignment(const RunPlan& plan, v1::Assignment& assignment) {
  assignment.set_run_id(plan.run_id);
  assignment.set_base_model_sha256(plan.base_model.Raw());
  v1::LoraSpecProto& lora = *assignment.mutable_lora();
  lora.set_architecture(plan.lora.architecture());
  lora.set_alpha(plan.lora.alpha());
  for (const LoraModule& module : plan.lora.modules()) {
    v1::LoraModuleSpec& spec = *lora.add_modules();
    spec.set_tensor(module.tensor);
    spec.set_in_features(static_cast<uint32_t>(module.in_features));
    spec.set_out_features(static_cast<uint32_t>(module.out_features));
    spec.set_rank(static_cast<uint32_t>(module.rank));
    spec.set_first_row(static_cast<uint32_t>(module.first_row));
    spec.set_tensor_rows(static_cast<uint32_t>(module.tensor_rows));
  }
  v1::TrainingPlan& training = *assignment.mutable_training();
  training.set_steps(static_cast<uint32_t>(plan.steps));
  training.set_batch_size(static_cast<uint32_t>(plan.batch_size));
  training.set_length(static_cast<uint32_t>(plan.length));
  training.set_learning_rate(plan.learning_rate);
  training.set_clip_norm(plan.clip_norm);
  training.set_weight_decay(plan.weight_decay);
  training.set_completion_weight(plan.completion_weight);
  training.set_lora_plus_ratio(plan.lora_plus_ratio);
  training.set_lora_dropout(plan.lora_dropout);
  training.set_proximal_mu(plan.proximal_mu);
  training.set_validation_fraction(plan.validation_fraction);
  training.set_split_seed(Rng::Stream(plan.seed, "split").Next());
  v1::CodecPlan& codec = *assignment.mutable_codec();
  codec.set_support(plan.codec.support == UpdateSupport::kTopK      ? v1::CodecPlan::TOP_K
                    : plan.codec.support == UpdateSupport::kSeeded  ? v1::CodecPlan::SEEDED
                    : plan.codec.support == UpdateSupport::kTrellis ? v1::CodecPlan::TRELLIS
                                                                    : v1::CodecPlan::DENSE);
  codec.set_density(plan.codec.density);
  codec.set_value_bits(static_cast<uint32_t>(plan.codec.value_bits));
  codec.set_error_feedback(plan.error_feedback);
  codec.set_per_run(plan.codec.per_run);
  codec.set_stochastic(plan.codec.stochastic);
  codec.set_shared_support(plan.shared_support);
  codec.set_budget_bytes(plan.codec.budget_bytes);
  codec.set_residual_rounds(static_cast<uint32_t>(plan.feedback.full_rounds));
  codec.set_relaxation(plan.codec.relaxation);
  codec.set_residual_decay(plan.feedback.decay);
  codec.set_residual_norm_ratio(plan.feedback.max_norm_ratio);
  codec.set_momentum_correction(plan.feedback.momentum);
}

AdapterSlice SliceOf(const RunPlan& plan, uint64_t version) {
  AdapterSlice slice;
  if (plan.aggregation == AggregationMode::kFfa) slice.factors = SliceFactors::kB;
  if (plan.aggregation == AggregationMode::kRoLora) {
    // B first: the gradient of A is zero as long as B is.
    slice.factors = version % 2 == 0 ? SliceFactors::kB : SliceFactors::kA;
    version /= 2;
  }
  if (plan.components_per_round > 0) {
    const int64_t turns =
        (TrainedRank(plan) + plan.components_per_round - 1) / plan.components_per_round;
    slice.first_component =
        static_cast<int64_t>(version % static_cast<uint64_t>(turns)) * plan.components_per_round;
    slice.end_component =
        std::min(slice.first_component + plan.components_per_round, TrainedRank(plan));
  }
  slice.end_component = std::min(slice.end_component, plan.trained_rank);
  return slice;
}

AdapterSlice NodeSlice(const RunPlan& plan, uint64_t version, absl::string_view node_id,
                       uint64_t memory_bytes) {
  AdapterSlice slice = SliceOf(plan, version);
  const double place = Rng::Stream(plan.seed, absl::StrCat("rank/", node_id)).Uniform();
  double shares = 0;
  for (const NodeRank& rule : plan.node_ranks) {
    shares += rule.share;
    const bool is_small = memory_bytes > 0 && memory_bytes < rule.below_memory_bytes;
    if (is_small || (rule.share > 0 && place < shares)) {
      slice.end_component = std::min(slice.end_component, rule.rank);
      break;
    }
  }
  return slice;
}

bool IsPlannedSlice(const RunPlan& plan, uint64_t version, const AdapterSlice& slice) {
  AdapterSlice planned = SliceOf(plan, version);
  if (slice == planned) return true;
  const int64_t end = planned.end_component;
  for (const NodeRank& rule : plan.node_ranks) {
    planned.end_component = std::min(end, rule.rank);
    if (slice == planned) return true;
  }
  return false;
}

void FillSlice(const AdapterSlice& slice, v1::AdapterSliceProto& proto) {
  proto.set_factors(static_cast<v1::AdapterSliceProto::Factors>(slice.factors));
  proto.set_first_component(static_cast<uint32_t>(slice.first_component));
  proto.set_end_component(static_cast<uint32_t>(slice.end_component));
}

double CodecDensity(const RunPlan& plan, uint64_t version) {
  constexpr double kFirst = 0.25;
  const double density = plan.codec.density;
  const auto rounds = static_cast<double>(plan.warmup_rounds);
  const double left = rounds - static_cast<double>(version);
  if (left <= 0 || density >= kFirst) return density;
  return density * std::pow(kFirst / density, left / rounds);
}

float LocalLearningRate(const RunPlan& plan, uint64_t version) {
  LearningRate rate;
  rate.peak = plan.learning_rate;
  rate.final_fraction = plan.final_learning_rate_fraction;
  rate.total_steps = std::max<int64_t>(1, plan.rounds - 1);
  return rate.At(static_cast<int64_t>(version));
}

}  // namespace fedge
