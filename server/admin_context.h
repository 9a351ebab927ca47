// What the methods of AdminService work on. They are functions of their own, one file a subject
// (admin_runs.h, ...), of the form
//
//   absl::StatusOr<v1::RunListResponse> RunList(const AdminContext& context,
//                                               const v1::RunListRequest& request);
//
// and admin_service.cc gives each a line.
#ifndef FEDGE_SERVER_ADMIN_CONTEXT_H_
#define FEDGE_SERVER_ADMIN_CONTEXT_H_

#include <string>

#include "absl/strings/string_view.h"

namespace fedge {

class Directory;
class EventLog;
class Federation;
class Membership;

// Nothing is owned; all are thread-safe.
struct AdminContext {
  Federation* federation = nullptr;  // the runs: Find(run_id) is a run's FederationCore
  Directory* directory = nullptr;    // runs and nodes in the store
  EventLog* events = nullptr;        // what Logs shows
  Membership* membership = nullptr;  // null: the server is insecure
  std::string caller;                // by the operator's certificate; empty: over the socket
};

// Who the audit log names: over the network the certificate's name, over the socket its user's own
// word.
std::string ActorOf(const AdminContext& context, absl::string_view own_word);

}  // namespace fedge

#endif  // FEDGE_SERVER_ADMIN_CONTEXT_H_
