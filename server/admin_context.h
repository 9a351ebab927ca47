// What the methods of AdminService work on. They are functions of their own, one file a subject
// (admin_runs.h, ...), of the form
//
//   absl::StatusOr<v1::RunListResponse> RunList(const AdminContext& context,
//                                               const v1::RunListRequest& request);
//
// and admin_service.cc gives each a line.
#ifndef FEDGE_SERVER_ADMIN_CONTEXT_H_
#define FEDGE_SERVER_ADMIN_CONTEXT_H_

namespace fedge {

class Federation;
class EventLog;
class Store;

// Nothing is owned; all are thread-safe.
struct AdminContext {
  Federation* federation = nullptr;  // the runs: Find(run_id) is a run's FederationCore
  Store* store = nullptr;
  EventLog* events = nullptr;  // what Logs shows
};

}  // namespace fedge

#endif  // FEDGE_SERVER_ADMIN_CONTEXT_H_
