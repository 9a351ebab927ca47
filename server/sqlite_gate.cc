// SqliteStore: rounds that were closed and wait for a verdict on their candidate.
#include <utility>

#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "server/decisions.h"
#include "server/sqlite_store.h"

namespace fedge {

absl::Status SqliteStore::StartEvaluation(absl::string_view run, uint64_t round) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  const auto start = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
    ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
    ASSIGN_OR_RETURN(
        SqliteStatement update,
        db_->Prepare("UPDATE rounds SET state=3 WHERE run_id=? AND round=? AND state=0"));
    RETURN_IF_ERROR(update.Bind(run).Bind(round).Run());
    return FEDGE_FAILPOINT_RUN("store.evaluation.commit", Commit(transaction));
  };
  return Guard(start());
}

absl::Status SqliteStore::RefuseRound(absl::string_view run, const RefusedRound& round) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  const auto refuse = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
    ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
    ASSIGN_OR_RETURN(SqliteStatement known,
                     db_->Prepare("SELECT 1 FROM rounds WHERE run_id=? AND round=? AND state=4"));
    ASSIGN_OR_RETURN(const bool is_refused, known.Bind(run).Bind(round.round).Step());
    if (is_refused) return absl::OkStatus();
    ASSIGN_OR_RETURN(SqliteStatement update,
                     db_->Prepare("UPDATE rounds SET state=4, assigned=?, accepted=?, rejected=?, "
                                  "dropped=?, late=?, reason=?, ended_us=? "
                                  "WHERE run_id=? AND round=?"));
    const RoundCounts& counts = round.counts;
    update.Bind(counts.assigned).Bind(counts.accepted).Bind(counts.rejected).Bind(counts.dropped);
    update.Bind(counts.late).Bind(round.reason).Bind(absl::ToUnixMicros(round.when));
    RETURN_IF_ERROR(update.Bind(run).Bind(round.round).Run());
    RETURN_IF_ERROR(InsertAudit(RefusalEntry(run, round)));
    ASSIGN_OR_RETURN(const std::vector<Digest> gone, GiveUpUpdates(run, 0, round.round + 1));
    RETURN_IF_ERROR(FEDGE_FAILPOINT_RUN("store.refusal.commit", Commit(transaction)));
    return RemoveBlobs(gone);
  };
  return Guard(refuse());
}

}  // namespace fedge
