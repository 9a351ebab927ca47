// Patience over a link: every call is repeated with growing, jittered pauses while that can help;
// content goes on where it broke off and is checked before it is handed out.
//
// Not a transport (client/federation_link.h) and not the task (client/participant.h).
#ifndef FEDGE_CLIENT_TRANSFER_H_
#define FEDGE_CLIENT_TRANSFER_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/federation_link.h"
#include "common/base/clock.h"
#include "common/base/rng.h"

namespace fedge {

// Pause k (from 0) is d = min(first_pause * 2^k, longest_pause), give or take a uniform half of it
// (proto/PROTOCOL.md). An attempt that moved content forward starts the count anew.
struct RetryPolicy {
  int max_attempts = 4;
  absl::Duration first_pause = absl::Seconds(1);
  absl::Duration longest_pause = absl::Seconds(60);
};

// True for what may pass by itself: Unavailable, DeadlineExceeded, Aborted, ResourceExhausted.
bool IsRetryable(const absl::Status& status);

// Not thread-safe; one per participant. Never returns content that was not checked.
class Transfer {
 public:
  // `link` and `clock` must outlive this object. `stopping` (may be empty) is asked before each
  // pause: true ends the call with Cancelled.
  Transfer(FederationLink* link, Clock* clock, const RetryPolicy& policy, uint64_t seed,
           std::function<bool()> stopping = nullptr);

  absl::StatusOr<v1::CheckInResponse> CheckIn(const v1::CheckInRequest& request);

  // The content `ref` names, whole, with the right SHA-256. InvalidArgument: the reference is
  // malformed or names more than `max_bytes`. DataLoss: it came damaged time and again.
  absl::StatusOr<std::string> Fetch(const std::string& node_id, const v1::ContentRef& ref,
                                    uint64_t max_bytes);

  // Brings `bytes` and the task's metrics to the server and returns its verdict (never
  // VERDICT_UNSPECIFIED). Repeating it is safe: the server counts an update once and answers a
  // repetition with the first verdict.
  absl::StatusOr<v1::UploadReceipt> Submit(const v1::UploadId& id, const v1::TaskMetrics& metrics,
                                           absl::string_view bytes);

  absl::Status Report(const v1::ReportRequest& request);

 private:
  // Runs `attempt` until it succeeds, fails for good or the attempts are used up. `attempt` sets
  // its argument when it moved content forward.
  absl::Status Retry(const std::function<absl::Status(bool* progressed)>& attempt);
  absl::Status FetchOnce(const v1::DownloadRequest& request, uint64_t size, std::string* content);

  FederationLink* link_;
  Clock* clock_;
  RetryPolicy policy_;
  Rng rng_;
  std::function<bool()> stopping_;
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_TRANSFER_H_
