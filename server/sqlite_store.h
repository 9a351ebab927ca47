// The Store of one machine: a SQLite database and a folder of blobs named by their SHA-256.
#ifndef FEDGE_SERVER_SQLITE_STORE_H_
#define FEDGE_SERVER_SQLITE_STORE_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/env.h"
#include "server/blob_folder.h"
#include "server/directory.h"
#include "server/sqlite_db.h"
#include "server/store.h"

namespace fedge {

struct SqliteStoreOptions {
  std::string dir;              // fedge.db and blobs/; made when absent
  bool in_memory = false;       // the database lives in memory, blobs go to `dir` but not to disk:
                                // nothing is promised over a crash
  uint64_t keep_versions = 16;  // newest versions of a run whose blobs are kept, at least 2
};

// One mutex around the connection: SQLite writes one at a time anyway. It is held during disk I/O
// (but that of WriteUpdate), which is why no other lock of the server may be held around a call.
class SqliteStore : public Store, public Directory {
 public:
  // DataLoss: damaged database (every page is read). FailedPrecondition: in use, or made by a newer
  // version. Also the codes of Env and SqliteDb. Blobs that no row names are removed. `env` must
  // outlive the store.
  static absl::StatusOr<std::unique_ptr<SqliteStore>> Open(const SqliteStoreOptions& options,
                                                           Env& env);

  absl::Status OpenRun(const RunRecord& run) override;
  absl::StatusOr<RunState> GetRunState(absl::string_view run) override;
  absl::Status SetRunState(absl::string_view run, RunState state, absl::string_view actor,
                           absl::Time when) override;
  absl::StatusOr<std::optional<VersionRecord>> LatestVersion(absl::string_view run) override;
  absl::StatusOr<std::vector<VersionRecord>> ListVersions(absl::string_view run) override;
  absl::StatusOr<uint64_t> LastRound(absl::string_view run) override;
  absl::Status StartRound(absl::string_view run, const RoundRecord& round) override;
  absl::Status AddMembers(absl::string_view run, uint64_t round,
                          absl::Span<const std::string> nodes) override;
  absl::StatusOr<std::vector<RoundRecord>> ListRounds(absl::string_view run,
                                                      uint64_t first_version) override;
  absl::StatusOr<std::optional<RoundRecord>> ContinueRound(absl::string_view run) override;
  absl::Status AbandonRound(absl::string_view run, const RoundAbandoned& round,
                            absl::Time when) override;
  absl::Status StartEvaluation(absl::string_view run, uint64_t round) override;
  absl::Status RefuseRound(absl::string_view run, const RefusedRound& round) override;
  absl::StatusOr<VersionRecord> PublishVersion(
      absl::string_view run, VersionRecord record, const VersionBlobs& blobs,
      absl::Span<const Contribution> contributions) override;
  absl::StatusOr<std::vector<Contribution>> ListContributions(absl::string_view run,
                                                              uint64_t version) override;
  absl::Status RecordHoldout(absl::string_view run, uint64_t version, double loss) override;
  absl::StatusOr<std::string> ReadBlob(const Digest& digest) override;
  absl::Status QuarantineBlob(const Digest& digest) override;
  absl::StatusOr<bool> IsServed(absl::string_view run, const Digest& digest) override;
  absl::Status WriteUpdate(const Digest& digest, absl::string_view bytes) override;
  void DropUpdate(const Digest& digest) override;
  absl::Status RecordParticipations(absl::string_view run,
                                    absl::Span<const ParticipationRecord> records) override;
  absl::StatusOr<std::optional<ParticipationRecord>> FindParticipation(
      absl::string_view run, uint64_t round, absl::string_view node) override;
  absl::StatusOr<std::vector<ParticipationRecord>> ListParticipations(absl::string_view run,
                                                                      uint64_t round) override;
  absl::StatusOr<std::vector<ParticipationRecord>> ListFolded(absl::string_view run,
                                                              uint64_t round) override;
  absl::Status WithdrawParticipation(absl::string_view run, uint64_t round,
                                     absl::string_view node) override;
  absl::Status RecordMetrics(absl::string_view run, uint64_t round, absl::string_view node,
                             absl::string_view metrics) override;
  absl::Status TouchNodes(absl::Span<const NodeRecord> nodes) override;
  absl::StatusOr<uint64_t> CountNodes() override;
  absl::Status AppendAudit(const AuditEntry& entry) override;
  absl::StatusOr<std::vector<AuditRecord>> ListAudit(uint64_t after, uint64_t limit) override;
  absl::StatusOr<std::vector<AuditRecord>> ListAuditOf(absl::string_view action) override;

