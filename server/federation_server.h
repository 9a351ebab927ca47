// A whole server from its configuration: runs, transport for devices, transport for operators.
#ifndef FEDGE_SERVER_FEDERATION_SERVER_H_
#define FEDGE_SERVER_FEDERATION_SERVER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "fedge/v1/config.pb.h"
#include "server/event_log.h"
#include "server/federation.h"
#include "server/grpc_admin.h"
#include "server/grpc_server.h"
#include "server/membership.h"
#include "server/metrics_listener.h"

namespace fedge {

struct FederationServerOptions {
  Env* env = Env::Posix();
  Clock* clock = Clock::Real();
  std::vector<ServerEvents*> events;  // of every run
  int threads = 1;                    // of the holdout evaluation
};

// What a `config` would fail with, as far as it can be known without touching the state folder or
// the port: fields, model, holdout.
absl::Status CheckServerConfig(const v1::ServerConfig& config, Env& env);

class FederationServer {
 public:
  // Loads the models, opens the state, listens. Codes of the parts; messages name file or field.
  static absl::StatusOr<std::unique_ptr<FederationServer>> Start(
      const v1::ServerConfig& config, const FederationServerOptions& options);
  ~FederationServer();  // Shutdown(0)

  Federation& federation() { return *federation_; }
  // The run of the configuration, which must have one.
  FederationCore& core() { return *federation_->configured(); }
  HoldoutEvaluator* holdout() { return federation_->holdout(core().plan().run_id); }
  const BaseModel& model() const { return *federation_->model(core_id_); }
  GrpcServer& grpc() { return *grpc_; }
  Membership* membership() { return membership_.get(); }  // null: insecure
  // Where operators are served; empty: nowhere.
  const std::string& admin_address() const { return admin_address_; }
  int admin_tcp_port() const { return admin_tcp_ == nullptr ? 0 : admin_tcp_->port(); }  // 0: none
  int metrics_port() const { return metrics_ == nullptr ? 0 : metrics_->port(); }  // 0: nowhere

  // Ends the transports (see GrpcServer::Shutdown), then evaluations; the state is stored.
  void Shutdown(absl::Duration grace);

 private:
  explicit FederationServer(Clock* clock) : events_(clock) {}
  AdminContext MakeAdminContext();
  absl::Status ListenForOperators(const v1::ServerConfig& config);
  absl::Status ListenForMetrics(const v1::ServerConfig& config);

  EventLog events_;
  std::unique_ptr<Federation> federation_;
  std::string core_id_;
  std::unique_ptr<Membership> membership_;
  std::unique_ptr<GrpcServer> grpc_;
  std::string admin_address_;
  std::unique_ptr<GrpcAdmin> admin_, admin_tcp_;
  std::unique_ptr<MetricsListener> metrics_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_FEDERATION_SERVER_H_
