#include "server/sqlite_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr int64_t kApplicationId = 0x46454447;  // "FEDG"
constexpr int64_t kSchemaVersion = 2;
constexpr uint64_t kMaxBlobBytes = uint64_t{16} << 30;

constexpr absl::string_view kSchema = R"sql(
CREATE TABLE runs(
  run_id TEXT PRIMARY KEY, base_model BLOB NOT NULL, layout BLOB NOT NULL, seed INTEGER NOT NULL,
  config BLOB NOT NULL, created_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE rounds(
  run_id TEXT NOT NULL REFERENCES runs, round INTEGER NOT NULL, base_version INTEGER NOT NULL,
  state INTEGER NOT NULL,  -- 0 collecting, 1 published, 2 abandoned
  assigned INTEGER NOT NULL DEFAULT 0, accepted INTEGER NOT NULL DEFAULT 0,
  rejected INTEGER NOT NULL DEFAULT 0, dropped INTEGER NOT NULL DEFAULT 0,
  late INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '',
  started_us INTEGER NOT NULL, ended_us INTEGER,
  PRIMARY KEY(run_id, round)
) WITHOUT ROWID;
CREATE TABLE versions(
  run_id TEXT NOT NULL REFERENCES runs, version INTEGER NOT NULL, parent INTEGER,
  round INTEGER NOT NULL, encoded BLOB NOT NULL, encoded_bytes INTEGER NOT NULL,
  master BLOB NOT NULL, momentum BLOB,
  assigned INTEGER NOT NULL, accepted INTEGER NOT NULL, rejected INTEGER NOT NULL,
  dropped INTEGER NOT NULL, late INTEGER NOT NULL, update_bytes INTEGER NOT NULL,
  devices INTEGER NOT NULL, train_loss_first REAL NOT NULL, train_loss_last REAL NOT NULL,
  validation_loss REAL NOT NULL, validation_tokens INTEGER NOT NULL, train_tokens INTEGER NOT NULL,
  upload_bytes INTEGER NOT NULL, download_bytes INTEGER NOT NULL,
  holdout_loss REAL, created_us INTEGER NOT NULL,
  pruned INTEGER NOT NULL DEFAULT 0,  -- 1: its blobs are gone
  snapshot BLOB,
  PRIMARY KEY(run_id, version), FOREIGN KEY(run_id, parent) REFERENCES versions(run_id, version)
) WITHOUT ROWID;
CREATE INDEX versions_by_encoded ON versions(encoded);
CREATE TABLE updates(
  run_id TEXT NOT NULL, round INTEGER NOT NULL, node_id TEXT NOT NULL, outcome INTEGER NOT NULL,
  digest BLOB NOT NULL, weight INTEGER NOT NULL, wire_bytes INTEGER NOT NULL, reason TEXT NOT NULL,
  metrics BLOB NOT NULL, when_us INTEGER NOT NULL,
  PRIMARY KEY(run_id, round, node_id), FOREIGN KEY(run_id, round) REFERENCES rounds
) WITHOUT ROWID;
CREATE TABLE nodes(
  node_id TEXT PRIMARY KEY, first_seen_us INTEGER NOT NULL, last_seen_us INTEGER NOT NULL,
  device BLOB NOT NULL
) WITHOUT ROWID;
)sql";

// From schema 1 on.
constexpr absl::string_view kUpgrade = "ALTER TABLE versions ADD COLUMN snapshot BLOB";

constexpr absl::string_view kVersionColumns =
    "version, round, encoded, encoded_bytes, master, momentum, assigned, accepted, rejected, "
    "dropped, late, update_bytes, devices, train_loss_first, train_loss_last, validation_loss, "
    "validation_tokens, train_tokens, upload_bytes, download_bytes, holdout_loss, created_us, "
    "snapshot";

