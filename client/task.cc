#include "client/task.h"

#include <cmath>
#include <utility>
#include <vector>

#include "common/base/rng.h"
#include "common/base/status.h"

namespace fedge {
namespace {

absl::Status OutOfBounds(absl::string_view field, double value, absl::string_view bounds) {
  return absl::InvalidArgumentError(absl::StrCat("assignment: ", field, " ", value,
                                                 " is not within ", bounds,
                                                 "; are server and client of the same version?"));
}

// Also false for NaN.
bool Within(double value, double low, double high) { return value >= low && value <= high; }

absl::Status ParseTraining(const v1::TrainingPlan& plan, const BaseModel& base, Task* task) {
  const int64_t context = base.config().context_length;
  if (!Within(plan.steps(), 1, kMaxLocalSteps)) {
    return OutOfBounds("steps", plan.steps(), absl::StrCat("[1, ", kMaxLocalSteps, "]"));
  }
  if (!Within(plan.length(), 2, static_cast<double>(context))) {
    return OutOfBounds("length", plan.length(),
                       absl::StrCat("[2, ", context, "], the base model's context"));
  }
  const int64_t max_rows = kMaxBatchTokens / plan.length();
  if (!Within(plan.batch_size(), 1, static_cast<double>(max_rows))) {
    return OutOfBounds("batch_size", plan.batch_size(), absl::StrCat("[1, ", max_rows, "]"));
  }
  if (!Within(plan.learning_rate(), 1e-12, 10)) {
    return OutOfBounds("learning_rate", plan.learning_rate(), "[1e-12, 10]");
  }
  if (!Within(plan.clip_norm(), 0, 1e9))
    return OutOfBounds("clip_norm", plan.clip_norm(), "[0, 1e9]");
  if (!Within(plan.weight_decay(), 0, 1)) {
    return OutOfBounds("weight_decay", plan.weight_decay(), "[0, 1]");
  }
  if (!Within(plan.validation_fraction(), 0, 0.9)) {
    return OutOfBounds("validation_fraction", plan.validation_fraction(), "[0, 0.9]");
  }
  if (!Within(plan.completion_weight(), 1e-3, 1e3)) {
    return OutOfBounds("completion_weight", plan.completion_weight(), "[0.001, 1000]");
  }
  // A server from before the ratio sends none.
  const float ratio = plan.lora_plus_ratio() == 0 ? 1.0f : plan.lora_plus_ratio();
  if (!Within(ratio, 1e-3, 1e3)) return OutOfBounds("lora_plus_ratio", ratio, "[0.001, 1000]");
  task->training.lora_plus_ratio = ratio;
  if (!Within(plan.lora_dropout(), 0, 0.99)) {
    return OutOfBounds("lora_dropout", plan.lora_dropout(), "[0, 0.99]");
  }
  task->training.lora_dropout = plan.lora_dropout();
  if (!Within(plan.proximal_mu(), 0, 1000)) {
    return OutOfBounds("proximal_mu", plan.proximal_mu(), "[0, 1000]");
  }
  task->training.proximal_mu = plan.proximal_mu();
  task->training.steps = plan.steps();
  task->training.batch_size = plan.batch_size();
  task->training.length = plan.length();
  // A round is too short for a schedule of its own: the rate is the server's to change by round.
  task->training.learning_rate.peak = plan.learning_rate();
  task->training.learning_rate.schedule = Schedule::kConstant;
  task->training.learning_rate.total_steps = plan.steps();
  task->training.adamw.weight_decay = plan.weight_decay();
  task->training.completion_weight = plan.completion_weight();
  task->training.clip_norm = plan.clip_norm();
  task->validation_fraction = plan.validation_fraction();
  task->split_seed = plan.split_seed();
  return absl::OkStatus();
}

absl::Status ParseCodec(const v1::CodecPlan& plan, Task* task) {
  switch (plan.support()) {
    case v1::CodecPlan::DENSE:
      task->codec.support = UpdateSupport::kDense;
      break;
    case v1::CodecPlan::TOP_K:
      task->codec.support = UpdateSupport::kTopK;
      break;
    case v1::CodecPlan::SEEDED:
      task->codec.support = UpdateSupport::kSeeded;
      break;
    case v1::CodecPlan::TRELLIS:
      task->codec.support = UpdateSupport::kTrellis;
      task->codec.relaxation = plan.relaxation();
      break;
    default:
      return absl::UnimplementedError(absl::StrCat(
          "assignment: update support ", static_cast<int>(plan.support()),
          " is not known to this client (dense, top-k, seeded, trellis); update the client"));
  }
  if (task->codec.support != UpdateSupport::kDense) {
    if (!Within(plan.density(), 1e-9, 1)) return OutOfBounds("density", plan.density(), "(0, 1]");
    task->codec.density = plan.density();
  }
  if (plan.value_bits() > 16) return OutOfBounds("value_bits", plan.value_bits(), "[1, 16]");
  task->codec.value_bits = static_cast<int>(plan.value_bits());
  task->codec.per_run = plan.per_run();
  task->codec.stochastic = plan.stochastic();
  RETURN_IF_ERROR(Annotate(CheckEncodeOptions(task->codec), "assignment"));
  task->error_feedback = plan.error_feedback();
  task->codec.budget_bytes = plan.budget_bytes();
  if (!Within(plan.residual_norm_ratio(), 0, 1e9)) {
    return OutOfBounds("residual_norm_ratio", plan.residual_norm_ratio(), "[0, 1e9]");
  }
  if (!Within(plan.residual_decay(), 0, 1)) {
    return OutOfBounds("residual_decay", plan.residual_decay(), "[0, 1]");
  }
  task->feedback.decay = plan.residual_decay();
  task->feedback.full_rounds = plan.residual_rounds();
  task->feedback.max_norm_ratio = plan.residual_norm_ratio();
  if (!Within(plan.momentum_correction(), 0, 0.99)) {
    return OutOfBounds("momentum_correction", plan.momentum_correction(), "[0, 0.99]");
  }
  task->feedback.momentum = plan.momentum_correction();
  task->frame = plan.frame();
  return absl::OkStatus();
}

absl::Status ParseSlice(const v1::Assignment& assignment, Task* task) {
  if (!assignment.has_slice()) return absl::OkStatus();
  const v1::AdapterSliceProto& proto = assignment.slice();
  if (!v1::AdapterSliceProto::Factors_IsValid(proto.factors())) {
    return OutOfBounds("slice.factors", proto.factors(), "{0, 1, 2}");
  }
  task->training.slice.factors = static_cast<SliceFactors>(proto.factors());
  task->training.slice.first_component = proto.first_component();
  task->training.slice.end_component = proto.end_component();
  const absl::Status fits = SliceLayout::Create(task->lora, task->training.slice).status();
  return fits.ok() ? fits : Annotate(fits, "assignment");
}

}  // namespace

absl::StatusOr<LoraSpec> LoraSpecFromProto(const v1::LoraSpecProto& proto) {
  if (proto.modules_size() > kMaxLoraModules) {
    return absl::InvalidArgumentError(absl::StrCat("assignment: ", proto.modules_size(),
                                                   " adapter modules, at most ", kMaxLoraModules));
  }
  std::vector<LoraModule> modules(static_cast<size_t>(proto.modules_size()));
  for (size_t i = 0; i < modules.size(); ++i) {
    const v1::LoraModuleSpec& from = proto.modules(static_cast<int>(i));
    modules[i].tensor = from.tensor();
    modules[i].in_features = from.in_features();
    modules[i].out_features = from.out_features();
    modules[i].rank = from.rank();
    modules[i].first_row = from.first_row();
    modules[i].tensor_rows = from.tensor_rows();
  }
  return LoraSpec::Create(proto.architecture(), proto.alpha(), std::move(modules));
}

absl::StatusOr<Task> ParseTask(const v1::Assignment& assignment, const std::string& node_id,
                               const BaseModel& base) {
  ASSIGN_OR_RETURN(const Digest wanted, DigestFromRaw(assignment.base_model_sha256()));
  if (wanted != base.sha256()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "base model: the run trains the file with SHA-256 ", wanted.Hex(), ", this device holds ",
        base.sha256().Hex(), "; start the client with --model set to the server's file"));
  }
  Task task;
  task.run_id = assignment.run_id();
  task.round = assignment.round();
  ASSIGN_OR_RETURN(task.lora, LoraSpecFromProto(assignment.lora()));
  RETURN_IF_ERROR(base.CheckAdapter(task.lora));
  task.adapter_version = assignment.adapter_version();
  task.adapter = assignment.adapter();
  if (task.adapter.version() != task.adapter_version) {
    return absl::InvalidArgumentError(absl::StrCat("assignment: adapter version ",
                                                   task.adapter_version, ", but its source is ",
                                                   "that of version ", task.adapter.version()));
  }
  RETURN_IF_ERROR(ParseTraining(assignment.training(), base, &task));
  RETURN_IF_ERROR(ParseSlice(assignment, &task));
  RETURN_IF_ERROR(ParseCodec(assignment.codec(), &task));
  // The server's seed is the round's; each node draws its own order from it.
  Rng own = Rng::Stream(assignment.seed(), absl::StrCat("task/", node_id), assignment.round());
  task.training.seed = own.Next();
  task.codec.rounding_seed = own.Next();
  task.codec.seed = assignment.codec().shared_support()
                        ? Rng::Stream(assignment.seed(), "support", assignment.round()).Next()
                        : own.Next();
  task.deadline = absl::Milliseconds(
      static_cast<int64_t>(std::min<uint64_t>(assignment.deadline_ms(), uint64_t{1} << 40)));
  return task;
}

}  // namespace fedge
