// A federation in virtual time: how fast each node is, who acts when, and updates that are held
// back until their node has had the time to make them.
//
// Training is computed at once; what takes virtual time is from the assignment to the upload: the
// task's tokens by the node's speed. Messages take none.
#ifndef FEDGE_TOOLS_SIMULATE_TIMELINE_H_
#define FEDGE_TOOLS_SIMULATE_TIMELINE_H_

#include <cstdint>
#include <memory>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "client/federation_link.h"

namespace fedge {

struct SpeedOptions {
  double slow_share = 0;  // of the nodes, rounded, chosen by the seed
  double slow_factor = 10;
  double tokens_per_second = 50;  // of a usual node in training: a phone with a small model
  double spread = 0.25;           // standard deviation of the logarithm of speeds
  uint64_t seed = 0;
};

// Tokens a second of `nodes` nodes.
std::vector<double> DrawSpeeds(const SpeedOptions& options, size_t nodes);

// What happens next: nodes by time, then by the order in which they were added.
class Timeline {
 public:
  struct Event {
    absl::Duration at;
    uint64_t order = 0;
    size_t node = 0;
    bool operator<(const Event& other) const {  // the queue's top is the largest
      return std::pair(other.at, other.order) < std::pair(at, order);
    }
  };
  void Add(absl::Duration at, size_t node) { events_.push({at, ++order_, node}); }
  bool empty() const { return events_.empty(); }
  Event Take() {
    const Event event = events_.top();
    events_.pop();
    return event;
  }

 private:
  std::priority_queue<Event> events_;
  uint64_t order_ = 0;
};

// Between a node and its link: an update goes out only when the node has had its time. Until then
// the participant is told Cancelled, and brings the update with its next step.
class HeldLink : public FederationLink {
 public:
  explicit HeldLink(std::unique_ptr<FederationLink> link) : link_(std::move(link)) {}

  // Whether an update was held back since the last Release.
  bool holds() const { return holds_; }
  void Release() {
    may_upload_ = true;
    holds_ = false;
  }

  absl::StatusOr<v1::CheckInResponse> CheckIn(const v1::CheckInRequest& request) override;
  absl::Status Download(const v1::DownloadRequest& request, const ChunkSink& sink) override {
    return link_->Download(request, sink);
  }
  absl::StatusOr<v1::QueryUploadResponse> QueryUpload(
      const v1::QueryUploadRequest& request) override;
  absl::StatusOr<v1::UploadReceipt> Upload(const v1::UploadId& id, const v1::TaskMetrics& metrics,
                                           absl::string_view bytes, uint64_t offset) override {
    return link_->Upload(id, metrics, bytes, offset);
  }
  absl::Status Report(const v1::ReportRequest& request) override { return link_->Report(request); }

 private:
  const std::unique_ptr<FederationLink> link_;
  bool may_upload_ = true;
  bool holds_ = false;
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_SIMULATE_TIMELINE_H_
