// The Store of one machine: a SQLite database and a folder of blobs named by their SHA-256.
#ifndef FEDGE_SERVER_SQLITE_STORE_H_
#define FEDGE_SERVER_SQLITE_STORE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/env.h"
#include "server/sqlite_db.h"
#include "server/store.h"

namespace fedge {

struct SqliteStoreOptions {
  std::string dir;              // fedge.db and blobs/; made when absent
  bool in_memory = false;       // the database lives in memory, only blobs go to `dir`
  uint64_t keep_versions = 16;  // newest versions of a run whose blobs are kept, at least 2
};

// One mutex around the connection: SQLite writes one at a time anyway. It is held during disk I/O,
// which is why no other lock of the server may be held around a call.
class SqliteStore : public Store {
 public:
  // DataLoss: damaged database (every page is read). FailedPrecondition: in use, or made by a newer
  // version. Also the codes of Env and SqliteDb. `env` must outlive the store.
  static absl::StatusOr<std::unique_ptr<SqliteStore>> Open(const SqliteStoreOptions& options,
                                                           Env& env);

  absl::Status OpenRun(const RunRecord& run) override;
  absl::StatusOr<std::optional<VersionRecord>> LatestVersion(absl::string_view run) override;
  absl::StatusOr<std::vector<VersionRecord>> ListVersions(absl::string_view run) override;
  absl::StatusOr<uint64_t> LastRound(absl::string_view run) override;
  absl::Status StartRound(absl::string_view run, uint64_t round, uint64_t base_version,
                          absl::Time when) override;
  absl::Status AbandonRound(absl::string_view run, uint64_t round, const RoundCounts& counts,
                            absl::string_view reason, absl::Time when) override;
  absl::StatusOr<VersionRecord> PublishVersion(absl::string_view run, VersionRecord record,
                                               const VersionBlobs& blobs) override;
  absl::Status RecordHoldout(absl::string_view run, uint64_t version, double loss) override;
  absl::StatusOr<std::string> ReadBlob(const Digest& digest) override;
  absl::StatusOr<bool> IsServed(absl::string_view run, const Digest& digest) override;
  absl::Status RecordParticipations(absl::string_view run,
                                    absl::Span<const ParticipationRecord> records) override;
  absl::StatusOr<std::optional<ParticipationRecord>> FindParticipation(
      absl::string_view run, uint64_t round, absl::string_view node) override;
  absl::Status RecordMetrics(absl::string_view run, uint64_t round, absl::string_view node,
                             absl::string_view metrics) override;
  absl::Status TouchNodes(absl::Span<const NodeRecord> nodes) override;
  absl::StatusOr<uint64_t> CountNodes() override;

 private:
  SqliteStore(const SqliteStoreOptions& options, Env& env) : options_(options), env_(env) {}

  absl::Status Prepare() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Guard(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckUsable() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string BlobPath(const Digest& digest) const;
  absl::StatusOr<Digest> WriteBlob(absl::string_view bytes);
  absl::Status InsertVersion(absl::string_view run, const VersionRecord& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::vector<VersionRecord>> QueryVersions(absl::string_view run,
                                                           absl::string_view suffix)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<bool> IsReferenced(const Digest& digest) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status RemoveUnreferencedBlobs() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Prune(absl::string_view run, uint64_t newest) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckSameRun(const RunRecord& run, bool* exists)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const SqliteStoreOptions options_;
  Env& env_;
  absl::Mutex mutex_;
  std::unique_ptr<SqliteDb> db_ ABSL_GUARDED_BY(mutex_);
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fedge

#endif  // FEDGE_SERVER_SQLITE_STORE_H_
