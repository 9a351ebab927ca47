// SqliteStore: the updates of a round, their verdicts and their bytes.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "server/decisions.h"
#include "server/sqlite_store.h"

namespace fedge {
namespace {

constexpr absl::string_view kColumns =
    "node_id, outcome, digest, weight, wire_bytes, reason, metrics, when_us, round, counted";

absl::StatusOr<ParticipationRecord> ReadParticipation(const SqliteStatement& row) {
  ParticipationRecord record;
  record.node_id = row.Bytes(0);
  record.outcome = static_cast<Outcome>(row.Int(1));
  ASSIGN_OR_RETURN(record.digest, row.DigestAt(2));
  record.weight = row.Unsigned(3);
  record.wire_bytes = row.Unsigned(4);
  record.reason = row.Bytes(5);
  record.metrics = row.Bytes(6);
  record.when = absl::FromUnixMicros(row.Int(7));
  record.round = row.Unsigned(8);
  record.counted = row.Unsigned(9);
  return record;
}

}  // namespace

absl::Status SqliteStore::WriteUpdate(const Digest& digest, absl::string_view bytes) {
  {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(CheckUsable());
  }
  const absl::Status status = blobs_.WriteHeld(digest, bytes);
  absl::MutexLock lock(&mutex_);
  return Guard(status);
}

void SqliteStore::DropUpdate(const Digest& digest) {
  absl::MutexLock lock(&mutex_);
  blobs_.Release(digest);
  blobs_.RemoveUnless(digest, IsWanted()).IgnoreError();  // swept at the next start
}

absl::Status SqliteStore::InsertParticipations(absl::string_view run,
                                               absl::Span<const ParticipationRecord> records) {
  ASSIGN_OR_RETURN(
      SqliteStatement insert,
      db_->Prepare("INSERT INTO updates(run_id, round, node_id, outcome, digest, weight, "
                   "wire_bytes, reason, metrics, when_us, stored, counted) "
                   "VALUES(?,?,?,?,?,?,?,?,?,?,?,?) "
                   "ON CONFLICT(run_id, round, node_id) DO UPDATE SET "
                   "outcome=excluded.outcome, digest=excluded.digest, weight=excluded.weight, "
                   "wire_bytes=excluded.wire_bytes, reason=excluded.reason, "
                   "metrics=excluded.metrics, when_us=excluded.when_us, stored=excluded.stored, "
                   "counted=excluded.counted "
                   "WHERE outcome IN (3, 4)"));
  for (const ParticipationRecord& record : records) {
    insert.Bind(run).Bind(record.round).Bind(record.node_id);
    insert.Bind(static_cast<int64_t>(record.outcome)).Bind(record.digest).Bind(record.weight);
    insert.Bind(record.wire_bytes).Bind(record.reason).BindBlob(record.metrics);
    insert.Bind(absl::ToUnixMicros(record.when));
    const bool is_accepted = record.outcome == Outcome::kAccepted;
    insert.Bind(int64_t{is_accepted}).Bind(is_accepted ? record.counted : 0);
    RETURN_IF_ERROR(insert.Run());
    insert.Reset();
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::RecordParticipations(absl::string_view run,
                                               absl::Span<const ParticipationRecord> records) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  const auto record_all = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
    ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
    RETURN_IF_ERROR(InsertParticipations(run, records));
    for (const ParticipationRecord& record : records) {
      if (record.quarantined) RETURN_IF_ERROR(InsertAudit(QuarantineEntry(run, record)));
    }
    return FEDGE_FAILPOINT_RUN("store.updates.commit", Commit(transaction));
  };
  RETURN_IF_ERROR(Guard(record_all()));
  for (const ParticipationRecord& record : records) {
    if (record.outcome == Outcome::kAccepted) blobs_.Release(record.digest);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<ParticipationRecord>> SqliteStore::FindParticipation(
    absl::string_view run, uint64_t round, absl::string_view node) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteStatement query,
                   db_->Prepare(absl::StrCat("SELECT ", kColumns,
                                             " FROM updates WHERE run_id=? AND round=? AND "
                                             "node_id=?")));
  ASSIGN_OR_RETURN(const bool row, query.Bind(run).Bind(round).Bind(node).Step());
  if (!row) return std::optional<ParticipationRecord>();
  ASSIGN_OR_RETURN(ParticipationRecord record, ReadParticipation(query));
  return std::optional<ParticipationRecord>(std::move(record));
}

absl::StatusOr<std::vector<ParticipationRecord>> SqliteStore::QueryParticipations(
    absl::string_view run, uint64_t round, absl::string_view condition) {
  ASSIGN_OR_RETURN(
      SqliteStatement query,
      db_->Prepare(absl::StrCat("SELECT ", kColumns, " FROM updates WHERE run_id=?1 AND ",
                                condition, " ORDER BY round, node_id")));
  query.Bind(run).Bind(round);
  std::vector<ParticipationRecord> records;
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return records;
    ASSIGN_OR_RETURN(ParticipationRecord record, ReadParticipation(query));
    records.push_back(std::move(record));
  }
}

absl::StatusOr<std::vector<ParticipationRecord>> SqliteStore::ListParticipations(
    absl::string_view run, uint64_t round) {
  absl::MutexLock lock(&mutex_);
  return QueryParticipations(run, round, "round=?2");
}

absl::StatusOr<std::vector<ParticipationRecord>> SqliteStore::ListFolded(absl::string_view run,
                                                                         uint64_t round) {
  absl::MutexLock lock(&mutex_);
  return QueryParticipations(run, round, "counted=?2 AND counted<>round AND stored=1");
}

absl::Status SqliteStore::WithdrawParticipation(absl::string_view run, uint64_t round,
                                                absl::string_view node) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  const auto withdraw = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
    ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
    ASSIGN_OR_RETURN(SqliteStatement remove,
                     db_->Prepare("DELETE FROM updates WHERE run_id=? AND round=? AND node_id=?"));
    RETURN_IF_ERROR(remove.Bind(run).Bind(round).Bind(node).Run());
    return FEDGE_FAILPOINT_RUN("store.withdraw.commit", Commit(transaction));
  };
  return Guard(withdraw());
}

absl::StatusOr<std::vector<Digest>> SqliteStore::GiveUpUpdates(absl::string_view run,
                                                               uint64_t first, uint64_t end) {
  std::vector<Digest> gone;
  ASSIGN_OR_RETURN(SqliteStatement mark,
                   db_->Prepare("UPDATE updates SET stored=0 WHERE run_id=? AND counted>=? AND "
                                "counted<? AND stored=1 RETURNING digest"));
  mark.Bind(run).Bind(first).Bind(end);
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, mark.Step());
    if (!row) return gone;
    ASSIGN_OR_RETURN(const Digest digest, mark.DigestAt(0));
    gone.push_back(digest);
  }
}

absl::Status SqliteStore::RecordMetrics(absl::string_view run, uint64_t round,
                                        absl::string_view node, absl::string_view metrics) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  ASSIGN_OR_RETURN(SqliteStatement update,
                   db_->Prepare("UPDATE updates SET metrics=? WHERE run_id=? AND round=? AND "
                                "node_id=? AND length(metrics)=0"));
  return Guard(update.BindBlob(metrics).Bind(run).Bind(round).Bind(node).Run());
}

}  // namespace fedge
