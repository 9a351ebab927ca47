// A whole server from its configuration: plan, store, uploads, core, evaluation, transport.
#ifndef FEDGE_SERVER_FEDERATION_SERVER_H_
#define FEDGE_SERVER_FEDERATION_SERVER_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "common/model/base_model.h"
#include "fedge/v1/config.pb.h"
#include "server/federation_core.h"
#include "server/grpc_server.h"
#include "server/holdout_evaluator.h"
#include "server/membership.h"
#include "server/run_plan.h"

namespace fedge {

struct FederationServerOptions {
  Env* env = Env::Posix();
  Clock* clock = Clock::Real();
  std::vector<ServerEvents*> events;
  int threads = 1;  // of the holdout evaluation
};

// The run that `config` asks for on `model`. InvalidArgument names the field and the limit.
absl::StatusOr<RunPlan> PlanRun(const v1::ServerConfig& config, const BaseModel& model);

// What a `config` would fail with, as far as it can be known without touching the state folder or
// the port: fields, model, holdout.
absl::Status CheckServerConfig(const v1::ServerConfig& config, Env& env);

class FederationServer {
 public:
  // Loads the model, opens the state, listens. Codes of the parts; messages name file or field.
  static absl::StatusOr<std::unique_ptr<FederationServer>> Start(
      const v1::ServerConfig& config, const FederationServerOptions& options);
  ~FederationServer();  // Shutdown(0)

  FederationCore& core() { return *core_; }
  GrpcServer& grpc() { return *grpc_; }
  Membership* membership() { return membership_.get(); }  // null: insecure
  HoldoutEvaluator* holdout() { return holdout_.get(); }  // null: none configured
  const BaseModel& model() const { return *model_; }

  // Ends the transport (see GrpcServer::Shutdown), then the evaluation; the state is stored.
  void Shutdown(absl::Duration grace);

 private:
  FederationServer() = default;

  std::shared_ptr<const BaseModel> model_;
  std::unique_ptr<HoldoutEvaluator> holdout_;  // declared first: the core announces to it
  std::unique_ptr<FederationCore> core_;
  std::unique_ptr<Membership> membership_;
  std::unique_ptr<GrpcServer> grpc_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_FEDERATION_SERVER_H_
