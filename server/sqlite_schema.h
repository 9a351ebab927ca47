// The tables of the server's database, and how those of earlier releases become today's.
#ifndef FEDGE_SERVER_SQLITE_SCHEMA_H_
#define FEDGE_SERVER_SQLITE_SCHEMA_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/sqlite_db.h"

namespace fedge {

// Creates the tables in an empty database or brings an older one up to date, each step in one
// transaction. FailedPrecondition: a database of something else, or of a newer release. `path` is
// for messages.
absl::Status PrepareSchema(SqliteDb& db, absl::string_view path);

}  // namespace fedge

#endif  // FEDGE_SERVER_SQLITE_SCHEMA_H_
