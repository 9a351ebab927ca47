// What the store keeps of updates and their rounds, and for how long.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/server/sqlite_fixture.h"

namespace fedge {
namespace {

using testing::At;
using testing::kRun;
using testing::OpenOrDie;
using testing::Publish;
using testing::Round;
using testing::TemporaryDir;
using testing::Version;

TEST(SqliteUpdatesTest, KeepsOneVerdictANodeAndRound) {
  const TemporaryDir dir;
  auto store = OpenOrDie(dir);
  ASSERT_TRUE(store->StartRound(kRun, Round(1, 0)).ok());
  ParticipationRecord record{.round = 1,
                             .node_id = "node-01",
                             .outcome = Outcome::kFailed,
                             .digest = {},
                             .weight = 0,
                             .wire_bytes = 0,
                             .reason = "out of memory",
                             .metrics = "",
                             .when = At(3)};
  ASSERT_TRUE(store->RecordParticipations(kRun, {record}).ok());
  record.outcome = Outcome::kAccepted;
  record.digest = Sha256Of("update");
  record.weight = 12;
  record.wire_bytes = 345;
  record.reason = "";
  ASSERT_TRUE(store->RecordParticipations(kRun, {record}).ok());
  ParticipationRecord other = record;
  other.outcome = Outcome::kRejected;
  other.digest = Sha256Of("another");
  ASSERT_TRUE(store->RecordParticipations(kRun, {other}).ok());
  ASSERT_TRUE(store->RecordMetrics(kRun, 1, "node-01", "figures").ok());
  ASSERT_TRUE(store->RecordMetrics(kRun, 1, "node-01", "others").ok());
  ASSERT_TRUE(store->RecordMetrics(kRun, 1, "nobody", "figures").ok());
  const auto found = *store->FindParticipation(kRun, 1, "node-01");
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->outcome, Outcome::kAccepted);
  EXPECT_EQ(found->digest, Sha256Of("update"));
  EXPECT_EQ(found->weight, 12u);
  EXPECT_EQ(found->wire_bytes, 345u);
  EXPECT_EQ(found->metrics, "figures");
  EXPECT_FALSE((*store->FindParticipation(kRun, 1, "nobody")).has_value());
  record.round = 9;  // was never started
  EXPECT_EQ(store->RecordParticipations(kRun, {record}).code(),
            absl::StatusCode::kFailedPrecondition);
}

std::vector<std::string> BlobsIn(const TemporaryDir& dir) {
  return *Env::Posix()->ListDir(dir.File("blobs"));
}

ParticipationRecord Accepted(uint64_t round, absl::string_view node, absl::string_view bytes) {
  return {.round = round,
          .counted = round,
          .node_id = std::string(node),
          .outcome = Outcome::kAccepted,
          .digest = Sha256Of(bytes),
          .weight = 12,
          .wire_bytes = bytes.size(),
          .reason = "",
          .metrics = "",
          .when = At(3)};
}

TEST(SqliteUpdatesTest, ContinuesTheOpenRoundWithItsCohort) {
  const TemporaryDir dir;
  {
    auto store = OpenOrDie(dir);
    EXPECT_FALSE((*store->ContinueRound(kRun)).has_value());
    ASSERT_TRUE(Publish(*store, 0).ok());
    ASSERT_TRUE(store->StartRound(kRun, Round(1, 0)).ok());
    EXPECT_TRUE(store->StartRound(kRun, Round(1, 0)).ok());  // repeated
    ASSERT_TRUE(store->WriteUpdate(Sha256Of("update"), "update").ok());
    ASSERT_TRUE(store->RecordParticipations(kRun, {Accepted(1, "node-01", "update")}).ok());
  }
  for (uint64_t attempt = 2; attempt < 4; ++attempt) {
    auto store = OpenOrDie(dir);
    const auto round = *store->ContinueRound(kRun);
    ASSERT_TRUE(round.has_value());
    EXPECT_EQ(round->round, 1u);
    EXPECT_EQ(round->base_version, 0u);
    EXPECT_EQ(round->attempt, attempt);
    EXPECT_EQ(round->cohort, (std::vector<std::string>{"node-01", "node-02"}));
    EXPECT_EQ(round->started, At(9));
    const auto updates = *store->ListParticipations(kRun, 1);
    ASSERT_EQ(updates.size(), 1u);
    EXPECT_EQ(updates[0].node_id, "node-01");
    EXPECT_EQ(*store->ReadBlob(updates[0].digest), "update");
  }
  auto store = OpenOrDie(dir);
  RoundRecord other = Round(1, 0);
  other.cohort.pop_back();
  EXPECT_EQ(store->StartRound(kRun, other).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(SqliteUpdatesTest, KeepsUpdatesUntilTheNextVersion) {
  const TemporaryDir dir;
  auto store = OpenOrDie(dir);
  ASSERT_TRUE(Publish(*store, 0).ok());
  for (uint64_t round = 1; round <= 2; ++round) {
    ASSERT_TRUE(store->StartRound(kRun, Round(round, round - 1)).ok());
    const std::string bytes = absl::StrCat("update ", round);
    ASSERT_TRUE(store->WriteUpdate(Sha256Of(bytes), bytes).ok());
    ASSERT_TRUE(store->RecordParticipations(kRun, {Accepted(round, "node-01", bytes)}).ok());
    const std::vector<Contribution> parts = {{"node-01", round, Sha256Of(bytes), 12, bytes.size()}};
    ASSERT_TRUE(store
                    ->PublishVersion(kRun, Version(round),
                                     {.encoded = absl::StrCat("e", round), .master = "m"}, parts)
                    .ok());
    EXPECT_TRUE(store->ReadBlob(Sha256Of(bytes)).ok());
  }
  EXPECT_EQ(store->ReadBlob(Sha256Of("update 1")).status().code(), absl::StatusCode::kNotFound);
  const auto parts = *store->ListContributions(kRun, 1);
  ASSERT_EQ(parts.size(), 1u);
  EXPECT_EQ(parts[0].node_id, "node-01");
  EXPECT_EQ(parts[0].round, 1u);
  EXPECT_EQ(parts[0].digest, Sha256Of("update 1"));
  EXPECT_EQ(parts[0].weight, 12u);
  EXPECT_EQ(parts[0].wire_bytes, 8u);
}

TEST(SqliteUpdatesTest, KeepsALateUpdateWithTheRoundItCountsIn) {
  const TemporaryDir dir;
  auto store = OpenOrDie(dir);
  ASSERT_TRUE(Publish(*store, 0).ok());
  ASSERT_TRUE(store->StartRound(kRun, Round(1, 0)).ok());
  ASSERT_TRUE(store->AddMembers(kRun, 1, std::vector<std::string>{"node-00", "node-02"}).ok());
  ASSERT_TRUE(store->PublishVersion(kRun, Version(1), {.encoded = "e1", .master = "m1"}, {}).ok());
  ASSERT_TRUE(store->StartRound(kRun, Round(2, 1)).ok());
  ParticipationRecord late = Accepted(1, "node-02", "late");
  late.counted = 2;
  ASSERT_TRUE(store->WriteUpdate(late.digest, "late").ok());
  ASSERT_TRUE(store->RecordParticipations(kRun, {late}).ok());
  store.reset();
  store = OpenOrDie(dir);
  const auto folded = *store->ListFolded(kRun, 2);
  ASSERT_EQ(folded.size(), 1u);
  EXPECT_EQ(folded[0].round, 1u);
  EXPECT_EQ(folded[0].counted, 2u);
  EXPECT_EQ(folded[0].node_id, "node-02");
  EXPECT_TRUE(store->ListFolded(kRun, 1)->empty());
  EXPECT_EQ(store->ListParticipations(kRun, 1)->size(), 1u);
  const auto rounds = *store->ListRounds(kRun, 0);
  ASSERT_EQ(rounds.size(), 2u);
  EXPECT_EQ(rounds[0].cohort, (std::vector<std::string>{"node-00", "node-01", "node-02"}));
  EXPECT_EQ(store->ListRounds(kRun, 1)->size(), 1u);
  // Its bytes go with the version after the one it counts in; it is there beside the node's own.
  const std::vector<Contribution> parts = {{"node-02", 1, late.digest, 12, 4},
                                           {"node-02", 2, Sha256Of("own"), 12, 3}};
  VersionRecord second = Version(2);
  second.counts.folded = 1;
  ASSERT_TRUE(store->PublishVersion(kRun, second, {.encoded = "e2", .master = "m2"}, parts).ok());
  EXPECT_TRUE(store->ReadBlob(late.digest).ok());
  EXPECT_EQ(store->LatestVersion(kRun)->value().counts.folded, 1);
  const auto stored = *store->ListContributions(kRun, 2);
  ASSERT_EQ(stored.size(), 2u);
  EXPECT_EQ(stored[0].round, 1u);
  EXPECT_EQ(stored[1].round, 2u);
  ASSERT_TRUE(store->StartRound(kRun, Round(3, 2)).ok());
  ASSERT_TRUE(Publish(*store, 3).ok());
  EXPECT_EQ(store->ReadBlob(late.digest).status().code(), absl::StatusCode::kNotFound);
}

TEST(SqliteUpdatesTest, DropsUpdatesThatDoNotCount) {
  const TemporaryDir dir;
  auto store = OpenOrDie(dir);
  ASSERT_TRUE(store->StartRound(kRun, Round(1, 0)).ok());
  const Digest digest = Sha256Of("update");
  // Two nodes sent the same bytes: one counts, the other does not.
  ASSERT_TRUE(store->WriteUpdate(digest, "update").ok());
  ASSERT_TRUE(store->WriteUpdate(digest, "update").ok());
  store->DropUpdate(digest);
  EXPECT_EQ(BlobsIn(dir).size(), 1u);  // the other may yet be recorded
  ASSERT_TRUE(store->RecordParticipations(kRun, {Accepted(1, "node-01", "update")}).ok());
  ASSERT_TRUE(store->WriteUpdate(digest, "update").ok());
  store->DropUpdate(digest);
  EXPECT_EQ(BlobsIn(dir).size(), 1u);
  ASSERT_TRUE(store->AbandonRound(kRun, {1, RoundCounts(), "test"}, At(5)).ok());
  EXPECT_EQ(BlobsIn(dir).size(), 0u);
  ASSERT_TRUE(store->WriteUpdate(digest, "update").ok());
  store->DropUpdate(digest);
  EXPECT_EQ(BlobsIn(dir).size(), 0u);
}

TEST(SqliteUpdatesTest, CarriesUpdatesOnFromAttemptToAttempt) {
  const TemporaryDir dir;
  auto store = OpenOrDie(dir);
  const Digest digest = Sha256Of("update");
  ASSERT_TRUE(store->StartRound(kRun, Round(1, 0)).ok());
  ASSERT_TRUE(store->WriteUpdate(digest, "update").ok());
  ASSERT_TRUE(store->RecordParticipations(kRun, {Accepted(1, "node-01", "update")}).ok());
  for (int again = 0; again < 2; ++again) {
    ASSERT_TRUE(store->AbandonRound(kRun, {1, RoundCounts(), "few", /*carried=*/true}, At(5)).ok());
  }
  ASSERT_EQ(store->ListFolded(kRun, 2)->size(), 1u);
  ASSERT_TRUE(store->StartRound(kRun, Round(2, 0)).ok());
  ASSERT_TRUE(store->AbandonRound(kRun, {2, RoundCounts(), "few", /*carried=*/true}, At(6)).ok());
  store.reset();
  store = OpenOrDie(dir);
  EXPECT_EQ(*store->ReadBlob(digest), "update");
  EXPECT_TRUE(store->ListFolded(kRun, 2)->empty());
  const auto carried = *store->ListFolded(kRun, 3);
  ASSERT_EQ(carried.size(), 1u);
  EXPECT_EQ(carried[0].round, 1u);
  EXPECT_EQ(carried[0].node_id, "node-01");
  ASSERT_TRUE(store->SetRunState(kRun, RunState::kPaused, "alice", At(7)).ok());
  EXPECT_EQ(BlobsIn(dir).size(), 1u);
  ASSERT_TRUE(store->SetRunState(kRun, RunState::kStopped, "alice", At(7)).ok());
  EXPECT_EQ(BlobsIn(dir).size(), 0u);
  EXPECT_TRUE(store->ListFolded(kRun, 3)->empty());
}

TEST(SqliteUpdatesTest, ForgetsAWithdrawnVerdict) {
  const TemporaryDir dir;
  auto store = OpenOrDie(dir);
  ASSERT_TRUE(store->StartRound(kRun, Round(1, 0)).ok());
  const Digest digest = Sha256Of("update");
  ASSERT_TRUE(store->WriteUpdate(digest, "update").ok());
  ASSERT_TRUE(store->RecordParticipations(kRun, {Accepted(1, "node-01", "update")}).ok());
  ASSERT_TRUE(
      Env::Posix()->WriteFileAtomic(dir.File(absl::StrCat("blobs/", digest.Hex())), "upd***").ok());
  EXPECT_EQ(store->ReadBlob(digest).status().code(), absl::StatusCode::kDataLoss);
  ASSERT_TRUE(store->QuarantineBlob(digest).ok());
  ASSERT_TRUE(store->WithdrawParticipation(kRun, 1, "node-01").ok());
  EXPECT_FALSE((*store->FindParticipation(kRun, 1, "node-01")).has_value());
  EXPECT_EQ(*Env::Posix()->ReadFile(dir.File(absl::StrCat("quarantine/", digest.Hex()))), "upd***");
  ASSERT_TRUE(store->WriteUpdate(digest, "update").ok());
  EXPECT_EQ(*store->ReadBlob(digest), "update");
}

}  // namespace
}  // namespace fedge
