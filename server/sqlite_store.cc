// Opening, rounds. Runs: sqlite_runs.cc; versions: sqlite_versions.cc; updates: sqlite_updates.cc;
// nodes: sqlite_nodes.cc.
#include "server/sqlite_store.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "server/sqlite_schema.h"

namespace fedge {

absl::StatusOr<std::unique_ptr<SqliteStore>> SqliteStore::Open(const SqliteStoreOptions& options,
                                                               Env& env) {
  FEDGE_CHECK(options.keep_versions >= 2);
  std::unique_ptr<SqliteStore> store(new SqliteStore(options, env));
  RETURN_IF_ERROR(store->blobs_.Create());
  const std::string path = options.in_memory ? ":memory:" : JoinPath(options.dir, "fedge.db");
  absl::MutexLock lock(&store->mutex_);
  ASSIGN_OR_RETURN(store->db_, SqliteDb::Open(path));
  RETURN_IF_ERROR(store->db_->QuickCheck());
  RETURN_IF_ERROR(PrepareSchema(*store->db_, path));
  RETURN_IF_ERROR(store->RemoveUnbornRuns(""));
  // A crash leaves blobs without a row, or rows that gave up their blobs before these went.
  RETURN_IF_ERROR(store->blobs_.Sweep(store->IsWanted()));
  return store;
}

absl::Status SqliteStore::Guard(absl::Status status) {
  if (status.ok() || absl::IsResourceExhausted(status) || !failed_.ok()) return status;
  failed_ = status;
  db_->KeepLog();
  return status;
}

absl::Status SqliteStore::CheckUsable() const {
  if (failed_.ok()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the store failed earlier and must be reopened: ", failed_.message()));
}

absl::Status SqliteStore::Commit(SqliteTransaction& transaction) {
  RETURN_IF_ERROR(transaction.Commit());
  return db_->CheckpointIfLarge();
}

absl::StatusOr<uint64_t> SqliteStore::LastRound(absl::string_view run) {
  absl::MutexLock lock(&mutex_);
  return LastRoundOf(run);
}

absl::StatusOr<uint64_t> SqliteStore::LastRoundOf(absl::string_view run) {
  ASSIGN_OR_RETURN(SqliteStatement query,
                   db_->Prepare("SELECT coalesce(max(round), 0) FROM rounds WHERE run_id=?"));
  ASSIGN_OR_RETURN(const bool row, query.Bind(run).Step());
  return row ? query.Unsigned(0) : 0;
}

absl::StatusOr<std::vector<RoundRecord>> SqliteStore::QueryRounds(absl::string_view run,
                                                                  absl::string_view condition) {
  ASSIGN_OR_RETURN(SqliteStatement find,
                   db_->Prepare(absl::StrCat(
                       "SELECT round, base_version, attempt, started_us, state FROM rounds "
                       "WHERE run_id=? AND ",
                       condition)));
  find.Bind(run);
  std::vector<RoundRecord> rounds;
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, find.Step());
    if (!row) break;
    RoundRecord& round = rounds.emplace_back();
    round.round = find.Unsigned(0);
    round.base_version = find.Unsigned(1);
    round.attempt = find.Unsigned(2);
    round.started = absl::FromUnixMicros(find.Int(3));
    round.closed = find.Int(4) == 3;
  }
  ASSIGN_OR_RETURN(SqliteStatement members,
                   db_->Prepare("SELECT node_id FROM members WHERE run_id=? AND round=? "
                                "ORDER BY node_id"));
  for (RoundRecord& round : rounds) {
    members.Bind(run).Bind(round.round);
    for (;;) {
      ASSIGN_OR_RETURN(const bool member, members.Step());
      if (!member) break;
      round.cohort.push_back(members.Bytes(0));
    }
    members.Reset();
  }
  return rounds;
}

absl::StatusOr<std::optional<RoundRecord>> SqliteStore::FindRound(absl::string_view run,
                                                                  absl::string_view condition) {
  ASSIGN_OR_RETURN(std::vector<RoundRecord> rounds,
                   QueryRounds(run, absl::StrCat(condition, " LIMIT 1")));
  if (rounds.empty()) return std::optional<RoundRecord>();
  return std::optional<RoundRecord>(std::move(rounds.front()));
}

absl::StatusOr<std::vector<RoundRecord>> SqliteStore::ListRounds(absl::string_view run,
                                                                 uint64_t first_version) {
  absl::MutexLock lock(&mutex_);
  return QueryRounds(run, absl::StrCat("base_version>=", first_version, " ORDER BY round"));
}

