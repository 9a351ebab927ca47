// The server's log of one run: a line a fact, and the same for operators as structured events.
#ifndef FEDGE_SERVER_LOG_EVENTS_H_
#define FEDGE_SERVER_LOG_EVENTS_H_

#include <string>
#include <vector>

#include "fedge/v1/admin.pb.h"
#include "server/server_events.h"

namespace fedge {

class EventLog;

// Thread-safe as far as ServerEvents is.
class LogEvents : public ServerEvents {
 public:
  // `name_run`: lines begin with the run's id. `log` may be null and must outlive this object.
  LogEvents(std::string run_id, bool name_run, EventLog* log)
      : run_id_(std::move(run_id)), name_run_(name_run), log_(log) {}

  // Fills in the run, writes the text down and passes the event on.
  void Add(v1::Event event);

  void OnRoundStarted(uint64_t round, uint64_t base_version,
                      const std::vector<std::string>& cohort) override;
  void OnRoundContinued(const RoundRecord& round, const RoundCounts& counts) override;
  void OnDamage(const std::string& what) override;
  void OnUpdate(const UpdateJudged& update) override;
  void OnTaskFailed(const TaskFailed& failure) override;
  void OnPublished(const VersionRecord& version, const LoraAdapter& adapter) override;
  void OnAbandoned(const RoundAbandoned& round) override;
  void OnEvaluating(uint64_t round, uint64_t version,
                    const std::vector<std::string>& nodes) override;
  void OnRefused(const RefusedRound& round) override;
  void OnEvaluated(uint64_t version, double loss, int64_t tokens) override;
  void OnFinished(uint64_t final_version) override;
  void OnNoRoom(const absl::Status& status) override;
  void OnRoomAgain() override;
  void OnFailed(const absl::Status& status) override;

 private:
  const std::string run_id_;
  const bool name_run_;
  EventLog* const log_;
};

// An event with its kind, level and text.
v1::Event MakeEvent(absl::string_view kind, v1::Event::Level level, absl::string_view text);

}  // namespace fedge

#endif  // FEDGE_SERVER_LOG_EVENTS_H_
