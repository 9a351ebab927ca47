// The record of decisions: what was published, refused or rolled back, who was quarantined, who did
// what to a run. Append-only; each record holds the SHA-256 of the one before, so that nobody
// changes, removes or inserts one later without all that follow being made anew.
//
// What a chain cannot show is that its end is cut off: VerifyPublished is told the versions there
// are, each of which has a record.
#ifndef FEDGE_SERVER_AUDIT_LOG_H_
#define FEDGE_SERVER_AUDIT_LOG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/base/digest.h"

namespace fedge {

inline constexpr char kServerActor[] = "server";
inline constexpr char kAnOperator[] = "operator";  // who did not say who

struct AuditEntry {
  absl::Time when;
  std::string run_id;  // empty: about the server
  std::string actor = kServerActor;
  std::string action;         // "publish", "refuse", "rollback", "promote", "quarantine", ...
  std::string detail = "{}";  // a JSON object
};

struct AuditRecord {
  uint64_t number = 0;  // from 1, without gaps
  AuditEntry entry;     // its time in whole microseconds
  Digest previous;      // hash of the record before; zeros: the first
  Digest hash;
};

// Thread-safe. Where a decision changes what is stored, its record is written in the same
// transaction (server/store.h); this is for all others.
class AuditLog {
 public:
  virtual ~AuditLog() = default;
  // Durable when it returns OK. Codes of Store.
  virtual absl::Status AppendAudit(const AuditEntry& entry) = 0;
  // Records behind number `after`, at most `limit`.
  virtual absl::StatusOr<std::vector<AuditRecord>> ListAudit(uint64_t after, uint64_t limit) = 0;
  // All records of an action, oldest first.
  virtual absl::StatusOr<std::vector<AuditRecord>> ListAuditOf(absl::string_view action) = 0;
};

// The record that follows `last` (number 0: none does).
AuditRecord NextAuditRecord(const AuditRecord& last, AuditEntry entry);
// SHA-256 over all fields but itself, each with its length.
Digest AuditHash(const AuditRecord& record);
// Checks that `records` follow `last` (number 0: they are the first). DataLoss names the first that
// does not, and what is wrong with it.
absl::Status VerifyAudit(const AuditRecord& last, absl::Span<const AuditRecord> records);

struct PublishedVersion {
  std::string run_id;
  uint64_t version = 0;
  Digest manifest;
};
// Checks that each of `versions` is in the log as what it is. DataLoss names the first that is not.
absl::Status VerifyPublished(absl::Span<const AuditRecord> log,
                             absl::Span<const PublishedVersion> versions);

}  // namespace fedge

#endif  // FEDGE_SERVER_AUDIT_LOG_H_