absl::Status SqliteStore::InsertMembers(absl::string_view run, uint64_t round,
                                        absl::Span<const std::string> nodes) {
  ASSIGN_OR_RETURN(SqliteStatement member,
                   db_->Prepare("INSERT OR IGNORE INTO members VALUES(?,?,?)"));
  for (const std::string& node : nodes) {
    RETURN_IF_ERROR(member.Bind(run).Bind(round).Bind(node).Run());
    member.Reset();
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::AddMembers(absl::string_view run, uint64_t round,
                                     absl::Span<const std::string> nodes) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  const auto add = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
    ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
    RETURN_IF_ERROR(InsertMembers(run, round, nodes));
    return FEDGE_FAILPOINT_RUN("store.members.commit", Commit(transaction));
  };
  return Guard(add());
}

absl::Status SqliteStore::InsertRound(absl::string_view run, const RoundRecord& round) {
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
  {
    ASSIGN_OR_RETURN(SqliteStatement insert,
                     db_->Prepare("INSERT INTO rounds(run_id, round, base_version, state, "
                                  "started_us) VALUES(?,?,?,0,?)"));
    insert.Bind(run).Bind(round.round).Bind(round.base_version);
    RETURN_IF_ERROR(insert.Bind(absl::ToUnixMicros(round.started)).Run());
    RETURN_IF_ERROR(InsertMembers(run, round.round, round.cohort));
  }
  return FEDGE_FAILPOINT_RUN("store.round.commit", Commit(transaction));
}

absl::Status SqliteStore::StartRound(absl::string_view run, const RoundRecord& round) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  ASSIGN_OR_RETURN(const std::optional<RoundRecord> known,
                   FindRound(run, absl::StrCat("round=", round.round)));
  if (!known) return Guard(InsertRound(run, round));
  if (known->base_version == round.base_version && known->cohort == round.cohort) {
    return absl::OkStatus();
  }
  return Guard(absl::FailedPreconditionError(
      absl::StrCat(options_.dir, ": round ", round.round, " of run '", run, "' exists already")));
}

absl::StatusOr<std::optional<RoundRecord>> SqliteStore::ContinueRound(absl::string_view run) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  ASSIGN_OR_RETURN(std::optional<RoundRecord> round,
                   FindRound(run, "state IN (0, 3) ORDER BY round DESC"));
  if (!round) return round;
  ++round->attempt;
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
  ASSIGN_OR_RETURN(SqliteStatement update,
                   db_->Prepare("UPDATE rounds SET attempt=? WHERE run_id=? AND round=?"));
  RETURN_IF_ERROR(Guard(update.Bind(round->attempt).Bind(run).Bind(round->round).Run()));
  RETURN_IF_ERROR(Guard(FEDGE_FAILPOINT_RUN("store.attempt.commit", Commit(transaction))));
  return round;
}

absl::Status SqliteStore::AbandonRound(absl::string_view run, const RoundAbandoned& round,
                                       absl::Time when) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  const auto abandon = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
    ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
    ASSIGN_OR_RETURN(SqliteStatement update,
                     db_->Prepare("UPDATE rounds SET state=2, assigned=?, accepted=?, rejected=?, "
                                  "dropped=?, late=?, reason=?, ended_us=? "
                                  "WHERE run_id=? AND round=? AND state IN (0, 3)"));
    const RoundCounts& counts = round.counts;
    update.Bind(counts.assigned).Bind(counts.accepted).Bind(counts.rejected).Bind(counts.dropped);
    update.Bind(counts.late).Bind(round.reason).Bind(absl::ToUnixMicros(when));
    RETURN_IF_ERROR(update.Bind(run).Bind(round.round).Run());
    if (round.carried) {
      ASSIGN_OR_RETURN(SqliteStatement carry,
                       db_->Prepare("UPDATE updates SET counted=?2+1 "
                                    "WHERE run_id=?1 AND counted=?2 AND stored=1"));
      RETURN_IF_ERROR(carry.Bind(run).Bind(round.round).Run());
    }
    ASSIGN_OR_RETURN(const std::vector<Digest> gone, GiveUpUpdates(run, 0, round.round + 1));
    RETURN_IF_ERROR(FEDGE_FAILPOINT_RUN("store.abandon.commit", Commit(transaction)));
    return RemoveBlobs(gone);
  };
  return Guard(abandon());
}

absl::StatusOr<bool> SqliteStore::IsServed(absl::string_view run, const Digest& digest) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(
      SqliteStatement query,
      db_->Prepare("SELECT 1 FROM versions WHERE encoded=? AND run_id=? AND pruned=0 LIMIT 1"));
  return query.Bind(digest).Bind(run).Step();
}

}  // namespace fedge