absl::StatusOr<VersionRecord> ReadVersion(const SqliteStatement& row) {
  VersionRecord record;
  int column = 0;
  record.version = row.Unsigned(column++);
  record.round = row.Unsigned(column++);
  ASSIGN_OR_RETURN(record.encoded, row.DigestAt(column++));
  record.encoded_bytes = row.Unsigned(column++);
  ASSIGN_OR_RETURN(record.master, row.DigestAt(column++));
  if (!row.IsNull(column)) {
    ASSIGN_OR_RETURN(record.momentum, row.DigestAt(column));
  }
  ++column;
  record.counts.assigned = row.Int(column++);
  record.counts.accepted = row.Int(column++);
  record.counts.rejected = row.Int(column++);
  record.counts.dropped = row.Int(column++);
  record.counts.late = row.Int(column++);
  record.update_bytes = row.Unsigned(column++);
  record.metrics.devices = row.Unsigned(column++);
  record.metrics.train_loss_first = row.Double(column++);
  record.metrics.train_loss_last = row.Double(column++);
  record.metrics.validation_loss = row.Double(column++);
  record.metrics.validation_tokens = row.Unsigned(column++);
  record.metrics.train_tokens = row.Unsigned(column++);
  record.metrics.upload_bytes = row.Unsigned(column++);
  record.metrics.download_bytes = row.Unsigned(column++);
  if (!row.IsNull(column)) record.holdout_loss = row.Double(column);
  ++column;
  record.created = absl::FromUnixMicros(row.Int(column++));
  if (!row.IsNull(column)) {
    ASSIGN_OR_RETURN(record.snapshot, row.DigestAt(column));
  }
  return record;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SqliteStore>> SqliteStore::Open(const SqliteStoreOptions& options,
                                                               Env& env) {
  FEDGE_CHECK(options.keep_versions >= 2);
  RETURN_IF_ERROR(env.CreateDirs(JoinPath(options.dir, "blobs")));
  std::unique_ptr<SqliteStore> store(new SqliteStore(options, env));
  absl::MutexLock lock(&store->mutex_);
  ASSIGN_OR_RETURN(
      store->db_,
      SqliteDb::Open(options.in_memory ? ":memory:" : JoinPath(options.dir, "fedge.db")));
  RETURN_IF_ERROR(store->Prepare());
  return store;
}

absl::Status SqliteStore::Prepare() {
  RETURN_IF_ERROR(db_->QuickCheck());
  ASSIGN_OR_RETURN(const int64_t application, db_->QueryInt("PRAGMA application_id"));
  ASSIGN_OR_RETURN(const int64_t schema, db_->QueryInt("PRAGMA user_version"));
  ASSIGN_OR_RETURN(const int64_t tables, db_->QueryInt("SELECT count(*) FROM sqlite_schema"));
  if (application == 0 && schema == 0 && tables == 0) {
    ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
    RETURN_IF_ERROR(db_->Execute(kSchema));
    RETURN_IF_ERROR(db_->Execute(absl::StrCat("PRAGMA application_id=", kApplicationId,
                                              "; PRAGMA user_version=", kSchemaVersion)));
    RETURN_IF_ERROR(transaction.Commit());
  } else if (application != kApplicationId || schema < 1) {
    return absl::FailedPreconditionError(
        absl::StrCat(JoinPath(options_.dir, "fedge.db"), ": is not a database of fedge-server"));
  } else if (schema == 1) {
    ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
    RETURN_IF_ERROR(db_->Execute(kUpgrade));
    RETURN_IF_ERROR(db_->Execute(absl::StrCat("PRAGMA user_version=", kSchemaVersion)));
    RETURN_IF_ERROR(transaction.Commit());
  } else if (schema > kSchemaVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        JoinPath(options_.dir, "fedge.db"), ": has schema version ", schema,
        ", this fedge-server knows up to ", kSchemaVersion, "; use the newer fedge-server"));
  }
  return RemoveUnreferencedBlobs();
}

absl::Status SqliteStore::Guard(absl::Status status) {
  if (!status.ok() && failed_.ok()) failed_ = status;
  return status;
}

