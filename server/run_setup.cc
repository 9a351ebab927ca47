#include "server/run_setup.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/thread_pool.h"
#include "common/training/adapter_init.h"

namespace fedge {

absl::StatusOr<RunPlan> PlanRun(const v1::ServerConfig& config, const BaseModel& model) {
  ASSIGN_OR_RETURN(const LoraPlan lora, MakeLoraPlan(config.run()));
  absl::StatusOr<LoraSpec> spec = model.MakeLoraSpec(lora.targets);
  if (!spec.ok()) return Annotate(spec.status(), "run.lora");
  ASSIGN_OR_RETURN(RunPlan plan, MakeRunPlan(config, *std::move(spec), model.sha256()));
  if (plan.length > model.config().context_length) {
    return absl::InvalidArgumentError(absl::StrCat("run.training.length: ", plan.length,
                                                   " is above the base model's context of ",
                                                   model.config().context_length));
  }
  return plan;
}

absl::StatusOr<RunSetup> SetUpRun(const v1::ServerConfig& config, BaseModels& models, int threads,
                                  Env& env) {
  RETURN_IF_ERROR(MakeRunPlan(config, LoraSpec(), Digest()).status());
  if (config.base_model().empty()) {
    return absl::InvalidArgumentError(
        "base_model: is required: the path of a GGUF file (in the configuration or --base-model)");
  }
  RunSetup setup;
  ASSIGN_OR_RETURN(setup.model, models.Load(config.base_model()));
  ASSIGN_OR_RETURN(setup.plan, PlanRun(config, *setup.model));
  if (config.holdout().empty()) return setup;
  ASSIGN_OR_RETURN(setup.holdout,
                   HoldoutEvaluator::Create(setup.model, config.holdout(), setup.plan.length,
                                            setup.plan.gate.slice_by, threads, env));
  return setup;
}

absl::StatusOr<LoraAdapter> MakeVersionZero(const RunSetup& setup, int threads, Env& env) {
  LoraAdapter initial(setup.plan.lora);
  ThreadPool pool(threads);
  const absl::Status status =
      InitializeAdapter(setup.plan.init, *setup.model, AdapterSeed(setup.plan), pool, env, initial);
  if (!status.ok()) return Annotate(status, "run.lora.init");
  return initial;
}

}  // namespace fedge
