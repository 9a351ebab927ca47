// A server's log of decisions, checked on the operator's side: a server that was tampered with
// would say that all is well.
#ifndef FEDGE_TOOLS_FEDGE_AUDIT_REPORT_H_
#define FEDGE_TOOLS_FEDGE_AUDIT_REPORT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fedge/v1/admin.pb.h"
#include "tools/fedge/grpc_admin_link.h"

namespace fedge {

struct AuditReport {
  std::vector<v1::AuditRecordProto> records;  // of all runs, oldest first
  size_t num_versions = 0;                    // that must be on record, and were looked for
  std::string head;                           // hash of the newest record, hexadecimal
  // DataLoss: the first record that was changed, or the first version that has none.
  absl::Status verdict;
};

// Versions are those of `only_run`; empty: of all runs. Codes of AdminLink.
absl::StatusOr<AuditReport> FetchAudit(AdminLink& link, const std::string& only_run);

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_AUDIT_REPORT_H_
