#include "server/sqlite_schema.h"

#include <iterator>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr int64_t kApplicationId = 0x46454447;  // "FEDG"
constexpr int64_t kSchemaVersion = 8;
constexpr int64_t kTablesVersion = 2;

// Schema 2: what a new database starts with.
constexpr absl::string_view kTables = R"sql(
CREATE TABLE runs(
  run_id TEXT PRIMARY KEY, base_model BLOB NOT NULL, layout BLOB NOT NULL, seed INTEGER NOT NULL,
  config BLOB NOT NULL, created_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE rounds(
  run_id TEXT NOT NULL REFERENCES runs, round INTEGER NOT NULL, base_version INTEGER NOT NULL,
  state INTEGER NOT NULL,  -- 0 collecting, 1 published, 2 abandoned, 3 evaluating, 4 refused
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

// From schema k + 1 to k + 2.
constexpr absl::string_view kUpgrades[] = {"ALTER TABLE versions ADD COLUMN snapshot BLOB",
                                           R"sql(
ALTER TABLE rounds ADD COLUMN attempt INTEGER NOT NULL DEFAULT 1;
ALTER TABLE updates ADD COLUMN stored INTEGER NOT NULL DEFAULT 0;  -- 1: its bytes are a blob
CREATE INDEX updates_by_blob ON updates(digest) WHERE stored=1;
CREATE TABLE members(  -- the cohort of a round
  run_id TEXT NOT NULL, round INTEGER NOT NULL, node_id TEXT NOT NULL,
  PRIMARY KEY(run_id, round, node_id), FOREIGN KEY(run_id, round) REFERENCES rounds
) WITHOUT ROWID;
CREATE TABLE contributions(  -- what a version was made of
  run_id TEXT NOT NULL, version INTEGER NOT NULL, node_id TEXT NOT NULL, digest BLOB NOT NULL,
  weight INTEGER NOT NULL, wire_bytes INTEGER NOT NULL,
  PRIMARY KEY(run_id, version, node_id), FOREIGN KEY(run_id, version) REFERENCES versions
) WITHOUT ROWID;
)sql",
                                           R"sql(
ALTER TABLE versions ADD COLUMN typical_norm REAL NOT NULL DEFAULT 0;
ALTER TABLE versions ADD COLUMN typical_norm_of_a REAL NOT NULL DEFAULT 0;
)sql",
                                           R"sql(
ALTER TABLE versions ADD COLUMN aggregation_error REAL NOT NULL DEFAULT 0;
)sql",
                                           R"sql(
ALTER TABLE versions ADD COLUMN folded INTEGER NOT NULL DEFAULT 0;
ALTER TABLE updates ADD COLUMN counted INTEGER NOT NULL DEFAULT 0;  -- accepted: in this round
UPDATE updates SET counted=round WHERE outcome=1;
CREATE INDEX updates_folded ON updates(run_id, counted) WHERE counted<>round;
CREATE TABLE contributions_by_round(
  run_id TEXT NOT NULL, version INTEGER NOT NULL, node_id TEXT NOT NULL, round INTEGER NOT NULL,
  digest BLOB NOT NULL, weight INTEGER NOT NULL, wire_bytes INTEGER NOT NULL,
  PRIMARY KEY(run_id, version, node_id, round), FOREIGN KEY(run_id, version) REFERENCES versions
) WITHOUT ROWID;
INSERT INTO contributions_by_round SELECT c.run_id, c.version, c.node_id, v.round, c.digest,
  c.weight, c.wire_bytes FROM contributions c JOIN versions v USING(run_id, version);
DROP TABLE contributions;
ALTER TABLE contributions_by_round RENAME TO contributions;
)sql",
                                           R"sql(
ALTER TABLE runs ADD COLUMN state INTEGER NOT NULL DEFAULT 0;  -- RunState
ALTER TABLE runs ADD COLUMN by_operator INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN parent_run TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN parent_version INTEGER;
CREATE INDEX updates_by_node ON updates(node_id, when_us);
)sql",
                                           R"sql(
ALTER TABLE versions ADD COLUMN origin INTEGER;  -- the version whose content this is, too
ALTER TABLE versions ADD COLUMN manifest BLOB NOT NULL DEFAULT X'';
ALTER TABLE versions ADD COLUMN signature BLOB NOT NULL DEFAULT X'';
ALTER TABLE versions ADD COLUMN decision BLOB NOT NULL DEFAULT X'';
CREATE TABLE audit(
  number INTEGER PRIMARY KEY, when_us INTEGER NOT NULL, run_id TEXT NOT NULL, actor TEXT NOT NULL,
  action TEXT NOT NULL, detail TEXT NOT NULL, previous BLOB NOT NULL, hash BLOB NOT NULL
);
CREATE TRIGGER audit_stays BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
)sql"};
static_assert(std::size(kUpgrades) == kSchemaVersion - 1);

absl::Status SetVersion(SqliteDb& db, int64_t version) {
  return db.Execute(absl::StrCat("PRAGMA user_version=", version));
}

absl::Status CreateTables(SqliteDb& db) {
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(db));
  RETURN_IF_ERROR(db.Execute(kTables));
  RETURN_IF_ERROR(db.Execute(absl::StrCat("PRAGMA application_id=", kApplicationId)));
  RETURN_IF_ERROR(SetVersion(db, kTablesVersion));
  return transaction.Commit();
}

}  // namespace

absl::Status PrepareSchema(SqliteDb& db, absl::string_view path) {
  ASSIGN_OR_RETURN(const int64_t application, db.QueryInt("PRAGMA application_id"));
  ASSIGN_OR_RETURN(int64_t schema, db.QueryInt("PRAGMA user_version"));
  ASSIGN_OR_RETURN(const int64_t tables, db.QueryInt("SELECT count(*) FROM sqlite_schema"));
  if (application == 0 && schema == 0 && tables == 0) {
    RETURN_IF_ERROR(CreateTables(db));
    schema = kTablesVersion;
  } else if (application != kApplicationId || schema < 1) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": is not a database of fedge-server"));
  } else if (schema > kSchemaVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": has schema version ", schema, ", this fedge-server knows up to ",
                     kSchemaVersion, "; use the newer fedge-server"));
  }
  for (; schema < kSchemaVersion; ++schema) {
    ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(db));
    RETURN_IF_ERROR(db.Execute(kUpgrades[schema - 1]));
    RETURN_IF_ERROR(SetVersion(db, schema + 1));
    RETURN_IF_ERROR(transaction.Commit());
  }
  return absl::OkStatus();
}

}  // namespace fedge