  absl::StatusOr<std::vector<RunEntry>> ListRuns() override;
  absl::StatusOr<std::vector<NodeEntry>> ListNodes(absl::string_view after,
                                                   uint64_t limit) override;
  absl::StatusOr<NodeEntry> FindNode(absl::string_view node) override;
  absl::StatusOr<std::vector<NodeTaskEntry>> ListNodeTasks(absl::string_view node,
                                                           uint64_t limit) override;

 private:
  SqliteStore(const SqliteStoreOptions& options, Env& env)
      : options_(options), blobs_(options.dir, /*durable=*/!options.in_memory, env) {}

  // Remembers the first failure after which nothing may be written.
  absl::Status Guard(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckUsable() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Commit(SqliteTransaction& transaction) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Status CheckSameRun(const RunRecord& run, bool* exists)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status RemoveUnbornRuns(absl::string_view run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status InsertRun(const RunRecord& run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AddCounts(NodeEntry& node) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::vector<NodeEntry>> QueryNodes(absl::string_view condition,
                                                    absl::string_view id, uint64_t limit)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::vector<RoundRecord>> QueryRounds(absl::string_view run,
                                                       absl::string_view condition)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::optional<RoundRecord>> FindRound(absl::string_view run,
                                                       absl::string_view condition)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status InsertMembers(absl::string_view run, uint64_t round,
                             absl::Span<const std::string> nodes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status InsertRound(absl::string_view run, const RoundRecord& round)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CloseRound(absl::string_view run, const VersionRecord& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // The next record of the chain; within a transaction.
  absl::Status InsertAudit(const AuditEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status WriteBlobs(const VersionBlobs& blobs, VersionRecord& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status InsertVersion(absl::string_view run, const VersionRecord& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status InsertContributions(absl::string_view run, uint64_t version,
                                   absl::Span<const Contribution> contributions)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::vector<VersionRecord>> QueryVersions(absl::string_view run,
                                                           absl::string_view suffix)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status InsertParticipations(absl::string_view run,
                                    absl::Span<const ParticipationRecord> records)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::StatusOr<std::vector<ParticipationRecord>> QueryParticipations(absl::string_view run,
                                                                       uint64_t round,
                                                                       absl::string_view condition)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::StatusOr<uint64_t> LastRoundOf(absl::string_view run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Blobs: first the rows give them up, in the transaction of what makes them useless; then the
  // files go, unless another row names the same bytes.
  static constexpr uint64_t kAllRounds = std::numeric_limits<int64_t>::max();
  // Updates that count in rounds from `first` on, before `end`.
  absl::StatusOr<std::vector<Digest>> GiveUpUpdates(absl::string_view run, uint64_t first,
                                                    uint64_t end)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status GiveUpVersions(absl::string_view run, uint64_t newest, std::vector<Digest>& gone)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status RemoveBlobs(absl::Span<const Digest> digests) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<bool> IsReferenced(const Digest& digest) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  auto IsWanted() {
    return [this](const Digest& digest)
               ABSL_NO_THREAD_SAFETY_ANALYSIS { return IsReferenced(digest); };
  }

  const SqliteStoreOptions options_;
  BlobFolder blobs_;
  absl::Mutex mutex_;
  std::unique_ptr<SqliteDb> db_ ABSL_GUARDED_BY(mutex_);
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fedge

#endif  // FEDGE_SERVER_SQLITE_STORE_H_
