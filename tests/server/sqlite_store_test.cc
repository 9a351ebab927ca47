// The store of a server: what is kept, over reopening, damage and failing disks.
#include "server/sqlite_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <iterator>

#include "absl/strings/str_cat.h"
#include "tests/server/sqlite_fixture.h"
#include "tests/testing/fault_env.h"

namespace fedge {
namespace {

using testing::FaultEnv;
using ::testing::HasSubstr;
using testing::TemporaryDir;

using testing::At;
using testing::kRun;
using testing::Open;
using testing::OpenOrDie;
using testing::Publish;
using testing::Round;
using testing::TheRun;
using testing::Version;

TEST(SqliteStoreTest, KeepsVersionsOverReopening) {
  const TemporaryDir dir;
  {
    auto store = OpenOrDie(dir);
    EXPECT_FALSE((*store->LatestVersion(kRun)).has_value());
    EXPECT_EQ(*store->LastRound(kRun), 0u);
    ASSERT_TRUE(Publish(*store, 0).ok());
    ASSERT_TRUE(Publish(*store, 1).ok());
    ASSERT_TRUE(store->RecordHoldout(kRun, 1, 2.75).ok());
    ASSERT_TRUE(store->StartRound(kRun, Round(5, 1)).ok());
  }
  auto store = OpenOrDie(dir);
  const auto latest = *store->LatestVersion(kRun);
  ASSERT_TRUE(latest.has_value());
  EXPECT_EQ(latest->version, 1u);
  EXPECT_EQ(latest->round, 1u);
  EXPECT_EQ(latest->encoded, Sha256Of("encoded 1"));
  EXPECT_EQ(latest->encoded_bytes, 9u);
  EXPECT_EQ(latest->master, Sha256Of("master 1"));
  EXPECT_FALSE(latest->momentum.has_value());
  ASSERT_TRUE(latest->snapshot.has_value());
  EXPECT_EQ(*store->ReadBlob(*latest->snapshot), "snapshot");
  EXPECT_EQ(latest->counts.assigned, 4);
  EXPECT_EQ(latest->counts.accepted, 2);
  EXPECT_EQ(latest->counts.rejected, 1);
  EXPECT_EQ(latest->counts.dropped, 1);
  EXPECT_EQ(latest->counts.late, 3);
  EXPECT_EQ(latest->update_bytes, 1001u);
  EXPECT_EQ(latest->typical_norm[0], 0.5);
  EXPECT_EQ(latest->typical_norm[1], 0.125);
  EXPECT_EQ(latest->aggregation_error, 0.025);
  EXPECT_EQ(latest->metrics.devices, 2u);
  EXPECT_EQ(latest->metrics.train_loss_first, 3.5);
  EXPECT_EQ(latest->metrics.train_loss_last, 3.25);
  EXPECT_EQ(latest->metrics.validation_loss, 3.125);
  EXPECT_EQ(latest->metrics.validation_tokens, 77u);
  EXPECT_EQ(latest->metrics.train_tokens, 4096u);
  EXPECT_EQ(latest->metrics.upload_bytes, 900u);
  EXPECT_EQ(latest->metrics.download_bytes, 800u);
  EXPECT_EQ(latest->holdout_loss, 2.75);
  EXPECT_EQ(latest->created, At(1));
  EXPECT_EQ(*store->LastRound(kRun), 5u);
  EXPECT_EQ(*store->ReadBlob(latest->master), "master 1");
  EXPECT_EQ((*store->ListVersions(kRun)).size(), 2u);
}

TEST(SqliteStoreTest, ServesOnlyEncodedBlobsOfKeptVersions) {
  const TemporaryDir dir;
  auto store = OpenOrDie(dir);
  for (uint64_t version = 0; version < 4; ++version) ASSERT_TRUE(Publish(*store, version).ok());
  EXPECT_FALSE(*store->IsServed(kRun, Sha256Of("encoded 1")));
  EXPECT_TRUE(*store->IsServed(kRun, Sha256Of("encoded 2")));
  EXPECT_TRUE(*store->IsServed(kRun, Sha256Of("encoded 3")));
  EXPECT_FALSE(*store->IsServed(kRun, Sha256Of("master 3")));
  EXPECT_FALSE(*store->IsServed("other", Sha256Of("encoded 3")));
  // Two versions kept: three blobs of version 2 (with momentum), two of version 3.
  EXPECT_EQ((*Env::Posix()->ListDir(dir.File("blobs"))).size(), 5u);
  EXPECT_EQ(store->ReadBlob(Sha256Of("master 1")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store->ReadBlob(Sha256Of("snapshot")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ((*store->ListVersions(kRun)).size(), 4u);  // rows stay
}

TEST(SqliteStoreTest, RefusesASecondPublicationOfAVersion) {
  const TemporaryDir dir;
  auto store = OpenOrDie(dir);
  ASSERT_TRUE(Publish(*store, 0).ok());
  EXPECT_TRUE(Publish(*store, 0).ok());  // the same again changes nothing
  const VersionBlobs other = {.encoded = "other", .master = "master 0"};
  EXPECT_EQ(store->PublishVersion(kRun, Version(0), other, {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(SqliteStoreTest, RefusesAGapInVersions) {
  const TemporaryDir dir;
  auto store = OpenOrDie(dir);
  ASSERT_TRUE(Publish(*store, 0).ok());
  EXPECT_EQ(Publish(*store, 2).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ((*store->LatestVersion(kRun))->version, 0u);
}

TEST(SqliteStoreTest, RemembersNodes) {
  const TemporaryDir dir;
  auto store = OpenOrDie(dir);
  const std::vector<NodeRecord> nodes = {{"b", At(1), "x"}, {"a", At(2), "y"}, {"b", At(3), "z"}};
  ASSERT_TRUE(store->TouchNodes(nodes).ok());
  EXPECT_EQ(*store->CountNodes(), 2u);
}

TEST(SqliteStoreTest, RefusesToContinueAnotherRun) {
  const TemporaryDir dir;
  auto store = OpenOrDie(dir);
  ASSERT_TRUE(Publish(*store, 0).ok());
  EXPECT_TRUE(store->OpenRun(TheRun()).ok());
  RunRecord other = TheRun();
  other.base_model = Sha256Of("other base");
  EXPECT_EQ(store->OpenRun(other).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(store->OpenRun(other).message()),
              HasSubstr("run 'default' was started with base model"));
  other = TheRun();
  other.layout = Sha256Of("other layout");
  EXPECT_THAT(std::string(store->OpenRun(other).message()), HasSubstr("another adapter shape"));
  other = TheRun();
  other.seed = 8;
  EXPECT_THAT(std::string(store->OpenRun(other).message()), HasSubstr("run.seed 7, not 8"));
  other.run_id = "second";
  EXPECT_TRUE(store->OpenRun(other).ok());
}

TEST(SqliteStoreTest, ARunWithoutAVersionIsNone) {
  const TemporaryDir dir;
  auto store = OpenOrDie(dir);
  EXPECT_TRUE(store->ListRuns()->empty());
  RunRecord other = TheRun();
  other.seed = 8;
  other.by_operator = true;
  other.parent_run = "parent";
  other.parent_version = 3;
  ASSERT_TRUE(store->OpenRun(other).ok());  // nothing is lost
  ASSERT_TRUE(Publish(*store, 0).ok());
  ASSERT_TRUE(store->SetRunState(kRun, RunState::kPaused, "alice", absl::UnixEpoch()).ok());
  store.reset();
  store = OpenOrDie(dir, other);
  const std::vector<RunEntry> runs = *store->ListRuns();
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].record.seed, 8u);
  EXPECT_TRUE(runs[0].record.by_operator);
  EXPECT_EQ(runs[0].record.parent_run, "parent");
  EXPECT_EQ(runs[0].record.parent_version, 3u);
  EXPECT_EQ(runs[0].state, RunState::kPaused);
  EXPECT_EQ(store->GetRunState("nobody").status().code(), absl::StatusCode::kNotFound);
}

TEST(SqliteStoreTest, RefusesASecondServerOnTheSameFolder) {
  const TemporaryDir dir;
  auto store = OpenOrDie(dir);
  const auto second = Open(dir);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("in use by another process"));
}

TEST(SqliteStoreTest, NamesDamagedAndForeignDatabases) {
  const TemporaryDir garbage;
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(garbage.File("fedge.db"), std::string(4096, 'x')).ok());
  EXPECT_EQ(Open(garbage).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(Open(garbage).status().message()),
              HasSubstr("fedge.db: the database is damaged"));

  const TemporaryDir foreign;
  {
    auto db = SqliteDb::Open(foreign.File("fedge.db"));
    ASSERT_TRUE((*db)->Execute("CREATE TABLE t(x)").ok());
  }
  EXPECT_THAT(std::string(Open(foreign).status().message()),
              HasSubstr("is not a database of fedge-server"));

  const TemporaryDir newer;
  OpenOrDie(newer).reset();
  {
    auto db = SqliteDb::Open(newer.File("fedge.db"));
    ASSERT_TRUE((*db)->Execute("PRAGMA user_version=99").ok());
  }
  EXPECT_THAT(std::string(Open(newer).status().message()), HasSubstr("schema version 99"));
}

TEST(SqliteStoreTest, TakesOverADatabaseOfAnyOlderSchema) {
  // What takes a database from each schema to the one before it; first from 2 to 1.
  const absl::string_view kBack[] = {
      "ALTER TABLE versions DROP COLUMN snapshot",
      "DROP TABLE members; DROP TABLE contributions; DROP INDEX updates_by_blob;"
      "ALTER TABLE rounds DROP COLUMN attempt; ALTER TABLE updates DROP COLUMN stored",
      "ALTER TABLE versions DROP COLUMN typical_norm;"
      "ALTER TABLE versions DROP COLUMN typical_norm_of_a",
      "ALTER TABLE versions DROP COLUMN aggregation_error",
      "DROP INDEX updates_folded; ALTER TABLE versions DROP COLUMN folded;"
      "ALTER TABLE updates DROP COLUMN counted;"
      "CREATE TABLE before(run_id TEXT NOT NULL, version INTEGER NOT NULL, node_id TEXT NOT NULL,"
      "digest BLOB NOT NULL, weight INTEGER NOT NULL, wire_bytes INTEGER NOT NULL,"
      "PRIMARY KEY(run_id, version, node_id)) WITHOUT ROWID;"
      "INSERT INTO before SELECT run_id, version, node_id, digest, weight, wire_bytes "
      "FROM contributions; DROP TABLE contributions; ALTER TABLE before RENAME TO contributions",
      "DROP INDEX updates_by_node; ALTER TABLE runs DROP COLUMN state;"
      "ALTER TABLE runs DROP COLUMN by_operator; ALTER TABLE runs DROP COLUMN parent_run;"
      "ALTER TABLE runs DROP COLUMN parent_version",
      "DROP TABLE audit; ALTER TABLE versions DROP COLUMN origin;"
      "ALTER TABLE versions DROP COLUMN manifest; ALTER TABLE versions DROP COLUMN signature;"
      "ALTER TABLE versions DROP COLUMN decision"};
  for (size_t schema = std::size(kBack); schema >= 1; --schema) {
    const TemporaryDir dir;
    {
      auto store = OpenOrDie(dir);
      ASSERT_TRUE(Publish(*store, 0).ok());
      ASSERT_TRUE(Publish(*store, 1).ok());
    }
    {
      auto db = SqliteDb::Open(dir.File("fedge.db"));
      for (size_t i = std::size(kBack); i >= schema; --i) {
        ASSERT_TRUE((*db)->Execute(kBack[i - 1]).ok()) << i;
      }
      ASSERT_TRUE((*db)->Execute(absl::StrCat("PRAGMA user_version=", schema)).ok());
    }
    auto store = OpenOrDie(dir);
    const auto before = *store->LatestVersion(kRun);
    EXPECT_EQ(before->snapshot.has_value(), schema >= 2) << schema;
    EXPECT_EQ(before->typical_norm[0], schema >= 4 ? 0.5 : 0) << schema;
    EXPECT_EQ(before->aggregation_error, schema >= 5 ? 0.025 : 0) << schema;
    ASSERT_TRUE(Publish(*store, 2).ok());
    const auto after = *store->LatestVersion(kRun);
    EXPECT_TRUE(after->momentum.has_value()) << schema;
    EXPECT_EQ(after->aggregation_error, 0.025) << schema;
  }
}

TEST(SqliteStoreTest, FindsDamageOfAnyPage) {
  const TemporaryDir dir;
  {
    auto store = OpenOrDie(dir);
    for (uint64_t version = 0; version < 3; ++version) ASSERT_TRUE(Publish(*store, version).ok());
  }
  const std::string good = *Env::Posix()->ReadFile(dir.File("fedge.db"));
  ASSERT_GE(good.size(), 5u * 4096);
  for (size_t page = 0; page < good.size() / 4096; ++page) {
    std::string damaged = good;
    for (size_t i = 0; i < 64; ++i) damaged[page * 4096 + i] = '\x5A';
    ASSERT_TRUE(Env::Posix()->WriteFileAtomic(dir.File("fedge.db"), damaged).ok());
    EXPECT_EQ(Open(dir).status().code(), absl::StatusCode::kDataLoss) << "page " << page;
  }
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(dir.File("fedge.db"), good).ok());
  EXPECT_TRUE(Open(dir).ok());
}

TEST(SqliteStoreTest, FindsADamagedBlob) {
  const TemporaryDir dir;
  auto store = OpenOrDie(dir);
  const auto record = Publish(*store, 0);
  ASSERT_TRUE(Env::Posix()
                  ->WriteFileAtomic(dir.File(absl::StrCat("blobs/", record->master.Hex())), "hm")
                  .ok());
  EXPECT_EQ(store->ReadBlob(record->master).status().code(), absl::StatusCode::kDataLoss);
}

TEST(SqliteStoreTest, SweepsBlobsNobodyNames) {
  const TemporaryDir dir;
  { ASSERT_TRUE(Publish(*OpenOrDie(dir), 0).ok()); }
  const std::string orphan = dir.File(absl::StrCat("blobs/", Sha256Of("orphan").Hex()));
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(orphan, "orphan").ok());
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(dir.File("blobs/notes.txt"), "mine").ok());
  OpenOrDie(dir).reset();
  EXPECT_FALSE(Env::Posix()->Exists(orphan));
  EXPECT_EQ((*Env::Posix()->ListDir(dir.File("blobs"))).size(), 3u);
}

TEST(SqliteStoreTest, PublishesWholeOrNotAtAllUnderFailures) {
  for (const bool for_ever : {false, true}) {
    int failures = 0;
    for (int operation = 1;; ++operation) {
      const TemporaryDir dir;
      FaultEnv env;
      bool published = false;
      {
        auto store = Open(dir, env);
        ASSERT_TRUE((*store)->OpenRun(TheRun()).ok());
        ASSERT_TRUE(Publish(**store, 0).ok());
        ASSERT_TRUE((*store)->StartRound(kRun, Round(1, 0)).ok());
        env.FailFrom(operation, absl::StatusCode::kInternal,
                     for_ever ? FaultEnv::Span::kForEver : FaultEnv::Span::kOnce,
                     FaultEnv::Scope::kWrites);
        const auto result = (*store)->PublishVersion(
            kRun, Version(1), {.encoded = "e", .master = "m", .momentum = ""}, {});
        published = result.ok();
        if (!published) {
          ++failures;
          // Nothing more is written after a failure.
          EXPECT_EQ((*store)->StartRound(kRun, Round(2, 0)).code(),
                    absl::StatusCode::kFailedPrecondition);
        }
      }
      auto store = OpenOrDie(dir);
      const auto latest = *store->LatestVersion(kRun);
      ASSERT_EQ(latest->version, published ? 1u : 0u) << "operation " << operation;
      EXPECT_TRUE(store->ReadBlob(latest->encoded).ok());
      EXPECT_TRUE(store->ReadBlob(latest->master).ok());
      EXPECT_EQ((*Env::Posix()->ListDir(dir.File("blobs"))).size(), published ? 4u : 2u);
      if (published) break;
    }
    EXPECT_EQ(failures, 12);  // open, append, sync, close, rename, sync folder; two blobs
  }
}

TEST(SqliteStoreTest, GoesOnWhenAFullDiskHasRoomAgain) {
  const TemporaryDir dir;
  FaultEnv env;
  auto store = Open(dir, env);
  ASSERT_TRUE((*store)->OpenRun(TheRun()).ok());
  env.FailFrom(2, absl::StatusCode::kResourceExhausted, FaultEnv::Span::kForEver);
  EXPECT_EQ(Publish(**store, 0).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ((*store)->WriteUpdate(Sha256Of("u"), "u").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE((*(*store)->LatestVersion(kRun)).has_value());
  env.Heal();
  EXPECT_TRUE(Publish(**store, 0).ok());
  EXPECT_TRUE((*store)->WriteUpdate(Sha256Of("u"), "u").ok());
}

TEST(SqliteStoreTest, WritesNothingMoreAfterAFailedSync) {
  const TemporaryDir dir;
  FaultEnv env;
  auto store = Open(dir, env);
  ASSERT_TRUE((*store)->OpenRun(TheRun()).ok());
  env.FailFrom(4, absl::StatusCode::kDataLoss, FaultEnv::Span::kOnce);
  EXPECT_EQ((*store)->WriteUpdate(Sha256Of("u"), "u").code(), absl::StatusCode::kDataLoss);
  ASSERT_TRUE(env.triggered());
  EXPECT_EQ((*store)->WriteUpdate(Sha256Of("u"), "u").code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ((*store)->StartRound(kRun, Round(1, 0)).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(SqliteStoreTest, MovesALongLogIntoTheDatabase) {
  const TemporaryDir dir;
  auto store = OpenOrDie(dir);
  for (int i = 0; i < 300; ++i) {
    const std::vector<NodeRecord> node = {{absl::StrCat("n", i), At(i), std::string(20000, 'x')}};
    ASSERT_TRUE(store->TouchNodes(node).ok());
  }
  EXPECT_LT(*Env::Posix()->FileSize(dir.File("fedge.db-wal")), 6u << 20);
  EXPECT_GT(*Env::Posix()->FileSize(dir.File("fedge.db")), 3u << 20);
}

TEST(SqliteStoreTest, WorksInMemory) {
  const TemporaryDir dir;
  auto store =
      SqliteStore::Open({.dir = dir.path(), .in_memory = true, .keep_versions = 16}, *Env::Posix());
  ASSERT_TRUE(store.ok()) << store.status();
  ASSERT_TRUE((*store)->OpenRun(TheRun()).ok());
  ASSERT_TRUE(Publish(**store, 0).ok());
  EXPECT_EQ((*(*store)->LatestVersion(kRun))->version, 0u);
  EXPECT_FALSE(Env::Posix()->Exists(dir.File("fedge.db")));
}

TEST(SqliteStoreTest, NamesAFolderItCannotWrite) {
  const TemporaryDir dir;
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(dir.File("file"), "x").ok());
  const auto store = SqliteStore::Open({.dir = dir.File("file")}, *Env::Posix());
  EXPECT_FALSE(store.ok());
  EXPECT_THAT(std::string(store.status().message()), HasSubstr(dir.File("file")));
}

}  // namespace
}  // namespace fedge
