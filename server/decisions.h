// The audit log's entries about versions and nodes: what of a decision is on record.
#ifndef FEDGE_SERVER_DECISIONS_H_
#define FEDGE_SERVER_DECISIONS_H_

#include "absl/strings/string_view.h"
#include "server/audit_log.h"
#include "server/store.h"

namespace fedge {

// "start" (version 0), "publish", "promote", "rollback", or "restore" (what damage made necessary),
// with the version, its manifest's hash and what the gate measured.
AuditEntry PublicationEntry(absl::string_view run, const VersionRecord& version);
// "refuse".
AuditEntry RefusalEntry(absl::string_view run, const RefusedRound& round);
// "pause", "resume" and "stop" by an operator, "finish" by the server.
AuditEntry RunStateEntry(absl::string_view run, RunState state, absl::string_view actor,
                         absl::Time when);
// "quarantine".
AuditEntry QuarantineEntry(absl::string_view run, const ParticipationRecord& record);

}  // namespace fedge

#endif  // FEDGE_SERVER_DECISIONS_H_
