// What happens in a run, as log lines an operator reads.
#ifndef FEDGE_SERVER_LOG_EVENTS_H_
#define FEDGE_SERVER_LOG_EVENTS_H_

#include "server/server_events.h"

namespace fedge {

class LogEvents : public ServerEvents {
 public:
  void OnRoundStarted(uint64_t round, uint64_t base_version,
                      const std::vector<std::string>& cohort) override;
  void OnRoundContinued(const RoundRecord& round, const RoundCounts& counts) override;
  void OnDamage(const std::string& what) override;
  void OnUpdate(const UpdateJudged& update) override;  // accepted ones at debug level only
  void OnTaskFailed(const TaskFailed& failure) override;
  void OnPublished(const VersionRecord& version, const LoraAdapter& adapter) override;
  void OnAbandoned(const RoundAbandoned& round) override;
  void OnEvaluated(uint64_t version, double loss, int64_t tokens) override;
  void OnFinished(uint64_t final_version) override;
  void OnNoRoom(const absl::Status& status) override;
  void OnRoomAgain() override;
  void OnFailed(const absl::Status& status) override;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_LOG_EVENTS_H_
