#include "server/sqlite_db.h"

#include <sqlite3.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr int kCheckpointPages = 1000;

absl::Status SqliteError(sqlite3* db, absl::string_view path, int code) {
  absl::string_view reason = db != nullptr ? sqlite3_errmsg(db) : sqlite3_errstr(code);
  reason = reason.substr(0, reason.find('\n'));  // a damaged schema is quoted
  switch (code & 0xFF) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(
          absl::StrCat(path, ": the database is damaged (", reason,
                       "); restore it from a backup or move the state folder away"));
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::FailedPreconditionError(
          absl::StrCat(path, ": in use by another process; one state folder serves one server"));
    case SQLITE_CONSTRAINT:
      return absl::FailedPreconditionError(absl::StrCat(path, ": ", reason));
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_READONLY:
    case SQLITE_AUTH:
      return absl::PermissionDeniedError(absl::StrCat(
          path, ": ", reason, "; the server needs to write to its state folder and all in it"));
    case SQLITE_FULL:
    case SQLITE_NOMEM:
      return absl::ResourceExhaustedError(
          absl::StrCat(path, ": ", reason, "; make room, the server then goes on"));
    case SQLITE_IOERR:
      if (db != nullptr && code == SQLITE_IOERR_WRITE && sqlite3_system_errno(db) == EDQUOT) {
        return absl::ResourceExhaustedError(absl::StrCat(path, ": disk quota exceeded"));
      }
      [[fallthrough]];
    default:
      return absl::InternalError(absl::StrCat(path, ": ", reason, " (SQLite code ", code, ")"));
  }
}

}  // namespace

SqliteStatement::SqliteStatement(sqlite3* db, std::string path, sqlite3_stmt* statement)
    : db_(db), path_(std::move(path)), statement_(statement) {}

SqliteStatement::SqliteStatement(SqliteStatement&& other) noexcept
    : db_(other.db_),
      path_(std::move(other.path_)),
      statement_(std::exchange(other.statement_, nullptr)),
      bound_(other.bound_),
      bind_error_(other.bind_error_) {}

SqliteStatement::~SqliteStatement() { sqlite3_finalize(statement_); }

SqliteStatement& SqliteStatement::Bind(int64_t value) {
  bind_error_ |= sqlite3_bind_int64(statement_, ++bound_, value);
  return *this;
}

SqliteStatement& SqliteStatement::Bind(double value) {
  bind_error_ |= sqlite3_bind_double(statement_, ++bound_, value);
  return *this;
}

SqliteStatement& SqliteStatement::Bind(absl::string_view text) {
  const char* const data = text.data() == nullptr ? "" : text.data();
  bind_error_ |=
      sqlite3_bind_text64(statement_, ++bound_, data, text.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
  return *this;
}

SqliteStatement& SqliteStatement::BindBlob(absl::string_view bytes) {
  const char* const data = bytes.data() == nullptr ? "" : bytes.data();
  bind_error_ |= sqlite3_bind_blob64(statement_, ++bound_, data, bytes.size(), SQLITE_TRANSIENT);
  return *this;
}

SqliteStatement& SqliteStatement::BindNull() {
  bind_error_ |= sqlite3_bind_null(statement_, ++bound_);
  return *this;
}

absl::StatusOr<bool> SqliteStatement::Step() {
  FEDGE_CHECK(bound_ == sqlite3_bind_parameter_count(statement_), sqlite3_sql(statement_));
  if (bind_error_ != 0) return SqliteError(nullptr, path_, bind_error_);
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return SqliteError(db_, path_, code);
}

absl::Status SqliteStatement::Run() {
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, Step());
    if (!row) return absl::OkStatus();
  }
}

void SqliteStatement::Reset() {
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
  bound_ = 0;
}

bool SqliteStatement::IsNull(int column) const {
  return sqlite3_column_type(statement_, column) == SQLITE_NULL;
}

int64_t SqliteStatement::Int(int column) const { return sqlite3_column_int64(statement_, column); }

double SqliteStatement::Double(int column) const {
  return sqlite3_column_double(statement_, column);
}

