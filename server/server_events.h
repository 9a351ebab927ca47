// What a server tells whoever watches it: logs, the simulator, the tests.
#ifndef FEDGE_SERVER_SERVER_EVENTS_H_
#define FEDGE_SERVER_SERVER_EVENTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/adapter/lora_adapter.h"
#include "server/coordinator.h"
#include "server/store.h"

namespace fedge {

// Calls come one at a time, in the order of what happened, from the server's threads, after the
// fact was stored. A callback must return soon (no training, no RPC) and must not call the
// FederationCore.
class ServerEvents {
 public:
  virtual ~ServerEvents() = default;

  // `cohort` is sorted.
  virtual void OnRoundStarted(uint64_t /*round*/, uint64_t /*base_version*/,
                              const std::vector<std::string>& /*cohort*/) {}
  // A node joined a round after its start.
  virtual void OnAssigned(uint64_t /*round*/, const std::string& /*node*/) {}
  // A round that was open when the server stopped goes on with `counts`.
  virtual void OnRoundContinued(const RoundRecord& /*round*/, const RoundCounts& /*counts*/) {}
  // Something stored is damaged; `what` says what, where, and what became of it: one line.
  virtual void OnDamage(const std::string& /*what*/) {}
  // Once a node and round. `update.reason` is one line without control characters.
  virtual void OnUpdate(const UpdateJudged& /*update*/) {}
  virtual void OnTaskFailed(const TaskFailed& /*failure*/) {}
  // `adapter` is what devices hold at that version.
  virtual void OnPublished(const VersionRecord& /*version*/, const LoraAdapter& /*adapter*/) {}
  virtual void OnAbandoned(const RoundAbandoned& /*round*/) {}
  // A candidate waits for what the server's data and sampled nodes say of it.
  virtual void OnEvaluating(uint64_t /*round*/, uint64_t /*version*/,
                            const std::vector<std::string>& /*nodes*/) {}
  virtual void OnRefused(const RefusedRound& /*round*/) {}
  // Server-side loss of a version over `tokens` held-out tokens, nats a token.
  virtual void OnEvaluated(uint64_t /*version*/, double /*loss*/, int64_t /*tokens*/) {}
  virtual void OnFinished(uint64_t /*final_version*/) {}
  // The disk is full: nothing is acknowledged until OnRoomAgain.
  virtual void OnNoRoom(const absl::Status& /*status*/) {}
  virtual void OnRoomAgain() {}
  // The store failed: nothing is accepted or served any more; the process must be restarted.
  virtual void OnFailed(const absl::Status& /*status*/) {}
};

}  // namespace fedge

#endif  // FEDGE_SERVER_SERVER_EVENTS_H_
