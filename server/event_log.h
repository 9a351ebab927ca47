// The newest events of a server, as operators ask for them (AdminService.Logs). In memory: the
// lines of earlier processes are in the system's log.
#ifndef FEDGE_SERVER_EVENT_LOG_H_
#define FEDGE_SERVER_EVENT_LOG_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "fedge/v1/admin.pb.h"

namespace fedge {

struct EventCount {
  std::string run_id, kind;
  uint64_t count = 0;
};

// Thread-safe.
class EventLog {
 public:
  explicit EventLog(Clock* clock, size_t capacity = 10'000) : clock_(*clock), capacity_(capacity) {}

  // Fills in sequence and time. The oldest event goes when there is no room.
  void Add(v1::Event event);

  // The newest `count` that are of the run and the node of `filter` (empty: of any), oldest first.
  std::vector<v1::Event> Newest(const v1::LogsRequest& filter, size_t count);
  // Those of them behind `sequence`, oldest first; waits up to `timeout` for the next event of any
  // kind.
  std::vector<v1::Event> After(uint64_t sequence, const v1::LogsRequest& filter,
                               absl::Duration timeout);
  uint64_t last_sequence();
  // How many there were of each run and kind, those that are gone included.
  std::vector<EventCount> Counts();

 private:
  static bool Fits(const v1::Event& event, const v1::LogsRequest& filter);

  Clock& clock_;
  const size_t capacity_;
  absl::Mutex mutex_;
  std::deque<v1::Event> events_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::pair<std::string, std::string>, uint64_t> counts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fedge

#endif  // FEDGE_SERVER_EVENT_LOG_H_