absl::Status SqliteStore::CheckUsable() const {
  if (failed_.ok()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the store failed earlier and must be reopened: ", failed_.message()));
}

std::string SqliteStore::BlobPath(const Digest& digest) const {
  return absl::StrCat(options_.dir, "/blobs/", digest.Hex());
}

absl::StatusOr<Digest> SqliteStore::WriteBlob(absl::string_view bytes) {
  const Digest digest = Sha256Of(bytes);
  const absl::StatusOr<uint64_t> present = env_.FileSize(BlobPath(digest));
  if (present.ok() && *present == bytes.size()) return digest;
  RETURN_IF_ERROR(env_.WriteFileAtomic(BlobPath(digest), bytes));
  return digest;
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

absl::Status SqliteStore::OpenRun(const RunRecord& run) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  bool exists = false;
  RETURN_IF_ERROR(CheckSameRun(run, &exists));
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
  if (!exists) {
    ASSIGN_OR_RETURN(SqliteStatement insert, db_->Prepare("INSERT INTO runs VALUES(?,?,?,?,?,?)"));
    insert.Bind(run.run_id).Bind(run.base_model).Bind(run.layout).Bind(run.seed);
    insert.BindBlob(run.config).Bind(absl::ToUnixMicros(run.created));
    RETURN_IF_ERROR(insert.Run());
  } else {
    ASSIGN_OR_RETURN(SqliteStatement update,
                     db_->Prepare("UPDATE runs SET config=? WHERE run_id=?"));
    RETURN_IF_ERROR(update.BindBlob(run.config).Bind(run.run_id).Run());
    ASSIGN_OR_RETURN(SqliteStatement close,
                     db_->Prepare("UPDATE rounds SET state=2, reason='server restarted', "
                                  "ended_us=? WHERE run_id=? AND state=0"));
    RETURN_IF_ERROR(close.Bind(absl::ToUnixMicros(run.created)).Bind(run.run_id).Run());
  }
  return Guard(transaction.Commit());
}

absl::StatusOr<std::vector<VersionRecord>> SqliteStore::QueryVersions(absl::string_view run,
                                                                      absl::string_view suffix) {
  ASSIGN_OR_RETURN(SqliteStatement query,
                   db_->Prepare(absl::StrCat("SELECT ", kVersionColumns,
                                             " FROM versions WHERE run_id=? ", suffix)));
  query.Bind(run);
  std::vector<VersionRecord> versions;
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return versions;
    ASSIGN_OR_RETURN(VersionRecord record, ReadVersion(query));
    versions.push_back(std::move(record));
  }
}

absl::StatusOr<std::optional<VersionRecord>> SqliteStore::LatestVersion(absl::string_view run) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(std::vector<VersionRecord> versions,
                   QueryVersions(run, "ORDER BY version DESC LIMIT 1"));
  if (versions.empty()) return std::optional<VersionRecord>();
  return std::optional<VersionRecord>(std::move(versions.front()));
}

absl::StatusOr<std::vector<VersionRecord>> SqliteStore::ListVersions(absl::string_view run) {
  absl::MutexLock lock(&mutex_);
  return QueryVersions(run, "ORDER BY version");
}

absl::StatusOr<uint64_t> SqliteStore::LastRound(absl::string_view run) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteStatement query,
                   db_->Prepare("SELECT coalesce(max(round), 0) FROM rounds WHERE run_id=?"));
  ASSIGN_OR_RETURN(const bool row, query.Bind(run).Step());
  return row ? query.Unsigned(0) : 0;
}

absl::Status SqliteStore::StartRound(absl::string_view run, uint64_t round, uint64_t base_version,
                                     absl::Time when) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  ASSIGN_OR_RETURN(SqliteStatement insert,
                   db_->Prepare("INSERT INTO rounds(run_id, round, base_version, state, "
                                "started_us) VALUES(?,?,?,0,?)"));
  insert.Bind(run).Bind(round).Bind(base_version).Bind(absl::ToUnixMicros(when));
  return Guard(insert.Run());
}

absl::Status SqliteStore::AbandonRound(absl::string_view run, uint64_t round,
                                       const RoundCounts& counts, absl::string_view reason,
                                       absl::Time when) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  ASSIGN_OR_RETURN(SqliteStatement update,
                   db_->Prepare("UPDATE rounds SET state=2, assigned=?, accepted=?, rejected=?, "
                                "dropped=?, late=?, reason=?, ended_us=? "
                                "WHERE run_id=? AND round=? AND state=0"));
  update.Bind(counts.assigned).Bind(counts.accepted).Bind(counts.rejected).Bind(counts.dropped);
  update.Bind(counts.late).Bind(reason).Bind(absl::ToUnixMicros(when)).Bind(run).Bind(round);
  return Guard(update.Run());
}

absl::Status SqliteStore::InsertVersion(absl::string_view run, const VersionRecord& record) {
  ASSIGN_OR_RETURN(
      SqliteStatement insert,
      db_->Prepare(absl::StrCat("INSERT INTO versions(run_id, parent, ", kVersionColumns,
                                ") VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)")));
  insert.Bind(run);
  record.version == 0 ? insert.BindNull() : insert.Bind(record.version - 1);
  insert.Bind(record.version).Bind(record.round).Bind(record.encoded).Bind(record.encoded_bytes);
  insert.Bind(record.master);
  record.momentum ? insert.Bind(*record.momentum) : insert.BindNull();
  const RoundCounts& counts = record.counts;
  insert.Bind(counts.assigned).Bind(counts.accepted).Bind(counts.rejected).Bind(counts.dropped);
  insert.Bind(counts.late).Bind(record.update_bytes);
  const RoundMetrics& metrics = record.metrics;
  insert.Bind(metrics.devices).Bind(metrics.train_loss_first).Bind(metrics.train_loss_last);
  insert.Bind(metrics.validation_loss).Bind(metrics.validation_tokens).Bind(metrics.train_tokens);
  insert.Bind(metrics.upload_bytes).Bind(metrics.download_bytes);
  record.holdout_loss ? insert.Bind(*record.holdout_loss) : insert.BindNull();
  insert.Bind(absl::ToUnixMicros(record.created));
  record.snapshot ? insert.Bind(*record.snapshot) : insert.BindNull();
  return insert.Run();
}

