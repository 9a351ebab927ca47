// From a run's configuration to what it needs: base model, plan, evaluation, version 0. Reads
// files, writes none.
#ifndef FEDGE_SERVER_RUN_SETUP_H_
#define FEDGE_SERVER_RUN_SETUP_H_

#include <memory>

#include "absl/status/statusor.h"
#include "common/base/env.h"
#include "common/model/base_model.h"
#include "fedge/v1/config.pb.h"
#include "server/base_models.h"
#include "server/holdout_evaluator.h"
#include "server/run_plan.h"

namespace fedge {

struct RunSetup {
  std::shared_ptr<const BaseModel> model;
  RunPlan plan;
  std::unique_ptr<HoldoutEvaluator> holdout;  // null: none configured
};

// The run that `config` asks for on `model`. InvalidArgument names the field and the limit.
absl::StatusOr<RunPlan> PlanRun(const v1::ServerConfig& config, const BaseModel& model);

// Fields first, then the model, then the holdout, so that what is cheap to find is found at once.
// Codes of the parts; messages name file or field.
absl::StatusOr<RunSetup> SetUpRun(const v1::ServerConfig& config, BaseModels& models, int threads,
                                  Env& env);

// Version 0 of a run that begins: it may take a second file and a minute.
absl::StatusOr<LoraAdapter> MakeVersionZero(const RunSetup& setup, int threads, Env& env);

}  // namespace fedge

#endif  // FEDGE_SERVER_RUN_SETUP_H_
