#include "server/identity_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/server/temporary_dir.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

void Execute(const std::string& path, absl::string_view sql) {
  const auto db = SqliteDb::Open(path);
  ASSERT_TRUE(db.ok()) << db.status();
  ASSERT_TRUE((*db)->Execute(sql).ok());
}

TEST(IdentityStoreTest, ADatabaseOfTheFirstSchemaIsBroughtOnAndANewerOneIsRefused) {
  const testing::TemporaryDir dir;
  const std::string path = dir.File("identity.db");
  const absl::Time now = absl::FromUnixSeconds(1'700'000'000);
  ASSERT_TRUE(IdentityStore::Open(path).value()->RevokeNode("pi", "sold", now).ok());
  Execute(path, "DROP TABLE operators; DROP TABLE revoked_operators; PRAGMA user_version=1");
  {
    auto store = IdentityStore::Open(path);
    ASSERT_TRUE(store.ok()) << store.status();
    EXPECT_THAT((*store)->RevokedNodes().value(), ElementsAre("pi"));
    const absl::Time end = now + absl::Hours(1);
    const OperatorRecord alice{
        .serial = "01", .name = "alice", .may_write = true, .made = now, .expires = end};
    ASSERT_TRUE((*store)->AddOperator(alice).ok());
    ASSERT_TRUE((*store)->RevokeOperator("alice", now).ok());
    ASSERT_TRUE((*store)->RevokeOperator("alice", now).ok());
  }
  auto store = IdentityStore::Open(path);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_THAT((*store)->RevokedOperators().value(), ElementsAre("alice"));
  const std::vector<OperatorRecord> operators = (*store)->ListOperators().value();
  ASSERT_EQ(operators.size(), 1u);
  EXPECT_EQ(operators[0].name, "alice");
  EXPECT_TRUE(operators[0].may_write);
  EXPECT_EQ(operators[0].expires, now + absl::Hours(1));
  store->reset();
  Execute(path, "PRAGMA user_version=3");
  const absl::Status newer = IdentityStore::Open(path).status();
  EXPECT_EQ(newer.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(newer.message()), HasSubstr("newer fedge-server (schema version 3"));
}

}  // namespace
}  // namespace fedge
