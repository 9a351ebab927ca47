// Candidates in a whole server: what is published, refused, remembered, and rolled back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "server/sqlite_db.h"
#include "tests/server/federation_test_rig.h"

namespace fedge {
namespace {

using ::testing::Contains;
using testing::FederationRig;
using ::testing::HasSubstr;
using testing::MakeUpdate;
using testing::NodeName;
using testing::TinyPlan;

// Keeps what it is asked; the test says what comes of it.
class StubEvaluator : public CandidateEvaluator {
 public:
  void Evaluate(CandidateTask task) override { tasks.push_back(std::move(task)); }
  std::vector<std::string> slices() const override { return {"rare"}; }
  std::vector<CandidateTask> tasks;
};

HoldoutMeasurement Losses(double base, double current, double candidate) {
  const auto of = [](double mean) { return Measurement{{mean * 100, 100}, {}}; };
  return {of(base), of(current), of(candidate)};
}

RunPlan GatedPlan() {
  RunPlan plan = TinyPlan();
  plan.gate.enabled = true;
  return plan;
}

class GatedRoundTest : public ::testing::Test {
 protected:
  explicit GatedRoundTest(RunPlan plan = GatedPlan()) : rig(std::move(plan), &evaluator) {}
  ~GatedRoundTest() override { EXPECT_TRUE(ArmFailpoints("").ok()); }

  std::vector<AuditRecord> Audit() {
    rig.core.reset();
    auto store = SqliteStore::Open({.dir = rig.dir.path()}, rig.env).value();
    return store->ListAudit(0, 1000).value();
  }
  std::vector<std::string> AuditActions() {
    std::vector<std::string> actions;
    for (const AuditRecord& record : Audit()) actions.push_back(record.entry.action);
    return actions;
  }
  // As many rounds, each published.
  void Publish(uint64_t first, uint64_t last, uint64_t base_version) {
    for (uint64_t round = first; round <= last; ++round, ++base_version) {
      rig.PlayRound(4, round, base_version);
      if (rig.plan.gate.enabled) rig.core->NoteHoldout(round, Losses(4, 3, 3));
      rig.CheckInAll(4);
    }
  }

