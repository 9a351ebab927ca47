// SqliteStore: the runs themselves.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "server/decisions.h"
#include "server/sqlite_store.h"

namespace fedge {

absl::string_view RunStateName(RunState state) {
  switch (state) {
    case RunState::kRunning:
      return "running";
    case RunState::kPaused:
      return "paused";
    case RunState::kStopped:
      return "stopped";
    case RunState::kFinished:
      return "finished";
  }
  FEDGE_CHECK(false, "run state ", static_cast<int>(state));
}

absl::Status SqliteStore::CheckSameRun(const RunRecord& run, bool* exists) {
  ASSIGN_OR_RETURN(SqliteStatement find,
                   db_->Prepare("SELECT base_model, layout, seed FROM runs WHERE run_id=?"));
  find.Bind(run.run_id);
  ASSIGN_OR_RETURN(*exists, find.Step());
  if (!*exists) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Digest base_model, find.DigestAt(0));
  ASSIGN_OR_RETURN(const Digest layout, find.DigestAt(1));
  const std::string what = absl::StrCat(options_.dir, ": run '", run.run_id, "' was started with ");
  const absl::string_view remedy = "; take another run.id or state_dir";
  if (base_model != run.base_model) {
    return absl::FailedPreconditionError(absl::StrCat(what, "base model ", base_model.Hex(),
                                                      ", not ", run.base_model.Hex(), remedy));
  }
  if (layout != run.layout) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, "another adapter shape (run.lora)", remedy));
  }
  if (find.Unsigned(2) != run.seed) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, "run.seed ", find.Unsigned(2), ", not ", run.seed, remedy));
  }
  return absl::OkStatus();
}

// A run begins with its version 0: what a crash in between left is not a run.
absl::Status SqliteStore::RemoveUnbornRuns(absl::string_view run) {
  ASSIGN_OR_RETURN(SqliteStatement remove,
                   db_->Prepare("DELETE FROM runs WHERE (?1='' OR run_id=?1) AND "
                                "run_id NOT IN (SELECT run_id FROM versions UNION "
                                "SELECT run_id FROM rounds)"));
  return remove.Bind(run).Run();
}

absl::Status SqliteStore::InsertRun(const RunRecord& run) {
  ASSIGN_OR_RETURN(SqliteStatement insert,
                   db_->Prepare("INSERT INTO runs(run_id, base_model, layout, seed, config, "
                                "created_us, by_operator, parent_run, parent_version) "
                                "VALUES(?,?,?,?,?,?,?,?,?)"));
  insert.Bind(run.run_id).Bind(run.base_model).Bind(run.layout).Bind(run.seed);
  insert.BindBlob(run.config).Bind(absl::ToUnixMicros(run.created));
  insert.Bind(int64_t{run.by_operator}).Bind(run.parent_run);
  run.parent_version ? insert.Bind(*run.parent_version) : insert.BindNull();
  return insert.Run();
}

absl::Status SqliteStore::OpenRun(const RunRecord& run) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
  RETURN_IF_ERROR(Guard(RemoveUnbornRuns(run.run_id)));
  bool exists = false;
  RETURN_IF_ERROR(CheckSameRun(run, &exists));
  if (!exists) {
    RETURN_IF_ERROR(Guard(InsertRun(run)));
  } else {
    ASSIGN_OR_RETURN(SqliteStatement update,
                     db_->Prepare("UPDATE runs SET config=?, by_operator=? WHERE run_id=?"));
    update.BindBlob(run.config).Bind(int64_t{run.by_operator}).Bind(run.run_id);
    RETURN_IF_ERROR(Guard(update.Run()));
  }
  return Guard(FEDGE_FAILPOINT_RUN("store.run.commit", Commit(transaction)));
}

absl::StatusOr<RunState> SqliteStore::GetRunState(absl::string_view run) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteStatement query, db_->Prepare("SELECT state FROM runs WHERE run_id=?"));
  ASSIGN_OR_RETURN(const bool row, query.Bind(run).Step());
  if (!row) return absl::NotFoundError(absl::StrCat(options_.dir, ": no run '", run, "'"));
  return static_cast<RunState>(query.Int(0));
}

absl::Status SqliteStore::SetRunState(absl::string_view run, RunState state,
                                      absl::string_view actor, absl::Time when) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  const auto set = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
    ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
    ASSIGN_OR_RETURN(SqliteStatement update,
                     db_->Prepare("UPDATE runs SET state=?1 WHERE run_id=?2 AND state<>?1 "
                                  "RETURNING run_id"));
    ASSIGN_OR_RETURN(const bool is_change,
                     update.Bind(static_cast<int64_t>(state)).Bind(run).Step());
    if (!is_change) return absl::OkStatus();
    update.Reset();
    RETURN_IF_ERROR(InsertAudit(RunStateEntry(run, state, actor, when)));
    std::vector<Digest> gone;
    if (state == RunState::kStopped || state == RunState::kFinished) {
      ASSIGN_OR_RETURN(const uint64_t last, LastRoundOf(run));
      ASSIGN_OR_RETURN(gone, GiveUpUpdates(run, last + 1, kAllRounds));
    }
    RETURN_IF_ERROR(FEDGE_FAILPOINT_RUN("store.state.commit", Commit(transaction)));
    return RemoveBlobs(gone);
  };
  return Guard(set());
}

absl::StatusOr<std::vector<RunEntry>> SqliteStore::ListRuns() {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteStatement query,
                   db_->Prepare("SELECT run_id, base_model, layout, seed, config, created_us, "
                                "by_operator, parent_run, parent_version, state FROM runs "
                                "WHERE run_id IN (SELECT run_id FROM versions) "
                                "ORDER BY created_us, run_id"));
  std::vector<RunEntry> runs;
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return runs;
    RunEntry& run = runs.emplace_back();
    run.record.run_id = query.Bytes(0);
    ASSIGN_OR_RETURN(run.record.base_model, query.DigestAt(1));
    ASSIGN_OR_RETURN(run.record.layout, query.DigestAt(2));
    run.record.seed = query.Unsigned(3);
    run.record.config = query.Bytes(4);
    run.record.created = absl::FromUnixMicros(query.Int(5));
    run.record.by_operator = query.Int(6) != 0;
    run.record.parent_run = query.Bytes(7);
    if (!query.IsNull(8)) run.record.parent_version = query.Unsigned(8);
    run.state = static_cast<RunState>(query.Int(9));
  }
}

}  // namespace fedge