absl::StatusOr<VersionRecord> SqliteStore::PublishVersion(absl::string_view run,
                                                          VersionRecord record,
                                                          const VersionBlobs& blobs) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  const auto publish = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
    ASSIGN_OR_RETURN(record.encoded, WriteBlob(blobs.encoded));
    ASSIGN_OR_RETURN(record.master, WriteBlob(blobs.master));
    if (!blobs.momentum.empty()) {
      ASSIGN_OR_RETURN(record.momentum, WriteBlob(blobs.momentum));
    }
    if (!blobs.snapshot.empty()) {
      ASSIGN_OR_RETURN(record.snapshot, WriteBlob(blobs.snapshot));
    }
    record.encoded_bytes = blobs.encoded.size();
    ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
    RETURN_IF_ERROR(InsertVersion(run, record));
    ASSIGN_OR_RETURN(SqliteStatement close,
                     db_->Prepare("UPDATE rounds SET state=1, assigned=?, accepted=?, rejected=?, "
                                  "dropped=?, late=?, ended_us=? WHERE run_id=? AND round=?"));
    const RoundCounts& counts = record.counts;
    close.Bind(counts.assigned).Bind(counts.accepted).Bind(counts.rejected).Bind(counts.dropped);
    close.Bind(counts.late).Bind(absl::ToUnixMicros(record.created)).Bind(run).Bind(record.round);
    RETURN_IF_ERROR(close.Run());
    RETURN_IF_ERROR(transaction.Commit());
    return Prune(run, record.version);
  };
  RETURN_IF_ERROR(Guard(publish()));
  return record;
}

absl::StatusOr<bool> SqliteStore::IsReferenced(const Digest& digest) {
  ASSIGN_OR_RETURN(SqliteStatement query, db_->Prepare("SELECT 1 FROM versions WHERE pruned=0 AND "
                                                       "(encoded=?1 OR master=?1 OR momentum=?1 OR "
                                                       "snapshot=?1) LIMIT 1"));
  return query.Bind(digest).Step();
}

absl::Status SqliteStore::Prune(absl::string_view run, uint64_t newest) {
  if (newest < options_.keep_versions) return absl::OkStatus();
  const uint64_t last = newest - options_.keep_versions;
  std::vector<Digest> gone;
  {
    ASSIGN_OR_RETURN(SqliteStatement query,
                     db_->Prepare("SELECT encoded, master, momentum, snapshot FROM versions "
                                  "WHERE run_id=? AND version<=? AND pruned=0"));
    query.Bind(run).Bind(last);
    for (;;) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) break;
      for (int column = 0; column < 4; ++column) {
        if (query.IsNull(column)) continue;
        ASSIGN_OR_RETURN(const Digest digest, query.DigestAt(column));
        gone.push_back(digest);
      }
    }
  }
  ASSIGN_OR_RETURN(SqliteStatement mark,
                   db_->Prepare("UPDATE versions SET pruned=1 WHERE run_id=? AND version<=?"));
  RETURN_IF_ERROR(mark.Bind(run).Bind(last).Run());
  for (const Digest& digest : gone) {
    ASSIGN_OR_RETURN(const bool referenced, IsReferenced(digest));
    if (!referenced) env_.Remove(BlobPath(digest)).IgnoreError();  // swept at the next open
  }
  return absl::OkStatus();
}

