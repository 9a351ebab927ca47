// What is left after a server stopped at a bad moment, on a bad disk.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "tests/server/federation_test_rig.h"

namespace fedge {
namespace {

using ::testing::Contains;
using testing::FaultEnv;
using testing::FederationRig;
using ::testing::HasSubstr;
using testing::MakeUpdate;
using testing::NodeName;
using testing::TinyPlan;
using testing::UpdateSpec;

UpdateSpec SpecOf(uint64_t round, uint64_t node) {
  return {.round = round,
          .base_version = round - 1,
          .num_examples = 1 + node,
          .seed = 10 * round + node};
}

std::string BytesOf(const FederationRig& rig, uint64_t round, uint64_t node) {
  return MakeUpdate(rig.plan, SpecOf(round, node));
}

void Fail(FederationRig& rig, absl::string_view node, uint64_t round = 1) {
  v1::ReportRequest report;
  report.set_run_id("default");
  report.set_round(round);
  report.set_node_id(std::string(node));
  report.set_error("no battery");
  EXPECT_TRUE(rig.core->Report(report).ok());
}

// Six nodes: one update is refused, one node gives up, four updates count.
RunPlan SixNodes() {
  RunPlan plan = TinyPlan();
  plan.nodes_per_round = plan.min_nodes = 6;
  plan.rounds = 1;
  return plan;
}

void Step(FederationRig& rig, uint64_t node) {
  v1::TaskMetrics metrics;
  metrics.set_train_loss_last(static_cast<double>(node));
  metrics.set_train_tokens(100);
  if (node == 1) {
    EXPECT_EQ(rig.Upload(NodeName(1), 1, "bad")->verdict(), v1::UploadReceipt::REJECTED);
  } else if (node == 2) {
    Fail(rig, NodeName(2));
  } else {
    EXPECT_EQ(rig.Upload(NodeName(node), 1, BytesOf(rig, 1, node), 64, &metrics)->verdict(),
              v1::UploadReceipt::ACCEPTED);
  }
}

TEST(RoundRecoveryTest, ARestartAtAnyStepChangesNothing) {
  FederationRig straight(SixNodes());
  straight.CheckInAll(6);
  for (uint64_t node = 0; node < 6; ++node) Step(straight, node);
  ASSERT_EQ(straight.events.versions.size(), 1u);
  const VersionRecord& expected = straight.events.versions[0];
  for (uint64_t stop = 0; stop < 6; ++stop) {
    SCOPED_TRACE(stop);
    FederationRig rig(SixNodes());
    rig.CheckInAll(6);
    for (uint64_t node = 0; node < 6; ++node) {
      if (node == stop) {
        rig.Start();
        rig.Start();
      }
      Step(rig, node);
    }
    ASSERT_EQ(rig.events.versions.size(), 1u);
    const VersionRecord& version = rig.events.versions[0];
    EXPECT_EQ(version.encoded, expected.encoded);
    EXPECT_EQ(version.master, expected.master);
    EXPECT_EQ(version.round, 1u);
    EXPECT_EQ(version.counts.accepted, 4);
    EXPECT_EQ(version.counts.rejected, 1);
    EXPECT_EQ(version.counts.dropped, 1);
    EXPECT_EQ(version.update_bytes, expected.update_bytes);
    EXPECT_EQ(version.metrics.devices, 4u);
    EXPECT_EQ(version.metrics.train_loss_last, expected.metrics.train_loss_last);
  }
}

// Updates of which one is far larger than the others; after each upload the server is restarted.
VersionRecord LastOfThreeRounds(RunPlan plan, bool restart) {
  plan.rounds = 3;
  FederationRig rig(plan);
  for (uint64_t round = 1; round <= 3; ++round) {
    rig.CheckInAll(4);
    for (uint64_t node = 0; node < 4; ++node) {
      if (restart) rig.Start();
      UpdateSpec spec = SpecOf(round, node);
      if (node == 2) {
        spec.values.assign(static_cast<size_t>(plan.lora.num_parameters()), 0.5f);
      }
      EXPECT_EQ(rig.Upload(NodeName(node), round, MakeUpdate(rig.plan, spec))->verdict(),
                v1::UploadReceipt::ACCEPTED);
    }
  }
  FEDGE_CHECK(rig.events.versions.size() == 3);
  return rig.events.versions.back();
}

TEST(RoundRecoveryTest, ARestartKeepsTheNormBoundAndWhatRobustRulesNeed) {
  for (const RobustRule rule :
       {RobustRule::kNone, RobustRule::kTrimmedMean, RobustRule::kGeometricMedian}) {
    RunPlan plan = TinyPlan();
    plan.robust.rule = rule;
    const VersionRecord straight = LastOfThreeRounds(plan, false);
    const VersionRecord restarted = LastOfThreeRounds(plan, true);
    EXPECT_GT(straight.typical_norm[0], 0);
    EXPECT_EQ(restarted.typical_norm, straight.typical_norm);
    EXPECT_EQ(restarted.master, straight.master);
  }
}

TEST(RoundRecoveryTest, ARestartKeepsTheQuarantine) {
  RunPlan plan = TinyPlan();
  plan.rounds = 9;
  plan.min_nodes = 5;
  plan.nodes_per_round = 5;
  plan.admission.quarantine_after = 1;
  FederationRig rig(plan);
  rig.CheckInAll(5);
  EXPECT_EQ(rig.Upload(NodeName(0), 1, "bad")->verdict(), v1::UploadReceipt::REJECTED);
  for (uint64_t node = 1; node < 5; ++node) rig.UploadUpdate(NodeName(node), SpecOf(1, node));
  rig.Start();
  rig.CheckInAll(5);
  EXPECT_EQ(rig.CheckIn(NodeName(0)).retry().reason(),
            "quarantined until round 11: 1 updates in a row were rejected");
}

TEST(RoundRecoveryTest, SaysWhatItContinues) {
  FederationRig rig(SixNodes());
  rig.CheckInAll(6);
  for (uint64_t node = 0; node < 4; ++node) Step(rig, node);
  rig.Start();
  EXPECT_EQ(rig.events.lines.back(),
            "continue 1 on v0 attempt 2: 2 accepted, 1 rejected, 1 dropped, 2 pending");
  // Verdicts stay what they were.
  EXPECT_EQ(rig.Upload(NodeName(0), 1, BytesOf(rig, 1, 0))->verdict(), v1::UploadReceipt::ACCEPTED);
  EXPECT_EQ(rig.Upload(NodeName(0), 1, BytesOf(rig, 1, 9))->verdict(), v1::UploadReceipt::REJECTED);
  EXPECT_EQ(rig.Upload(NodeName(1), 1, "bad")->verdict(), v1::UploadReceipt::REJECTED);
  EXPECT_EQ(rig.Upload(NodeName(2), 1, BytesOf(rig, 1, 2))->verdict(), v1::UploadReceipt::REJECTED);
  EXPECT_TRUE(rig.CheckIn(NodeName(4)).has_assignment());
  EXPECT_TRUE(rig.CheckIn(NodeName(0)).has_retry());
}

TEST(RoundRecoveryTest, GivesTheRoundItsWholeTimeAgain) {
  FederationRig rig;
  rig.CheckInAll(4);
  rig.UploadUpdate(NodeName(0), SpecOf(1, 0));
  rig.UploadUpdate(NodeName(1), SpecOf(1, 1));
  rig.clock.Advance(absl::Seconds(50));
  rig.Start();
  EXPECT_EQ(rig.CheckIn(NodeName(2)).assignment().deadline_ms(), 60'000u);
  rig.clock.Advance(absl::Seconds(59));
  rig.core->Tick();
  EXPECT_EQ(rig.core->version(), 0u);
  rig.clock.Advance(absl::Seconds(1));
  rig.core->Tick();
  EXPECT_EQ(rig.core->version(), 1u);
}

// Every write of the update that completes the round fails, and the server with it; the next one
// publishes the same bytes, whether the update has to be sent again or not.
TEST(RoundRecoveryTest, PublishesTheSameAfterAFailureOfAnyWrite) {
  FederationRig straight;
  straight.CheckInAll(4);
  for (uint64_t node = 0; node < 4; ++node) straight.UploadUpdate(NodeName(node), SpecOf(1, node));
  bool published_at_start = false;
  int64_t operation = 1;
  for (;; ++operation) {
    SCOPED_TRACE(operation);
    FederationRig rig;
    rig.CheckInAll(4);
    for (uint64_t node = 0; node < 3; ++node) rig.UploadUpdate(NodeName(node), SpecOf(1, node));
    const std::string last = BytesOf(rig, 1, 3);
    rig.env.FailFrom(operation, absl::StatusCode::kInternal, FaultEnv::Span::kForEver,
                     FaultEnv::Scope::kWrites);
    if (rig.Upload(NodeName(3), 1, last).ok()) break;
    rig.env.Heal();
    rig.Start();
    published_at_start = published_at_start || rig.core->version() == 1;
    EXPECT_EQ(rig.Upload(NodeName(3), 1, last)->verdict(), v1::UploadReceipt::ACCEPTED);
    EXPECT_EQ(rig.core->version(), 1u);
    EXPECT_EQ(rig.events.versions.back().encoded, straight.events.versions[0].encoded);
    EXPECT_EQ(rig.events.versions.back().counts.accepted, 4);
  }
  EXPECT_TRUE(published_at_start);  // some failures come after the update was recorded
  EXPECT_GT(operation, 15);
}

TEST(RoundRecoveryTest, WaitsForRoomOnAFullDisk) {
  FederationRig straight;
  straight.CheckInAll(4);
  straight.PlayRound(4, 1, 0);
  for (int64_t operation = 1;; ++operation) {
    SCOPED_TRACE(operation);
    FederationRig rig;
    rig.CheckInAll(4);
    for (uint64_t i = 0; i < 3; ++i) rig.UploadUpdate(NodeName(i), {.seed = 100 + i});
    const std::string last = MakeUpdate(rig.plan, {.seed = 103});
    rig.env.FailFrom(operation, absl::StatusCode::kResourceExhausted, FaultEnv::Span::kForEver,
                     FaultEnv::Scope::kWrites);
    const auto receipt = rig.Upload("node-03", 1, last, 64);
    if (receipt.ok()) {  // what is left to do may fail: nothing depends on it
      EXPECT_EQ(rig.core->version(), 1u);
      EXPECT_GT(operation, 20);
      break;
    }
    EXPECT_EQ(receipt.status().code(), absl::StatusCode::kResourceExhausted);
    // Also the second time, and the server does not give up.
    EXPECT_EQ(rig.Upload("node-03", 1, last, 64).status().code(),
              absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(rig.core->health().ok());
    EXPECT_EQ(rig.core->version(), 0u);
    rig.env.Heal();
    rig.core->Tick();
    EXPECT_EQ(rig.Upload("node-03", 1, last, 64)->verdict(), v1::UploadReceipt::ACCEPTED);
    EXPECT_EQ(rig.core->version(), 1u);
    EXPECT_EQ(rig.events.versions.back().encoded, straight.events.versions[0].encoded);
    rig.Start();
    EXPECT_EQ(rig.core->version(), 1u);
  }
}

TEST(RoundRecoveryTest, SaysOnceThatTheDiskIsFull) {
  FederationRig rig;
  rig.CheckInAll(4);
  rig.env.FailFrom(1, absl::StatusCode::kResourceExhausted, FaultEnv::Span::kForEver);
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(rig.Upload("node-00", 1, BytesOf(rig, 1, 0)).ok());
  }
  EXPECT_EQ(std::count(rig.events.lines.begin(), rig.events.lines.end(), "no room"), 1);
  rig.env.Heal();
  EXPECT_TRUE(rig.Upload("node-00", 1, BytesOf(rig, 1, 0)).ok());
  EXPECT_THAT(rig.events.lines, Contains("room again"));
}

TEST(RoundRecoveryTest, AWholeUploadNeedNotBeSentAgain) {
  FederationRig rig;
  rig.CheckInAll(4);
  const std::string bytes = BytesOf(rig, 1, 0);
  v1::QueryUploadRequest query;
  *query.mutable_id() = rig.IdOf("node-00", 1, bytes);
  std::vector<v1::UploadRequest> messages = rig.MessagesOf("node-00", 1, bytes, 64);
  FederationCore::Upload upload = rig.core->StartUpload();
  for (size_t i = 0; i + 1 < messages.size(); ++i) ASSERT_TRUE(upload.OnMessage(messages[i]).ok());
  rig.Start();  // an unfinished upload goes on where it was
  EXPECT_EQ(rig.core->QueryUpload(query)->committed_bytes(), (messages.size() - 1) * 64);

  FederationCore::Upload rest = rig.core->StartUpload();
  messages = rig.MessagesOf("node-00", 1, bytes, 64, (messages.size() - 1) * 64);
  ASSERT_EQ(messages.size(), 1u);
  rig.env.FailFrom(4, absl::StatusCode::kInternal, FaultEnv::Span::kForEver,
                   FaultEnv::Scope::kWrites);  // after the last chunk was appended
  EXPECT_FALSE(rest.OnMessage(messages[0]).ok());
  rig.env.Heal();
  rig.Start();
  EXPECT_EQ(rig.core->QueryUpload(query)->committed_bytes(), bytes.size());
  v1::UploadRequest only_id;
  *only_id.mutable_id() = query.id();
  FederationCore::Upload again = rig.core->StartUpload();
  EXPECT_EQ((*again.OnMessage(only_id))->verdict(), v1::UploadReceipt::ACCEPTED);
  EXPECT_TRUE((*Env::Posix()->ListDir(rig.dir.File("uploads"))).empty());
}

std::string BlobPath(const FederationRig& rig, const Digest& digest) {
  return rig.dir.File(absl::StrCat("blobs/", digest.Hex()));
}

void Damage(const FederationRig& rig, const Digest& digest) {
  std::string bytes = *Env::Posix()->ReadFile(BlobPath(rig, digest));
  bytes[bytes.size() / 2] ^= 1;
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(BlobPath(rig, digest), bytes).ok());
}

TEST(RoundRecoveryTest, AsksAgainForADamagedUpdate) {
  for (const bool missing : {false, true}) {
    FederationRig rig;
    rig.CheckInAll(4);
    for (uint64_t node = 0; node < 3; ++node) rig.UploadUpdate(NodeName(node), SpecOf(1, node));
    const Digest digest = Sha256Of(BytesOf(rig, 1, 1));
    if (missing) {
      ASSERT_TRUE(Env::Posix()->Remove(BlobPath(rig, digest)).ok());
    } else {
      Damage(rig, digest);
    }
    rig.Start();
    EXPECT_THAT(rig.events.lines,
                Contains(HasSubstr("damage: update of node 'node-01' for round 1")));
    EXPECT_EQ(Env::Posix()->Exists(rig.dir.File(absl::StrCat("quarantine/", digest.Hex()))),
              !missing);
    EXPECT_TRUE(rig.CheckIn("node-01").has_assignment());
    rig.UploadUpdate(NodeName(3), SpecOf(1, 3));
    EXPECT_EQ(rig.core->version(), 0u);
    EXPECT_EQ(rig.UploadUpdate(NodeName(1), SpecOf(1, 1)), v1::UploadReceipt::ACCEPTED);
    EXPECT_EQ(rig.core->version(), 1u);
    EXPECT_EQ(rig.events.versions[0].counts.accepted, 4);
  }
}

// The first round's bound is the median norm of its updates: they are read again at its end.
TEST(RoundRecoveryTest, AnUpdateThatCannotBeReadAgainEndsTheServerNotTheRound) {
  FederationRig rig;
  rig.CheckInAll(4);
  for (uint64_t node = 0; node < 3; ++node) rig.UploadUpdate(NodeName(node), SpecOf(1, node));
  Damage(rig, Sha256Of(BytesOf(rig, 1, 1)));
  EXPECT_FALSE(rig.Upload(NodeName(3), 1, BytesOf(rig, 1, 3)).ok());
  EXPECT_THAT(rig.core->health().message(),
              HasSubstr("the update of node 'node-01' for round 1 cannot be read again"));
  rig.clock.Advance(absl::Hours(1));
  rig.core->Tick();  // the round does not end without it
  EXPECT_EQ(rig.core->version(), 0u);
  rig.Start();
  EXPECT_TRUE(rig.CheckIn("node-01").has_assignment());
  EXPECT_EQ(rig.UploadUpdate(NodeName(1), SpecOf(1, 1)), v1::UploadReceipt::ACCEPTED);
  ASSERT_EQ(rig.events.versions.size(), 1u);
  EXPECT_EQ(rig.events.versions[0].counts.accepted, 4);
  FederationRig straight;
  straight.CheckInAll(4);
  for (uint64_t node = 0; node < 4; ++node) straight.UploadUpdate(NodeName(node), SpecOf(1, node));
  EXPECT_EQ(rig.events.versions[0].master, straight.events.versions.at(0).master);
}

// Two of four are needed. Round 1 gets one update and ends, round 2 adds another.
TEST(RoundRecoveryTest, UpdatesOfAnAbandonedRoundOutliveRestarts) {
  std::map<bool, VersionRecord> published;
  for (const bool restarted : {false, true}) {
    SCOPED_TRACE(restarted);
    FederationRig rig;
    rig.CheckInAll(4);
    EXPECT_EQ(rig.UploadUpdate(NodeName(0), SpecOf(1, 0)), v1::UploadReceipt::ACCEPTED);
    for (uint64_t node : {1, 2, 3}) Fail(rig, NodeName(node));
    EXPECT_THAT(rig.events.lines, Contains("abandon 1"));
    if (restarted) rig.Start();  // before the next attempt has begun
    rig.CheckInAll(4);
    ASSERT_EQ(rig.core->round(), 2u);
    UpdateSpec second = SpecOf(2, 2);
    second.base_version = 0;
    EXPECT_EQ(rig.UploadUpdate(NodeName(2), second), v1::UploadReceipt::ACCEPTED);
    if (restarted) rig.Start();  // and while it is open
    EXPECT_EQ(rig.core->progress().counts.folded, 1);
    EXPECT_EQ(rig.UploadUpdate(NodeName(0), SpecOf(1, 0)), v1::UploadReceipt::ACCEPTED);  // again
    for (uint64_t node : {0, 1, 3}) Fail(rig, NodeName(node), 2);
    ASSERT_EQ(rig.events.versions.size(), 1u);
    published[restarted] = rig.events.versions[0];
    EXPECT_EQ(rig.core->ContributionsOf(1)->size(), 2u);
  }
  EXPECT_EQ(published[false].master, published[true].master);
}

TEST(RoundRecoveryTest, GoesBackFromADamagedVersion) {
  FederationRig rig;
  rig.CheckInAll(4);
  rig.PlayRound(4, 1, 0);
  const LoraAdapter first = rig.core->adapter();
  rig.PlayRound(4, 2, 1);
  rig.UploadUpdate(NodeName(0), {.round = 3, .base_version = 2});
  Damage(rig, rig.events.versions[1].master);
  rig.Start();
  EXPECT_THAT(rig.events.lines, Contains(HasSubstr("damage: version 2 is damaged")));
  EXPECT_THAT(rig.events.lines, Contains("abandon 3"));  // its updates were relative to version 2
  EXPECT_EQ(rig.core->version(), 3u);
  EXPECT_EQ(rig.core->adapter().values(), first.values());
  rig.Start();  // and that is it
  EXPECT_EQ(rig.core->version(), 3u);
}

TEST(RoundRecoveryTest, SaysSoWhenNoVersionIsLeft) {
  FederationRig rig;
  Damage(rig, Sha256Of(absl::string_view(
                  reinterpret_cast<const char*>(testing::TinyAdapter().values().data()),
                  testing::TinyAdapter().values().size() * sizeof(float))));
  const absl::Status status = rig.TryStart();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("restore the state folder"));
}

TEST(RoundRecoveryTest, KeepsOnlyUpdatesThatMayBeAskedFor) {
  FederationRig rig;
  rig.CheckInAll(4);
  std::map<uint64_t, Digest> digests;
  for (uint64_t round = 1; round <= 3; ++round) {
    digests[round] = Sha256Of(
        MakeUpdate(rig.plan, {.round = round, .base_version = round - 1, .seed = 100 * round}));
    rig.PlayRound(4, round, round - 1);
    EXPECT_TRUE(Env::Posix()->Exists(BlobPath(rig, digests[round])));
    if (round > 1) {
      EXPECT_FALSE(Env::Posix()->Exists(BlobPath(rig, digests[round - 1])));
    }
  }
  rig.Upload("node-00", 1, MakeUpdate(rig.plan, {.seed = 77})).status().IgnoreError();
  EXPECT_FALSE(Env::Posix()->Exists(BlobPath(rig, Sha256Of(MakeUpdate(rig.plan, {.seed = 77})))));
}

}  // namespace
}  // namespace fedge
