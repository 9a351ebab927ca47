// What one node may ask of the server: requests a minute, uploaded bytes a day, uploads at the same
// time. No clock of its own; what is refused is told when to come again.
//
// Requests and bytes are token buckets: a node may use a whole minute's or day's share at once, and
// gets it back evenly. Nothing is stored: a restart fills all buckets.
#ifndef FEDGE_SERVER_NODE_QUOTA_H_
#define FEDGE_SERVER_NODE_QUOTA_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace fedge {

// 0: no limit.
struct NodeQuotaLimits {
  int64_t requests_per_minute = 6000;
  uint64_t upload_bytes_per_day = 0;
  int64_t open_streams = 4;
  size_t max_nodes = 1'000'000;  // remembered at a time
};

// Not thread-safe. Times are Clock::Monotonic values.
class NodeQuota {
 public:
  explicit NodeQuota(NodeQuotaLimits limits) : limits_(limits) {}

  // Each takes what it grants. ResourceExhausted names node, limit and wait, and takes nothing; the
  // wait is in the error's payload too: RetryAfter.
  absl::Status TakeRequest(absl::string_view node, absl::Duration now);
  absl::Status TakeBytes(absl::string_view node, uint64_t bytes, absl::Duration now);
  absl::Status OpenStream(absl::string_view node, absl::Duration now);
  void CloseStream(absl::string_view node);

  size_t known_nodes() const { return nodes_.size(); }

 private:
  struct Usage {
    double requests = 0;  // used, not yet given back
    double bytes = 0;
    absl::Duration refilled;
    int64_t streams = 0;
  };

  // The node's usage as of `now`; ResourceExhausted when there is no room for another node.
  absl::Status Find(absl::string_view node, absl::Duration now, Usage** usage);
  void Refill(Usage& usage, absl::Duration now) const;
  void ForgetIdle(absl::Duration now);

  const NodeQuotaLimits limits_;
  std::map<std::string, Usage, std::less<>> nodes_;
  absl::Duration next_sweep_;
};

// One quota for all who share it, with a lock and a life of its own: streams may end after the
// server.
struct GuardedQuota {
  explicit GuardedQuota(const NodeQuotaLimits& limits) : quota(limits) {}
  absl::Mutex mutex;
  NodeQuota quota ABSL_GUARDED_BY(mutex);
};

// How long to wait before asking again, from a refusal of NodeQuota; zero for other errors.
absl::Duration RetryAfter(const absl::Status& status);

}  // namespace fedge

#endif  // FEDGE_SERVER_NODE_QUOTA_H_
