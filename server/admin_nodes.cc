#include "server/admin_nodes.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "server/federation.h"

namespace fedge {
namespace {

constexpr uint64_t kDefaultNodes = 1000;
constexpr uint64_t kMaxNodes = 10'000;  // a message's size
constexpr uint64_t kShownTasks = 20;

absl::string_view OutcomeName(Outcome outcome) {
  switch (outcome) {
    case Outcome::kAccepted:
      return "accepted";
    case Outcome::kRejected:
      return "rejected";
    case Outcome::kLate:
      return "late";
    case Outcome::kFailed:
      return "failed";
  }
  return "unknown";
}

// Devices that checked in a moment ago are in memory until then.
void StoreWhatIsKnown(const AdminContext& context) { context.federation->Flush(); }

v1::NodeInfo InfoOf(const AdminContext& context, const NodeEntry& node) {
  v1::NodeInfo info;
  info.set_node_id(node.record.node_id);
  info.set_first_seen_us(absl::ToUnixMicros(node.first_seen));
  info.set_last_seen_us(absl::ToUnixMicros(node.record.last_seen));
  info.mutable_device()->ParseFromString(node.record.device);
  info.set_accepted(node.accepted);
  info.set_rejected(node.rejected);
  info.set_late(node.late);
  info.set_failed(node.failed);
  info.set_update_bytes(node.update_bytes);
  info.set_quarantined(context.federation->QuarantineReason(node.record.node_id));
  return info;
}

}  // namespace

absl::StatusOr<v1::NodeListResponse> NodeList(const AdminContext& context,
                                              const v1::NodeListRequest& request) {
  StoreWhatIsKnown(context);
  const uint64_t limit =
      request.limit() == 0 ? kDefaultNodes : std::min<uint64_t>(request.limit(), kMaxNodes);
  ASSIGN_OR_RETURN(const std::vector<NodeEntry> nodes,
                   context.directory->ListNodes(request.after(), limit));
  v1::NodeListResponse response;
  for (const NodeEntry& node : nodes) *response.add_nodes() = InfoOf(context, node);
  ASSIGN_OR_RETURN(const uint64_t total, context.federation->store().CountNodes());
  response.set_total(total);
  return response;
}

absl::StatusOr<v1::NodeShowResponse> NodeShow(const AdminContext& context,
                                              const v1::NodeShowRequest& request) {
  StoreWhatIsKnown(context);
  ASSIGN_OR_RETURN(const NodeEntry node, context.directory->FindNode(request.node_id()));
  ASSIGN_OR_RETURN(const std::vector<NodeTaskEntry> tasks,
                   context.directory->ListNodeTasks(request.node_id(), kShownTasks));
  v1::NodeShowResponse response;
  *response.mutable_node() = InfoOf(context, node);
  for (const NodeTaskEntry& task : tasks) {
    v1::NodeTask& shown = *response.add_tasks();
    shown.set_run_id(task.run_id);
    shown.set_round(task.record.round);
    shown.set_outcome(std::string(OutcomeName(task.record.outcome)));
    shown.set_reason(task.record.reason);
    shown.set_weight(task.record.weight);
    shown.set_update_bytes(task.record.wire_bytes);
    shown.set_when_us(absl::ToUnixMicros(task.record.when));
    shown.mutable_metrics()->ParseFromString(task.record.metrics);
  }
  return response;
}

}  // namespace fedge