// A crash leaves blobs without a row, or rows pruned before their blobs went.
absl::Status SqliteStore::RemoveUnreferencedBlobs() {
  const std::string dir = JoinPath(options_.dir, "blobs");
  ASSIGN_OR_RETURN(const std::vector<std::string> names, env_.ListDir(dir));
  for (const std::string& name : names) {
    const absl::StatusOr<Digest> digest = ParseDigest(name);
    if (digest.ok()) {
      ASSIGN_OR_RETURN(const bool referenced, IsReferenced(*digest));
      if (referenced) continue;
    } else if (name.find(".tmp-") == std::string::npos) {
      continue;  // not ours
    }
    RETURN_IF_ERROR(env_.Remove(JoinPath(dir, name)));
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::RecordHoldout(absl::string_view run, uint64_t version, double loss) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  ASSIGN_OR_RETURN(SqliteStatement update,
                   db_->Prepare("UPDATE versions SET holdout_loss=? WHERE run_id=? AND version=?"));
  return Guard(update.Bind(loss).Bind(run).Bind(version).Run());
}

absl::StatusOr<std::string> SqliteStore::ReadBlob(const Digest& digest) {
  ASSIGN_OR_RETURN(std::string bytes, env_.ReadFile(BlobPath(digest), kMaxBlobBytes));
  if (Sha256Of(bytes) != digest) {
    return absl::DataLossError(
        absl::StrCat(BlobPath(digest),
                     ": the content does not match its name; restore the state "
                     "folder from a backup or move it away"));
  }
  return bytes;
}

absl::StatusOr<bool> SqliteStore::IsServed(absl::string_view run, const Digest& digest) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(
      SqliteStatement query,
      db_->Prepare("SELECT 1 FROM versions WHERE encoded=? AND run_id=? AND pruned=0 LIMIT 1"));
  return query.Bind(digest).Bind(run).Step();
}

absl::Status SqliteStore::RecordParticipations(absl::string_view run,
                                               absl::Span<const ParticipationRecord> records) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  const auto record_all = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
    ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
    {
      ASSIGN_OR_RETURN(
          SqliteStatement insert,
          db_->Prepare("INSERT INTO updates VALUES(?,?,?,?,?,?,?,?,?,?) "
                       "ON CONFLICT(run_id, round, node_id) DO UPDATE SET "
                       "outcome=excluded.outcome, digest=excluded.digest, weight=excluded.weight, "
                       "wire_bytes=excluded.wire_bytes, reason=excluded.reason, "
                       "metrics=excluded.metrics, when_us=excluded.when_us "
                       "WHERE outcome IN (3, 4)"));
      for (const ParticipationRecord& record : records) {
        insert.Bind(run).Bind(record.round).Bind(record.node_id);
        insert.Bind(static_cast<int64_t>(record.outcome)).Bind(record.digest).Bind(record.weight);
        insert.Bind(record.wire_bytes).Bind(record.reason).BindBlob(record.metrics);
        RETURN_IF_ERROR(insert.Bind(absl::ToUnixMicros(record.when)).Run());
        insert.Reset();
      }
    }
    return transaction.Commit();
  };
  return Guard(record_all());
}

absl::StatusOr<std::optional<ParticipationRecord>> SqliteStore::FindParticipation(
    absl::string_view run, uint64_t round, absl::string_view node) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(
      SqliteStatement query,
      db_->Prepare("SELECT outcome, digest, weight, wire_bytes, reason, metrics, when_us "
                   "FROM updates WHERE run_id=? AND round=? AND node_id=?"));
  ASSIGN_OR_RETURN(const bool row, query.Bind(run).Bind(round).Bind(node).Step());
  if (!row) return std::optional<ParticipationRecord>();
  ParticipationRecord record;
  record.round = round;
  record.node_id = std::string(node);
  record.outcome = static_cast<Outcome>(query.Int(0));
  ASSIGN_OR_RETURN(record.digest, query.DigestAt(1));
  record.weight = query.Unsigned(2);
  record.wire_bytes = query.Unsigned(3);
  record.reason = query.Bytes(4);
  record.metrics = query.Bytes(5);
  record.when = absl::FromUnixMicros(query.Int(6));
  return std::optional<ParticipationRecord>(std::move(record));
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

absl::Status SqliteStore::TouchNodes(absl::Span<const NodeRecord> nodes) {
  if (nodes.empty()) return absl::OkStatus();
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
  {
    ASSIGN_OR_RETURN(SqliteStatement insert,
                     db_->Prepare("INSERT INTO nodes VALUES(?1,?2,?2,?3) ON CONFLICT(node_id) DO "
                                  "UPDATE SET last_seen_us=excluded.last_seen_us, "
                                  "device=excluded.device"));
    for (const NodeRecord& node : nodes) {
      insert.Bind(node.node_id).Bind(absl::ToUnixMicros(node.last_seen)).BindBlob(node.device);
      RETURN_IF_ERROR(Guard(insert.Run()));
      insert.Reset();
    }
  }
  return Guard(transaction.Commit());
}

absl::StatusOr<uint64_t> SqliteStore::CountNodes() {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const int64_t count, db_->QueryInt("SELECT count(*) FROM nodes"));
  return static_cast<uint64_t>(count);
}

}  // namespace fedge