std::string SqliteStatement::Bytes(int column) const {
  const void* const data = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  if (data == nullptr) return std::string();
  return std::string(static_cast<const char*>(data), static_cast<size_t>(size));
}

absl::StatusOr<Digest> SqliteStatement::DigestAt(int column) const {
  absl::StatusOr<Digest> digest = DigestFromRaw(Bytes(column));
  if (digest.ok()) return digest;
  return absl::DataLossError(absl::StrCat(path_, ": a stored hash does not have 32 bytes"));
}

absl::StatusOr<std::unique_ptr<SqliteDb>> SqliteDb::Open(absl::string_view path) {
  sqlite3* handle = nullptr;
  const int code = sqlite3_open_v2(
      std::string(path).c_str(), &handle,
      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE,
      nullptr);
  std::unique_ptr<SqliteDb> db(new SqliteDb(handle, std::string(path)));
  if (code != SQLITE_OK) return SqliteError(handle, path, code);
  sqlite3_db_config(handle, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_wal_hook(
      handle,
      [](void* self, sqlite3*, const char*, int pages) {
        static_cast<SqliteDb*>(self)->log_pages_ = pages;
        return SQLITE_OK;
      },
      db.get());
  // locking_mode before WAL: no shared memory file is needed then.
  RETURN_IF_ERROR(
      db->Execute("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL;"
                  "PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA trusted_schema=OFF;"
                  "BEGIN IMMEDIATE; COMMIT;"));
  return db;
}

SqliteDb::~SqliteDb() { sqlite3_close_v2(db_); }

absl::Status SqliteDb::Execute(absl::string_view sql) {
  const int code = sqlite3_exec(db_, std::string(sql).c_str(), nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : SqliteError(db_, path_, code);
}

absl::StatusOr<SqliteStatement> SqliteDb::Prepare(absl::string_view sql) {
  sqlite3_stmt* statement = nullptr;
  const int code =
      sqlite3_prepare_v2(db_, sql.data(), static_cast<int>(sql.size()), &statement, nullptr);
  if (code != SQLITE_OK) return SqliteError(db_, path_, code);
  return SqliteStatement(db_, path_, statement);
}

absl::StatusOr<int64_t> SqliteDb::QueryInt(absl::string_view sql) {
  ASSIGN_OR_RETURN(SqliteStatement statement, Prepare(sql));
  ASSIGN_OR_RETURN(const bool row, statement.Step());
  if (!row) return absl::InternalError(absl::StrCat(path_, ": no result for ", sql));
  return statement.Int(0);
}

absl::Status SqliteDb::CheckpointIfLarge() {
  if (log_pages_ < kCheckpointPages) return absl::OkStatus();
  const int code =
      sqlite3_wal_checkpoint_v2(db_, nullptr, SQLITE_CHECKPOINT_PASSIVE, nullptr, nullptr);
  if (code == SQLITE_OK) log_pages_ = 0;
  const absl::Status status = code == SQLITE_OK ? absl::OkStatus() : SqliteError(db_, path_, code);
  return absl::IsResourceExhausted(status) ? absl::OkStatus() : status;
}

void SqliteDb::KeepLog() { sqlite3_db_config(db_, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr); }

absl::Status SqliteDb::QuickCheck() {
  ASSIGN_OR_RETURN(SqliteStatement statement, Prepare("PRAGMA quick_check(1)"));
  ASSIGN_OR_RETURN(const bool row, statement.Step());
  const std::string finding = row ? statement.Bytes(0) : "no answer";
  if (finding == "ok") return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat(path_, ": the database is damaged (", finding.substr(0, finding.find('\n')),
                   "); restore it from a backup or move the state folder away"));
}

absl::StatusOr<SqliteTransaction> SqliteTransaction::Begin(SqliteDb& db) {
  RETURN_IF_ERROR(db.Execute("BEGIN IMMEDIATE"));
  return SqliteTransaction(&db);
}

SqliteTransaction::~SqliteTransaction() {
  if (db_ != nullptr) db_->Execute("ROLLBACK").IgnoreError();
}

absl::Status SqliteTransaction::Commit() {
  RETURN_IF_ERROR(db_->Execute("COMMIT"));
  db_ = nullptr;
  return absl::OkStatus();
}

}  // namespace fedge
