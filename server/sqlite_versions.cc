// SqliteStore: versions, what they were made of, and the blobs of both.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "server/decisions.h"
#include "server/sqlite_store.h"

namespace fedge {
namespace {

constexpr absl::string_view kVersionColumns =
    "version, round, encoded, encoded_bytes, master, momentum, assigned, accepted, rejected, "
    "dropped, late, update_bytes, devices, train_loss_first, train_loss_last, validation_loss, "
    "validation_tokens, train_tokens, upload_bytes, download_bytes, holdout_loss, created_us, "
    "snapshot, typical_norm, typical_norm_of_a, aggregation_error, folded, origin, manifest, "
    "signature, decision";

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
  ++column;
  for (double& norm : record.typical_norm) norm = row.Double(column++);
  record.aggregation_error = row.Double(column++);
  record.counts.folded = row.Int(column++);
  if (!row.IsNull(column)) record.origin = row.Unsigned(column);
  record.manifest = row.Bytes(++column);
  record.signature = row.Bytes(++column);
  record.decision = row.Bytes(++column);
  return record;
}

bool SameContent(const VersionRecord& a, const VersionRecord& b) {
  return a.round == b.round && a.encoded == b.encoded && a.master == b.master &&
         a.momentum == b.momentum && a.snapshot == b.snapshot && a.origin == b.origin;
}

}  // namespace

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

absl::Status SqliteStore::InsertVersion(absl::string_view run, const VersionRecord& record) {
  ASSIGN_OR_RETURN(
      SqliteStatement insert,
      db_->Prepare(absl::StrCat(
          "INSERT INTO versions(run_id, parent, ", kVersionColumns,
          ") VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)")));
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
  for (const double norm : record.typical_norm) insert.Bind(norm);
  insert.Bind(record.aggregation_error).Bind(counts.folded);
  record.origin ? insert.Bind(*record.origin) : insert.BindNull();
  insert.BindBlob(record.manifest).BindBlob(record.signature).BindBlob(record.decision);
  return insert.Run();
}

absl::Status SqliteStore::InsertContributions(absl::string_view run, uint64_t version,
                                              absl::Span<const Contribution> contributions) {
  ASSIGN_OR_RETURN(SqliteStatement insert,
                   db_->Prepare("INSERT INTO contributions VALUES(?,?,?,?,?,?,?)"));
  for (const Contribution& part : contributions) {
    insert.Bind(run).Bind(version).Bind(part.node_id).Bind(part.round).Bind(part.digest);
    RETURN_IF_ERROR(insert.Bind(part.weight).Bind(part.wire_bytes).Run());
    insert.Reset();
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::CloseRound(absl::string_view run, const VersionRecord& record) {
  ASSIGN_OR_RETURN(SqliteStatement close,
                   db_->Prepare("UPDATE rounds SET state=1, assigned=?, accepted=?, rejected=?, "
                                "dropped=?, late=?, ended_us=? WHERE run_id=? AND round=?"));
  const RoundCounts& counts = record.counts;
  close.Bind(counts.assigned).Bind(counts.accepted).Bind(counts.rejected).Bind(counts.dropped);
  close.Bind(counts.late).Bind(absl::ToUnixMicros(record.created)).Bind(run).Bind(record.round);
  return close.Run();
}

absl::Status SqliteStore::WriteBlobs(const VersionBlobs& blobs, VersionRecord& record) {
  const auto write = [&](absl::string_view bytes) -> absl::StatusOr<Digest> {
    RETURN_IF_ERROR(FEDGE_FAILPOINT("store.version.blob"));
    return blobs_.Write(bytes);
  };
  ASSIGN_OR_RETURN(record.encoded, write(blobs.encoded));
  ASSIGN_OR_RETURN(record.master, write(blobs.master));
  if (!blobs.momentum.empty()) {
    ASSIGN_OR_RETURN(record.momentum, write(blobs.momentum));
  }
  if (!blobs.snapshot.empty()) {
    ASSIGN_OR_RETURN(record.snapshot, write(blobs.snapshot));
  }
  record.encoded_bytes = blobs.encoded.size();
  return absl::OkStatus();
}

absl::StatusOr<VersionRecord> SqliteStore::PublishVersion(
    absl::string_view run, VersionRecord record, const VersionBlobs& blobs,
    absl::Span<const Contribution> contributions) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  const auto publish = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
    RETURN_IF_ERROR(WriteBlobs(blobs, record));
    ASSIGN_OR_RETURN(const std::vector<VersionRecord> known,
                     QueryVersions(run, absl::StrCat("AND version=", record.version)));
    if (!known.empty() && SameContent(known.front(), record)) return absl::OkStatus();
    ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
    RETURN_IF_ERROR(InsertVersion(run, record));
    RETURN_IF_ERROR(InsertContributions(run, record.version, contributions));
    RETURN_IF_ERROR(CloseRound(run, record));
    RETURN_IF_ERROR(InsertAudit(PublicationEntry(run, record)));
    const uint64_t end = record.round > 0 ? record.round : kAllRounds;
    ASSIGN_OR_RETURN(std::vector<Digest> gone, GiveUpUpdates(run, 0, end));
    RETURN_IF_ERROR(GiveUpVersions(run, record.version, gone));
    RETURN_IF_ERROR(FEDGE_FAILPOINT_RUN("store.publish.commit", Commit(transaction)));
    return RemoveBlobs(gone);
  };
  RETURN_IF_ERROR(Guard(publish()));
  return record;
}

absl::StatusOr<std::vector<Contribution>> SqliteStore::ListContributions(absl::string_view run,
                                                                         uint64_t version) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(
      SqliteStatement query,
      db_->Prepare("SELECT node_id, round, digest, weight, wire_bytes FROM contributions "
                   "WHERE run_id=? AND version=? ORDER BY node_id, round"));
  query.Bind(run).Bind(version);
  std::vector<Contribution> contributions;
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return contributions;
    Contribution& part = contributions.emplace_back();
    part.node_id = query.Bytes(0);
    part.round = query.Unsigned(1);
    ASSIGN_OR_RETURN(part.digest, query.DigestAt(2));
    part.weight = query.Unsigned(3);
    part.wire_bytes = query.Unsigned(4);
  }
}

absl::StatusOr<bool> SqliteStore::IsReferenced(const Digest& digest) {
  ASSIGN_OR_RETURN(SqliteStatement query,
                   db_->Prepare("SELECT 1 FROM versions WHERE pruned=0 AND "
                                "(encoded=?1 OR master=?1 OR momentum=?1 OR snapshot=?1) "
                                "UNION ALL SELECT 1 FROM updates WHERE stored=1 AND digest=?1 "
                                "LIMIT 1"));
  return query.Bind(digest).Step();
}

absl::Status SqliteStore::GiveUpVersions(absl::string_view run, uint64_t newest,
                                         std::vector<Digest>& gone) {
  if (newest < options_.keep_versions) return absl::OkStatus();
  const uint64_t last = newest - options_.keep_versions;
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
  ASSIGN_OR_RETURN(SqliteStatement mark,
                   db_->Prepare("UPDATE versions SET pruned=1 WHERE run_id=? AND version<=?"));
  return mark.Bind(run).Bind(last).Run();
}

absl::Status SqliteStore::RemoveBlobs(absl::Span<const Digest> digests) {
  for (const Digest& digest : digests) {
    RETURN_IF_ERROR(blobs_.RemoveUnless(digest, IsWanted()));
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
  return blobs_.Read(digest);
}

absl::Status SqliteStore::QuarantineBlob(const Digest& digest) { return blobs_.Quarantine(digest); }

}  // namespace fedge
