// SqliteStore: the chain of decisions.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "server/sqlite_store.h"

namespace fedge {
namespace {

absl::StatusOr<AuditRecord> ReadAudit(const SqliteStatement& row) {
  AuditRecord record;
  record.number = row.Unsigned(0);
  record.entry.when = absl::FromUnixMicros(row.Int(1));
  record.entry.run_id = row.Bytes(2);
  record.entry.actor = row.Bytes(3);
  record.entry.action = row.Bytes(4);
  record.entry.detail = row.Bytes(5);
  ASSIGN_OR_RETURN(record.previous, row.DigestAt(6));
  ASSIGN_OR_RETURN(record.hash, row.DigestAt(7));
  return record;
}

// `query` is prepared and bound.
absl::StatusOr<std::vector<AuditRecord>> ReadAll(SqliteStatement& query) {
  std::vector<AuditRecord> records;
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return records;
    ASSIGN_OR_RETURN(AuditRecord record, ReadAudit(query));
    records.push_back(std::move(record));
  }
}

constexpr absl::string_view kSelect =
    "SELECT number, when_us, run_id, actor, action, detail, previous, hash FROM audit ";

}  // namespace

absl::Status SqliteStore::InsertAudit(const AuditEntry& entry) {
  ASSIGN_OR_RETURN(SqliteStatement newest,
                   db_->Prepare(absl::StrCat(kSelect, "ORDER BY number DESC LIMIT 1")));
  ASSIGN_OR_RETURN(const std::vector<AuditRecord> last, ReadAll(newest));
  const AuditRecord record = NextAuditRecord(last.empty() ? AuditRecord() : last.front(), entry);
  ASSIGN_OR_RETURN(SqliteStatement insert,
                   db_->Prepare("INSERT INTO audit VALUES(?,?,?,?,?,?,?,?)"));
  insert.Bind(record.number).Bind(absl::ToUnixMicros(record.entry.when)).Bind(record.entry.run_id);
  insert.Bind(record.entry.actor).Bind(record.entry.action).Bind(record.entry.detail);
  return insert.Bind(record.previous).Bind(record.hash).Run();
}

absl::Status SqliteStore::AppendAudit(const AuditEntry& entry) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  const auto append = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
    ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
    RETURN_IF_ERROR(InsertAudit(entry));
    return FEDGE_FAILPOINT_RUN("store.audit.commit", Commit(transaction));
  };
  return Guard(append());
}

absl::StatusOr<std::vector<AuditRecord>> SqliteStore::ListAudit(uint64_t after, uint64_t limit) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteStatement query,
                   db_->Prepare(absl::StrCat(kSelect, "WHERE number>? ORDER BY number LIMIT ?")));
  query.Bind(after).Bind(limit);
  return ReadAll(query);
}

absl::StatusOr<std::vector<AuditRecord>> SqliteStore::ListAuditOf(absl::string_view action) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteStatement query,
                   db_->Prepare(absl::StrCat(kSelect, "WHERE action=? ORDER BY number")));
  query.Bind(action);
  return ReadAll(query);
}

}  // namespace fedge
