// One SQLite connection with statuses instead of codes. Knows nothing of what is stored.
#ifndef FEDGE_SERVER_SQLITE_DB_H_
#define FEDGE_SERVER_SQLITE_DB_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/digest.h"

struct sqlite3;
struct sqlite3_stmt;

namespace fedge {

// A prepared statement. Bind in order, then Step through the rows. Not thread-safe.
class SqliteStatement {
 public:
  SqliteStatement(sqlite3* db, std::string path, sqlite3_stmt* statement);
  SqliteStatement(SqliteStatement&& other) noexcept;
  SqliteStatement& operator=(SqliteStatement&&) = delete;
  ~SqliteStatement();

  SqliteStatement& Bind(int64_t value);
  SqliteStatement& Bind(uint64_t value) { return Bind(static_cast<int64_t>(value)); }
  SqliteStatement& Bind(double value);
  SqliteStatement& Bind(absl::string_view text);
  SqliteStatement& BindBlob(absl::string_view bytes);
  SqliteStatement& Bind(const Digest& digest) { return BindBlob(digest.Raw()); }
  SqliteStatement& BindNull();

  absl::StatusOr<bool> Step();  // true: a row is there
  absl::Status Run();           // steps to the end
  void Reset();                 // for the next bindings

  bool IsNull(int column) const;
  int64_t Int(int column) const;
  uint64_t Unsigned(int column) const { return static_cast<uint64_t>(Int(column)); }
  double Double(int column) const;
  std::string Bytes(int column) const;                // text or blob
  absl::StatusOr<Digest> DigestAt(int column) const;  // DataLoss unless 32 bytes

 private:
  sqlite3* db_;
  std::string path_;
  sqlite3_stmt* statement_;
  int bound_ = 0;
  int bind_error_ = 0;
};

// Codes of all errors: DataLoss (damaged, or no database at all), FailedPrecondition (in use by
// another process, constraint), PermissionDenied, ResourceExhausted (disk or quota full; nothing
// was changed), Internal. Messages name the file. Not thread-safe.
class SqliteDb {
 public:
  // WAL, synchronous=FULL, foreign keys; locked against other processes for as long as it is open.
  // ":memory:" for a database that ends with the object.
  static absl::StatusOr<std::unique_ptr<SqliteDb>> Open(absl::string_view path);
  ~SqliteDb();
  SqliteDb(const SqliteDb&) = delete;
  SqliteDb& operator=(const SqliteDb&) = delete;

  absl::Status Execute(absl::string_view sql);  // one or more statements without results
  absl::StatusOr<SqliteStatement> Prepare(absl::string_view sql);
  absl::StatusOr<int64_t> QueryInt(absl::string_view sql);  // first column of the first row
  // Moves the write-ahead log's pages into the database file when they are many. Not left to
  // SQLite, which would ignore a failing sync there. A full disk is no error: tried again next
  // time.
  absl::Status CheckpointIfLarge();
  // The log stays as it is when this is closed: after an error, what the next start recovers.
  void KeepLog();
  // Reads every page: DataLoss with SQLite's first finding.
  absl::Status QuickCheck();

 private:
  SqliteDb(sqlite3* db, std::string path) : db_(db), path_(std::move(path)) {}
  sqlite3* db_;
  std::string path_;
  int log_pages_ = 0;
};

// BEGIN IMMEDIATE now; rolled back by the destructor unless Commit succeeded.
class SqliteTransaction {
 public:
  static absl::StatusOr<SqliteTransaction> Begin(SqliteDb& db);
  SqliteTransaction(SqliteTransaction&& other) noexcept : db_(other.db_) { other.db_ = nullptr; }
  SqliteTransaction& operator=(SqliteTransaction&&) = delete;
  ~SqliteTransaction();
  absl::Status Commit();

 private:
  explicit SqliteTransaction(SqliteDb* db) : db_(db) {}
  SqliteDb* db_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_SQLITE_DB_H_