  StubEvaluator evaluator;
  FederationRig rig;
};

TEST_F(GatedRoundTest, PublishesACandidateAfterItPassed) {
  rig.CheckInAll(4);
  rig.PlayRound(4, 1, 0);
  EXPECT_EQ(rig.core->version(), 0u);
  EXPECT_THAT(rig.CheckIn("node-00").retry().reason(), HasSubstr("round 1 is being aggregated"));
  ASSERT_EQ(evaluator.tasks.size(), 1u);
  EXPECT_EQ(evaluator.tasks[0].candidate->version(), 1u);
  EXPECT_EQ(evaluator.tasks[0].current->version(), 0u);
  rig.core->NoteHoldout(7, Losses(4, 3, 2));  // of some other round
  EXPECT_EQ(rig.core->version(), 0u);
  rig.core->NoteHoldout(1, Losses(4, 3, 2.5));
  EXPECT_EQ(rig.core->version(), 1u);
  EXPECT_EQ(rig.events.versions.back().holdout_loss, 2.5);
  EXPECT_TRUE(rig.core->served().values() == evaluator.tasks[0].candidate->adapter().values());
  EXPECT_THAT(rig.events.lines, Contains("evaluate v1 2.5 100"));
  EXPECT_EQ(rig.CheckIn("node-00").assignment().adapter_version(), 1u);
}

TEST_F(GatedRoundTest, TrainsTheSameVersionAgainAfterARefusal) {
  rig.CheckInAll(4);
  const LoraAdapter before = rig.core->adapter();
  rig.PlayRound(4, 1, 0);
  rig.core->NoteHoldout(1, Losses(4, 3, 3.5));
  EXPECT_EQ(rig.core->version(), 0u);
  EXPECT_TRUE(rig.core->adapter().values() == before.values());
  EXPECT_THAT(rig.events.lines, Contains(HasSubstr("refuse v1 of 1: holdout loss 3.5000")));
  EXPECT_EQ(rig.CheckIn("node-00").assignment().round(), 2u);
  rig.PlayRound(4, 2, 0);
  rig.core->NoteHoldout(2, Losses(4, 3, 2.9));
  EXPECT_EQ(rig.core->version(), 1u);
  EXPECT_THAT(AuditActions(), ::testing::ElementsAre("start", "refuse", "publish"));
}

TEST_F(GatedRoundTest, ARestartEvaluatesTheSameCandidate) {
  rig.CheckInAll(4);
  for (uint64_t i = 0; i < 3; ++i) rig.UploadUpdate(NodeName(i), {.seed = i});
  rig.clock.Advance(rig.plan.round_deadline);
  rig.core->Tick();  // node-03 was too slow
  EXPECT_EQ(rig.UploadUpdate("node-03", {.seed = 3}), v1::UploadReceipt::LATE);
  rig.Start();
  EXPECT_EQ(rig.UploadUpdate("node-03", {.seed = 3}), v1::UploadReceipt::LATE);
  ASSERT_EQ(evaluator.tasks.size(), 2u);
  EXPECT_TRUE(evaluator.tasks[0].candidate->adapter().values() ==
              evaluator.tasks[1].candidate->adapter().values());
  rig.core->NoteHoldout(1, Losses(4, 3, 2.5));
  EXPECT_EQ(rig.core->version(), 1u);
  EXPECT_EQ(rig.events.versions.back().counts.accepted, 3);
}

TEST_F(GatedRoundTest, ARefusalIsMadeOnce) {
  rig.CheckInAll(4);
  rig.PlayRound(4, 1, 0);
  ASSERT_TRUE(ArmFailpoints("store.refusal.commit=error-after(resource_exhausted)").ok());
  rig.core->NoteHoldout(1, Losses(4, 3, 3.5));  // stored, but reported as failed
  rig.core->NoteHoldout(1, Losses(4, 3, 2.5));  // too late: it is decided
  rig.core->Tick();
  EXPECT_EQ(rig.core->round(), 2u);
  rig.Start();
  EXPECT_EQ(rig.core->version(), 0u);
  EXPECT_EQ(rig.core->round(), 2u);
  EXPECT_THAT(AuditActions(), ::testing::ElementsAre("start", "refuse"));
}

class AskedNodesTest : public GatedRoundTest {
 protected:
  AskedNodesTest() : GatedRoundTest(Plan()) {}
  static RunPlan Plan() {
    RunPlan plan = GatedPlan();
    plan.gate.evaluation_nodes = 2;
    plan.downlink = DownlinkPlan();
    return plan;
  }
  v1::ReportRequest Answer(const std::string& node, double current, double candidate) {
    const v1::CheckInResponse task = rig.CheckIn(node);
    v1::ReportRequest report;
    report.set_run_id(rig.plan.run_id);
    report.set_round(task.evaluation().assignment().round());
    report.set_node_id(node);
    report.set_completed(true);
    v1::EvaluationResult& result = *report.mutable_evaluation();
    result.set_version(task.evaluation().candidate().version());
    result.set_values_crc32c(task.evaluation().candidate().values_crc32c());
    v1::LossComparison& losses = *result.add_losses();
    losses.mutable_current()->set_nats(current * 10);
    losses.mutable_current()->set_tokens(10);
    losses.mutable_candidate()->set_nats(candidate * 10);
    losses.mutable_candidate()->set_tokens(10);
    return report;
  }
};

TEST_F(AskedNodesTest, DecideWithTheHoldout) {
  rig.CheckInAll(4);
  rig.PlayRound(4, 1, 0);
  EXPECT_FALSE(rig.CheckIn("node-00").has_evaluation());  // the holdout comes first
  rig.core->NoteHoldout(1, Losses(4, 3, 2.5));
  ASSERT_EQ(rig.events.evaluators.size(), 2u);
  const v1::CheckInResponse response = rig.CheckIn(rig.events.evaluators[0]);
  ASSERT_TRUE(response.has_evaluation());
  EXPECT_EQ(response.evaluation().assignment().adapter_version(), 0u);
  EXPECT_EQ(response.evaluation().candidate().version(), 1u);
  EXPECT_THAT(response.evaluation().slices(), ::testing::ElementsAre("rare"));
  // Its content can be fetched before it is published.
  v1::DownloadRequest download;
  download.set_node_id("node-00");
  download.set_sha256(response.evaluation().candidate().deltas(0).sha256());
  EXPECT_TRUE(rig.core->OpenDownload(download).ok());
  EXPECT_TRUE(rig.core->Report(Answer(rig.events.evaluators[0], 3, 2.9)).ok());
  EXPECT_FALSE(rig.CheckIn(rig.events.evaluators[0]).has_evaluation());  // once is enough
  EXPECT_EQ(rig.core->version(), 0u);
  EXPECT_TRUE(rig.core->Report(Answer(rig.events.evaluators[1], 3, 2.9)).ok());
  EXPECT_EQ(rig.core->version(), 1u);
}

TEST_F(AskedNodesTest, RefuseWhatTheHoldoutDoesNotSee) {
  rig.CheckInAll(4);
  rig.PlayRound(4, 1, 0);
  rig.core->NoteHoldout(1, Losses(4, 3, 2.5));
  for (const std::string& node : std::vector<std::string>(rig.events.evaluators)) {
    EXPECT_TRUE(rig.core->Report(Answer(node, 3, 3.4)).ok());
  }
  EXPECT_EQ(rig.core->version(), 0u);
  EXPECT_THAT(rig.events.lines, Contains(HasSubstr("in the mean of 2 nodes")));
  EXPECT_EQ(rig.CheckIn("node-00").assignment().round(), 2u);
}

TEST_F(AskedNodesTest, AnOperatorPromotes) {
  EXPECT_TRUE(absl::IsFailedPrecondition(rig.core->Promote("root")));
  rig.CheckInAll(4);
  rig.PlayRound(4, 1, 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(rig.core->Promote("root")));  // the holdout comes first
  rig.core->NoteHoldout(1, Losses(4, 3, 2.5));
  EXPECT_TRUE(rig.core->Promote("root").ok());
  EXPECT_EQ(rig.core->version(), 1u);
  const std::vector<AuditRecord> audit = Audit();
  EXPECT_EQ(audit.back().entry.action, "promote");
  EXPECT_EQ(audit.back().entry.actor, "root");
}

TEST_F(AskedNodesTest, AreNotAskedWhileTheRunIsPaused) {
  rig.CheckInAll(4);
  rig.PlayRound(4, 1, 0);
  rig.core->NoteHoldout(1, Losses(4, 3, 2.5));
  const std::string node = rig.events.evaluators[0];
  ASSERT_TRUE(rig.core->SetPaused(true).ok());
  EXPECT_FALSE(rig.CheckIn(node).has_evaluation());
  rig.clock.Advance(absl::Hours(1));
  rig.core->Tick();  // nor are they given up
  ASSERT_TRUE(rig.core->SetPaused(false).ok());
  EXPECT_TRUE(rig.CheckIn(node).has_evaluation());
}

TEST_F(GatedRoundTest, AStopRefusesTheCandidate) {
  rig.CheckInAll(4);
  rig.PlayRound(4, 1, 0);
  ASSERT_TRUE(rig.core->Stop().ok());
  EXPECT_THAT(rig.events.lines, Contains("refuse v1 of 1: the run was stopped"));
  EXPECT_EQ(rig.CheckIn("node-00").finished().final_version(), 0u);
  rig.core->NoteHoldout(1, Losses(4, 3, 2));
  rig.Start();
  EXPECT_EQ(rig.core->version(), 0u);
  EXPECT_THAT(AuditActions(), ::testing::ElementsAre("start", "stop", "refuse"));
}

TEST_F(GatedRoundTest, WhatOperatorsDoToTheRunIsOnRecordOnce) {
  rig.CheckInAll(4);
  for (const bool paused : {true, true, false, false}) {
    ASSERT_TRUE(rig.core->SetPaused(paused, paused ? "alice" : kAnOperator).ok());
  }
  ASSERT_TRUE(rig.core->Stop("bob").ok());
  std::vector<std::string> record;
  for (const AuditRecord& audit : Audit()) {
    record.push_back(absl::StrCat(audit.entry.actor, ": ", audit.entry.action));
  }
  EXPECT_THAT(record, ::testing::ElementsAre("server: start", "alice: pause", "operator: resume",
                                             "bob: stop"));
}

class RollbackTest : public GatedRoundTest {
 protected:
  RollbackTest() : GatedRoundTest(Plan()) {}
  static RunPlan Plan() {
    RunPlan plan = TinyPlan();
    plan.rounds = 10;
    plan.downlink = DownlinkPlan();
    plan.outer = {.kind = OuterOptimizerKind::kNesterov, .beta1 = 0.5};
    return plan;
  }
};

TEST_F(RollbackTest, ServesTheOlderContentAgainToTheBit) {
  rig.CheckInAll(4);
  Publish(1, 4, 0);
  const LoraAdapter held = rig.events.adapters[0];  // of version 1
  rig.UploadUpdate("node-00", {.round = 5, .base_version = 4, .seed = 1});
  const auto number = rig.core->Rollback(1, "root");
  ASSERT_TRUE(number.ok()) << number.status();
  EXPECT_EQ(*number, 5u);
  EXPECT_TRUE(rig.core->served().values() == held.values());
  EXPECT_EQ(rig.events.versions.back().origin, 1u);
  EXPECT_EQ(rig.events.versions.back().master, rig.events.versions[0].master);
  EXPECT_FALSE(rig.events.versions.back().momentum);  // the outer optimizer starts anew
  EXPECT_THAT(rig.events.lines, Contains("abandon 5"));
  // A device that holds version 4 gets a change to it.
  const v1::AdapterSource source = rig.CheckIn("node-01").assignment().adapter();
  EXPECT_EQ(source.version(), 5u);
  Publish(6, 6, 5);
  EXPECT_EQ(rig.core->version(), 6u);
  rig.Start();
  EXPECT_EQ(rig.core->version(), 6u);
  const std::vector<AuditRecord> audit = Audit();
  EXPECT_TRUE(VerifyAudit({}, audit).ok());
  const auto rollback = std::find_if(audit.begin(), audit.end(), [](const AuditRecord& record) {
    return record.entry.action == "rollback";
  });
  ASSERT_NE(rollback, audit.end());
  EXPECT_EQ(rollback->entry.actor, "root");
  EXPECT_THAT(rollback->entry.detail, HasSubstr("{\"version\":5,\"origin\":1,\"manifest\":"));
}

TEST_F(RollbackTest, IsRefusedWhereThereIsNothingToGoBackTo) {
  rig.CheckInAll(4);
  Publish(1, 2, 0);
  EXPECT_TRUE(absl::IsNotFound(rig.core->Rollback(3, "root").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(rig.core->Rollback(2, "root").status()));
  EXPECT_EQ(rig.core->version(), 2u);
  EXPECT_TRUE(rig.core->health().ok());
}

TEST_F(RollbackTest, SurvivesEveryFailureOfItsWrites) {
  rig.CheckInAll(4);
  Publish(1, 3, 0);
  const LoraAdapter held = rig.events.adapters[0];
  for (const char* fault : {"store.version.blob=error", "store.publish.commit=error",
                            "store.publish.commit=error-after", "store.abandon.commit=error-after",
                            "core.version.stored=error"}) {
    const uint64_t before = rig.core->version();
    ASSERT_TRUE(ArmFailpoints(fault).ok());
    EXPECT_FALSE(rig.core->Rollback(1, "root").ok()) << fault;
    ASSERT_TRUE(ArmFailpoints("").ok());
    rig.Start();
    const uint64_t after = rig.core->version();
    EXPECT_TRUE(after == before || after == before + 1) << fault;
    if (after == before) {
      EXPECT_TRUE(rig.core->Rollback(1, "root").ok()) << fault;
    }
    EXPECT_TRUE(rig.core->served().values() == held.values()) << fault;
    rig.CheckInAll(4);
  }
  EXPECT_TRUE(VerifyAudit({}, Audit()).ok());
}

class CandidateRollbackTest : public GatedRoundTest {};

TEST_F(CandidateRollbackTest, EndsAnEvaluation) {
  rig.CheckInAll(4);
  Publish(1, 1, 0);
  rig.PlayRound(4, 2, 1);
  const auto number = rig.core->Rollback(0, "root");
  ASSERT_TRUE(number.ok()) << number.status();
  EXPECT_EQ(*number, 2u);
  EXPECT_THAT(rig.events.lines, Contains("refuse v2 of 2: rolled back to version 0"));
  rig.core->NoteHoldout(2, Losses(4, 3, 2));  // of a candidate that is gone
  EXPECT_EQ(rig.core->version(), 2u);
}

TEST(SignedVersionTest, EachManifestIsSignedAndNamesItsParent) {
  const SigningKey key = SigningKey::FromSeed(std::string(32, 's')).value();
  FederationRig rig(TinyPlan(), nullptr, key);
  rig.CheckInAll(4);
  std::string parent;
  for (uint64_t version = 0; version <= 2; ++version) {
    if (version == 1) rig.Start();
    rig.CheckInAll(4);
    const v1::AdapterSource source = rig.CheckIn("node-00").assignment().adapter();
    const v1::SignedManifest& proof = source.manifest();
    EXPECT_EQ(proof.public_key(), key.public_key());
    EXPECT_TRUE(VerifySignature(key.public_key(), kVersionManifestContext, proof.manifest(),
                                proof.signature())
                    .ok());
    v1::VersionManifest manifest;
    ASSERT_TRUE(manifest.ParseFromString(proof.manifest()));
    EXPECT_EQ(manifest.run_id(), rig.plan.run_id);
    EXPECT_EQ(manifest.version(), version);
    EXPECT_EQ(manifest.parent_sha256(), version == 0 ? "" : Sha256Of(parent).Raw());
    EXPECT_EQ(manifest.values_sha256().size(), 32u);
    parent = proof.manifest();
    rig.PlayRound(4, version + 1, version);
  }
}

TEST(SignedVersionTest, AVersionOfAnOlderReleaseIsSignedWhenItIsServed) {
  const SigningKey key = SigningKey::FromSeed(std::string(32, 's')).value();
  FederationRig rig(TinyPlan(), nullptr, key);
  rig.CheckInAll(4);
  rig.PlayRound(4, 1, 0);
  rig.core.reset();
  {
    const auto db = SqliteDb::Open(rig.dir.File("fedge.db")).value();
    ASSERT_TRUE(db->Execute("UPDATE versions SET manifest=X'', signature=X''").ok());
  }
  rig.Start();
  rig.CheckInAll(4);
  const v1::SignedManifest proof = rig.CheckIn("node-00").assignment().adapter().manifest();
  EXPECT_TRUE(VerifySignature(key.public_key(), kVersionManifestContext, proof.manifest(),
                              proof.signature())
                  .ok());
  v1::VersionManifest manifest;
  ASSERT_TRUE(manifest.ParseFromString(proof.manifest()));
  EXPECT_EQ(manifest.version(), 1u);
  EXPECT_EQ(manifest.contributions_sha256().size(), 32u);
}

TEST(AuditLogInTheStoreTest, ARecordChangedOnDiskIsFound) {
  FederationRig rig;
  rig.CheckInAll(4);
  for (uint64_t round = 1; round <= 3; ++round) rig.PlayRound(4, round, round - 1);
  rig.core.reset();
  {
    const auto db = SqliteDb::Open(rig.dir.File("fedge.db")).value();
    EXPECT_FALSE(db->Execute("UPDATE audit SET detail='{}' WHERE number=3").ok());
    EXPECT_FALSE(db->Execute("DELETE FROM audit").ok());
    ASSERT_TRUE(db->Execute("DROP TRIGGER audit_stays").ok());
    ASSERT_TRUE(db->Execute("UPDATE audit SET detail='{}' WHERE number=3").ok());
  }
  const auto store = SqliteStore::Open({.dir = rig.dir.path()}, rig.env).value();
  const std::vector<AuditRecord> records = store->ListAudit(0, 100).value();
  ASSERT_EQ(records.size(), 5u);
  EXPECT_EQ(records.back().entry.action, "finish");
  const absl::Status found = VerifyAudit({}, records);
  EXPECT_TRUE(absl::IsDataLoss(found));
  EXPECT_THAT(std::string(found.message()), HasSubstr("audit log: record 3: was changed"));
}

}  // namespace
}  // namespace fedge
