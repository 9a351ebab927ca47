#include "server/identity_store.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr int64_t kApplicationId = 0x46454449;  // "FEDI"
constexpr int64_t kSchemaVersion = 2;

constexpr absl::string_view kTables = R"sql(
CREATE TABLE tokens(
  hash BLOB PRIMARY KEY, node_id TEXT NOT NULL, uses INTEGER NOT NULL, revoked INTEGER NOT NULL,
  created_us INTEGER NOT NULL, expires_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE token_uses(
  hash BLOB NOT NULL REFERENCES tokens ON DELETE CASCADE, key BLOB NOT NULL, node_id TEXT NOT NULL,
  when_us INTEGER NOT NULL, PRIMARY KEY(hash, key)
) WITHOUT ROWID;
CREATE TABLE members(
  node_id TEXT PRIMARY KEY, key BLOB NOT NULL, serial TEXT NOT NULL, expires_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE revoked(
  node_id TEXT PRIMARY KEY, reason TEXT NOT NULL, when_us INTEGER NOT NULL
) WITHOUT ROWID;
)sql";

// Since version 2.
constexpr absl::string_view kOperatorTables = R"sql(
CREATE TABLE operators(
  serial TEXT PRIMARY KEY, name TEXT NOT NULL, may_write INTEGER NOT NULL, made_us INTEGER NOT NULL,
  expires_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE revoked_operators(name TEXT PRIMARY KEY, when_us INTEGER NOT NULL) WITHOUT ROWID;
)sql";

constexpr absl::string_view kSelectTokens =
    "SELECT hash, node_id, uses, revoked, created_us, expires_us, "
    "(SELECT count(*) FROM token_uses WHERE token_uses.hash=tokens.hash) FROM tokens ";

absl::StatusOr<TokenRecord> ReadToken(SqliteStatement& row) {
  TokenRecord token;
  ASSIGN_OR_RETURN(token.hash, row.DigestAt(0));
  token.node_id = row.Bytes(1);
  token.uses = static_cast<uint32_t>(row.Int(2));
  token.revoked = row.Int(3) != 0;
  token.created = absl::FromUnixMicros(row.Int(4));
  token.expires = absl::FromUnixMicros(row.Int(5));
  token.used = static_cast<uint32_t>(row.Int(6));
  return token;
}

}  // namespace

absl::StatusOr<std::unique_ptr<IdentityStore>> IdentityStore::Open(absl::string_view path) {
  ASSIGN_OR_RETURN(std::unique_ptr<SqliteDb> db, SqliteDb::Open(path));
  RETURN_IF_ERROR(db->QuickCheck());
  ASSIGN_OR_RETURN(const int64_t application, db->QueryInt("PRAGMA application_id"));
  ASSIGN_OR_RETURN(const int64_t schema, db->QueryInt("PRAGMA user_version"));
  ASSIGN_OR_RETURN(const int64_t tables, db->QueryInt("SELECT count(*) FROM sqlite_schema"));
  std::unique_ptr<IdentityStore> store(new IdentityStore(std::move(db)));
  absl::MutexLock lock(&store->mutex_);
  const bool is_new = application == 0 && schema == 0 && tables == 0;
  const bool is_known = application == kApplicationId && schema >= 1 && schema <= kSchemaVersion;
  if (!is_new && !is_known) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, ": is not a database of identities, or one of a newer fedge-server (schema version ",
        schema, ", this one knows ", kSchemaVersion, ")"));
  }
  if (schema != kSchemaVersion) RETURN_IF_ERROR(store->Migrate(schema));
  return store;
}

absl::Status IdentityStore::Migrate(int64_t schema) {
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
  if (schema < 1) RETURN_IF_ERROR(db_->Execute(kTables));
  if (schema < 2) RETURN_IF_ERROR(db_->Execute(kOperatorTables));
  RETURN_IF_ERROR(db_->Execute(absl::StrCat("PRAGMA application_id=", kApplicationId)));
  RETURN_IF_ERROR(db_->Execute(absl::StrCat("PRAGMA user_version=", kSchemaVersion)));
  return transaction.Commit();
}

