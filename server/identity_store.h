// What a server must not forget about its nodes' identities: join tokens (as hashes), who has
// joined with which key, which operators were certified, who was revoked. A database of its own,
// identity.db: it belongs to the federation, not to a run.
#ifndef FEDGE_SERVER_IDENTITY_STORE_H_
#define FEDGE_SERVER_IDENTITY_STORE_H_

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/digest.h"
#include "server/sqlite_db.h"

namespace fedge {

struct TokenRecord {
  Digest hash;
  std::string node_id;  // empty: any new node
  uint32_t uses = 1;
  uint32_t used = 0;
  bool revoked = false;
  absl::Time created, expires;
};

struct MemberRecord {
  std::string node_id;
  Digest key = {};  // fingerprint
  std::string serial = {};
  absl::Time expires = {};  // of its newest certificate
};

struct OperatorRecord {
  std::string serial;  // of the certificate
  std::string name;
  bool may_write = false;
  absl::Time made, expires;
};

using NameSet = std::set<std::string, std::less<>>;

// Thread-safe. What returned OK is durable; all may be repeated. Codes of SqliteDb.
class IdentityStore {
 public:
  static absl::StatusOr<std::unique_ptr<IdentityStore>> Open(absl::string_view path);

  absl::Status AddToken(const TokenRecord& token);
  absl::StatusOr<std::optional<TokenRecord>> FindToken(const Digest& hash);
  absl::StatusOr<std::vector<TokenRecord>> ListTokens();  // oldest first
  absl::Status RevokeToken(const Digest& hash);
  absl::Status ForgetTokens(absl::Time expired_before);
  // The node that `key` joined as with this token, if it did.
  absl::StatusOr<std::optional<std::string>> FindUse(const Digest& token, const Digest& key);

  absl::StatusOr<std::optional<MemberRecord>> FindMember(absl::string_view node);
  absl::StatusOr<uint64_t> CountMembers();
  // A use of the token and the member, in one transaction.
  absl::Status Join(const Digest& token, const MemberRecord& member, absl::Time when);
  absl::Status Renew(const MemberRecord& member);
  // Also of a node that never joined: the name is then not to be had.
  absl::Status RevokeNode(absl::string_view node, absl::string_view reason, absl::Time when);
  absl::StatusOr<NameSet> RevokedNodes();

  absl::Status AddOperator(const OperatorRecord& certified);
  absl::StatusOr<std::vector<OperatorRecord>> ListOperators();  // oldest first
  // Also of one that was certified before this was written down.
  absl::Status RevokeOperator(absl::string_view name, absl::Time when);
  absl::StatusOr<NameSet> RevokedOperators();

 private:
  explicit IdentityStore(std::unique_ptr<SqliteDb> db) : db_(std::move(db)) {}
  // Brings the tables from `schema` (0: none) to the newest version.
  absl::Status Migrate(int64_t schema) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<NameSet> ReadNames(absl::string_view query);
  absl::Status WriteMember(const MemberRecord& member) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Commit(SqliteTransaction& transaction) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  const std::unique_ptr<SqliteDb> db_ ABSL_PT_GUARDED_BY(mutex_);
};

}  // namespace fedge

#endif  // FEDGE_SERVER_IDENTITY_STORE_H_
