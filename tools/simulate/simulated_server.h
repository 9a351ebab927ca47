// The real server in this process: coordinator, store and gRPC service behind an in-process
// channel, on a clock that the simulation moves. What its rounds do comes out as a queue of events.
#ifndef FEDGE_TOOLS_SIMULATE_SIMULATED_SERVER_H_
#define FEDGE_TOOLS_SIMULATE_SIMULATED_SERVER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/federation_link.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "server/candidate_evaluator.h"
#include "server/coordinator.h"
#include "server/quality_gate.h"
#include "server/run_plan.h"

namespace fedge {

// A new global adapter.
struct AdapterPublished {
  uint64_t round = 0;
  uint64_t version = 0;
  RoundCounts counts;
  double aggregation_error = 0;  // relative: server/aggregation.h
  LoraAdapter adapter;           // fp32
};

// A round's result that waits for NoteCandidate, and then for measurements of `nodes`, if any.
struct CandidateWaits {
  CandidateTask task;
  std::vector<std::string> nodes;
};

// It was not good enough: no version comes of the round.
struct RoundRefused {
  uint64_t round = 0;
  RoundCounts counts;
  std::string reason;
};

struct ServerFailed {
  absl::Status status;
};

using SimulationEvent = std::variant<RoundStarted, AdapterPublished, RoundAbandoned, CandidateWaits,
                                     RoundRefused, RunCompleted, ServerFailed>;

class SimulatedServer {
 public:
  // A new run in `state_dir`, which must hold none, with `initial` as version 0. `slices`: the
  // names in what NoteCandidate is told, sorted. `clock` and `env` must outlive this object.
  static absl::StatusOr<std::unique_ptr<SimulatedServer>> Start(const RunPlan& plan,
                                                                const LoraAdapter& initial,
                                                                const std::string& state_dir,
                                                                std::vector<std::string> slices,
                                                                Clock* clock, Env* env);
  ~SimulatedServer();

  // A link over the server's in-process channel. Must not outlive this object.
  std::unique_ptr<FederationLink> MakeLink();

  // The next event, waited for at most `timeout` of real time; nothing when none came.
  std::optional<SimulationEvent> NextEvent(absl::Duration timeout);

  // A version's loss was measured outside: for early stopping.
  void NoteHoldout(uint64_t version, double loss, int64_t tokens);

  // What was measured of the candidate of `round`.
  void NoteCandidate(uint64_t round, const HoldoutMeasurement& measured);

  // The clock was moved: deadlines are looked at.
  void Tick();

 private:
  struct Parts;
  explicit SimulatedServer(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_SIMULATE_SIMULATED_SERVER_H_