absl::Status IdentityStore::Commit(SqliteTransaction& transaction) {
  RETURN_IF_ERROR(FEDGE_FAILPOINT_RUN("identity.commit", transaction.Commit()));
  return db_->CheckpointIfLarge();
}

absl::Status IdentityStore::AddToken(const TokenRecord& token) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
  ASSIGN_OR_RETURN(
      SqliteStatement insert,
      db_->Prepare("INSERT INTO tokens(hash, node_id, uses, revoked, created_us, expires_us) "
                   "VALUES(?,?,?,0,?,?)"));
  insert.Bind(token.hash).Bind(token.node_id).Bind(static_cast<int64_t>(token.uses));
  insert.Bind(absl::ToUnixMicros(token.created)).Bind(absl::ToUnixMicros(token.expires));
  RETURN_IF_ERROR(insert.Run());
  return Commit(transaction);
}

absl::StatusOr<std::optional<TokenRecord>> IdentityStore::FindToken(const Digest& hash) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteStatement find, db_->Prepare(absl::StrCat(kSelectTokens, "WHERE hash=?")));
  find.Bind(hash);
  ASSIGN_OR_RETURN(const bool found, find.Step());
  if (!found) return std::optional<TokenRecord>();
  ASSIGN_OR_RETURN(TokenRecord token, ReadToken(find));
  return std::optional<TokenRecord>(std::move(token));
}

absl::StatusOr<std::vector<TokenRecord>> IdentityStore::ListTokens() {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteStatement list,
                   db_->Prepare(absl::StrCat(kSelectTokens, "ORDER BY created_us, hash")));
  std::vector<TokenRecord> tokens;
  for (;;) {
    ASSIGN_OR_RETURN(const bool found, list.Step());
    if (!found) return tokens;
    ASSIGN_OR_RETURN(TokenRecord token, ReadToken(list));
    tokens.push_back(std::move(token));
  }
}

absl::Status IdentityStore::RevokeToken(const Digest& hash) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
  ASSIGN_OR_RETURN(SqliteStatement update,
                   db_->Prepare("UPDATE tokens SET revoked=1 WHERE hash=?"));
  RETURN_IF_ERROR(update.Bind(hash).Run());
  return Commit(transaction);
}

absl::Status IdentityStore::ForgetTokens(absl::Time expired_before) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
  ASSIGN_OR_RETURN(SqliteStatement remove, db_->Prepare("DELETE FROM tokens WHERE expires_us<?"));
  RETURN_IF_ERROR(remove.Bind(absl::ToUnixMicros(expired_before)).Run());
  return Commit(transaction);
}

absl::StatusOr<std::optional<std::string>> IdentityStore::FindUse(const Digest& token,
                                                                  const Digest& key) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteStatement find,
                   db_->Prepare("SELECT node_id FROM token_uses WHERE hash=? AND key=?"));
  find.Bind(token).Bind(key);
  ASSIGN_OR_RETURN(const bool found, find.Step());
  return found ? std::optional<std::string>(find.Bytes(0)) : std::nullopt;
}

absl::StatusOr<std::optional<MemberRecord>> IdentityStore::FindMember(absl::string_view node) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteStatement find,
                   db_->Prepare("SELECT key, serial, expires_us FROM members WHERE node_id=?"));
  find.Bind(node);
  ASSIGN_OR_RETURN(const bool found, find.Step());
  if (!found) return std::optional<MemberRecord>();
  MemberRecord member{.node_id = std::string(node)};
  ASSIGN_OR_RETURN(member.key, find.DigestAt(0));
  member.serial = find.Bytes(1);
  member.expires = absl::FromUnixMicros(find.Int(2));
  return std::optional<MemberRecord>(std::move(member));
}

absl::StatusOr<uint64_t> IdentityStore::CountMembers() {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const int64_t count, db_->QueryInt("SELECT count(*) FROM members"));
  return static_cast<uint64_t>(count);
}

