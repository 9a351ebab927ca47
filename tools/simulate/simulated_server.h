// The real server in this process: coordinator, store and gRPC service behind an in-process
// channel, on a clock that the simulation moves. What its rounds do comes out as a queue of events.
#ifndef FEDGE_TOOLS_SIMULATE_SIMULATED_SERVER_H_
#define FEDGE_TOOLS_SIMULATE_SIMULATED_SERVER_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "client/federation_link.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "common/model/base_model.h"
#include "fedge/v1/config.pb.h"
#include "server/coordinator.h"

namespace fedge {

class SimulatedServer {
 public:
  // State goes to config.state_dir. `clock` and `env` must outlive this object.
  static absl::StatusOr<std::unique_ptr<SimulatedServer>> Start(
      const v1::ServerConfig& config, std::shared_ptr<const BaseModel> base, Clock* clock,
      Env* env);
  ~SimulatedServer();

  // A link over the server's in-process channel. Must not outlive this object.
  std::unique_ptr<FederationLink> MakeLink(const std::string& node_id);

  // The next event, waited for at most `timeout` of real time; nothing when none came.
  std::optional<CoordinatorAction> NextEvent(absl::Duration timeout);

  struct Parts;

 private:
  explicit SimulatedServer(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_SIMULATE_SIMULATED_SERVER_H_