absl::Status IdentityStore::WriteMember(const MemberRecord& member) {
  ASSIGN_OR_RETURN(SqliteStatement write,
                   db_->Prepare("INSERT INTO members(node_id, key, serial, expires_us) "
                                "VALUES(?1,?2,?3,?4) ON CONFLICT(node_id) DO UPDATE SET "
                                "key=?2, serial=?3, expires_us=?4"));
  write.Bind(member.node_id).Bind(member.key).Bind(member.serial);
  return write.Bind(absl::ToUnixMicros(member.expires)).Run();
}

absl::Status IdentityStore::Join(const Digest& token, const MemberRecord& member, absl::Time when) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
  ASSIGN_OR_RETURN(SqliteStatement use,
                   db_->Prepare("INSERT INTO token_uses(hash, key, node_id, when_us) "
                                "VALUES(?,?,?,?) ON CONFLICT DO NOTHING"));
  use.Bind(token).Bind(member.key).Bind(member.node_id);
  RETURN_IF_ERROR(use.Bind(absl::ToUnixMicros(when)).Run());
  RETURN_IF_ERROR(WriteMember(member));
  return Commit(transaction);
}

absl::Status IdentityStore::Renew(const MemberRecord& member) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
  RETURN_IF_ERROR(WriteMember(member));
  return Commit(transaction);
}

absl::Status IdentityStore::RevokeNode(absl::string_view node, absl::string_view reason,
                                       absl::Time when) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
  ASSIGN_OR_RETURN(SqliteStatement insert,
                   db_->Prepare("INSERT INTO revoked(node_id, reason, when_us) VALUES(?,?,?) "
                                "ON CONFLICT DO NOTHING"));
  RETURN_IF_ERROR(insert.Bind(node).Bind(reason).Bind(absl::ToUnixMicros(when)).Run());
  return Commit(transaction);
}

absl::StatusOr<NameSet> IdentityStore::ReadNames(absl::string_view query) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteStatement list, db_->Prepare(query));
  NameSet names;
  for (;;) {
    ASSIGN_OR_RETURN(const bool found, list.Step());
    if (!found) return names;
    names.insert(list.Bytes(0));
  }
}

absl::StatusOr<NameSet> IdentityStore::RevokedNodes() {
  return ReadNames("SELECT node_id FROM revoked");
}

absl::Status IdentityStore::AddOperator(const OperatorRecord& certified) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
  ASSIGN_OR_RETURN(SqliteStatement insert,
                   db_->Prepare("INSERT INTO operators(serial, name, may_write, made_us, "
                                "expires_us) VALUES(?,?,?,?,?)"));
  insert.Bind(certified.serial).Bind(certified.name).Bind(int64_t{certified.may_write});
  insert.Bind(absl::ToUnixMicros(certified.made)).Bind(absl::ToUnixMicros(certified.expires));
  RETURN_IF_ERROR(insert.Run());
  return Commit(transaction);
}

absl::StatusOr<std::vector<OperatorRecord>> IdentityStore::ListOperators() {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteStatement list,
                   db_->Prepare("SELECT serial, name, may_write, made_us, expires_us "
                                "FROM operators ORDER BY made_us, serial"));
  std::vector<OperatorRecord> operators;
  for (;;) {
    ASSIGN_OR_RETURN(const bool found, list.Step());
    if (!found) return operators;
    operators.push_back({.serial = list.Bytes(0),
                         .name = list.Bytes(1),
                         .may_write = list.Int(2) != 0,
                         .made = absl::FromUnixMicros(list.Int(3)),
                         .expires = absl::FromUnixMicros(list.Int(4))});
  }
}

absl::Status IdentityStore::RevokeOperator(absl::string_view name, absl::Time when) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
  ASSIGN_OR_RETURN(SqliteStatement insert,
                   db_->Prepare("INSERT INTO revoked_operators(name, when_us) VALUES(?,?) "
                                "ON CONFLICT DO NOTHING"));
  RETURN_IF_ERROR(insert.Bind(name).Bind(absl::ToUnixMicros(when)).Run());
  return Commit(transaction);
}

absl::StatusOr<NameSet> IdentityStore::RevokedOperators() {
  return ReadNames("SELECT name FROM revoked_operators");
}

}  // namespace fedge
