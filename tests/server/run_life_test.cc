// Pausing, resuming and stopping a run: the state machine, and the core over a real store.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/failpoint.h"
#include "tests/server/federation_test_rig.h"
#include "tests/server/rounds.h"

namespace fedge {
namespace {

using testing::FederationRig;
using ::testing::HasSubstr;
using testing::kStart;
using testing::NodeName;
using testing::Rounds;

TEST(RunLifeTest, APausedRunGivesNoTasksAndItsTimeStandsStill) {
  FederationRig rig;
  rig.CheckInAll(4);
  rig.clock.Advance(absl::Seconds(20));
  ASSERT_TRUE(rig.core->SetPaused(true).ok());
  rig.clock.Advance(absl::Hours(5));
  rig.core->Tick();
  EXPECT_EQ(rig.CheckIn("node-00").retry().reason(), "the run is paused");
  ASSERT_TRUE(rig.core->SetPaused(true).ok());  // again: nothing changes
  rig.clock.Advance(absl::Hours(5));
  ASSERT_TRUE(rig.core->SetPaused(false).ok());
  EXPECT_EQ(rig.CheckIn("node-00").assignment().deadline_ms(), 40'000u);
  rig.clock.Advance(absl::Seconds(40));
  rig.core->Tick();
  EXPECT_THAT(rig.events.lines, ::testing::Contains("abandon 1"));
}

TEST(RunLifeTest, APausedRunTakesUpdatesOnTheWayAndStartsNoRound) {
  Rounds rounds;
  rounds.CheckInAll(4);
  rounds.coordinator.SetPaused(true);
  for (uint64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(rounds.Submit(NodeName(i), {.seed = i}).verdict, Verdict::kAccepted);
  }
  ASSERT_TRUE(rounds.Take<VersionPublished>());
  rounds.coordinator.ConfirmPublished(1, kStart);
  EXPECT_EQ(rounds.coordinator.version(), 1u);
  rounds.CheckInAll(4);
  EXPECT_FALSE(rounds.coordinator.collecting());
  rounds.coordinator.SetPaused(false);
  rounds.CheckInAll(4);
  EXPECT_TRUE(rounds.coordinator.collecting());
}

TEST(RunLifeTest, AStoppedRunAbandonsItsRoundAndIsOver) {
  Rounds rounds;
  rounds.CheckInAll(4);
  rounds.coordinator.Stop();
  rounds.coordinator.Stop();
  EXPECT_EQ(rounds.Take<RoundAbandoned>()->reason, "the run was stopped");
  EXPECT_EQ(std::get<RunEnded>(rounds.CheckIn("node-00")).final_version, 0u);
  EXPECT_EQ(rounds.Submit("node-00", testing::UpdateSpec{}).verdict, Verdict::kLate);
}

TEST(RunLifeTest, StopLetsAVersionThatIsBeingPublishedOut) {
  Rounds rounds;
  rounds.CheckInAll(4);
  for (uint64_t i = 0; i < 4; ++i) rounds.Submit(NodeName(i), {.seed = i});
  ASSERT_TRUE(rounds.coordinator.publishing());
  rounds.coordinator.Stop();
  EXPECT_FALSE(rounds.coordinator.finished());
  rounds.coordinator.ConfirmPublished(1, kStart);
  EXPECT_TRUE(rounds.coordinator.finished());
  EXPECT_EQ(rounds.coordinator.version(), 1u);
}

TEST(RunLifeTest, StatesComeBackWithTheServer) {
  FederationRig rig;
  rig.CheckInAll(4);
  ASSERT_TRUE(rig.core->SetPaused(true).ok());
  rig.Start();
  EXPECT_EQ(rig.core->state(), RunState::kPaused);
  EXPECT_EQ(rig.CheckIn("node-00").retry().reason(), "the run is paused");
  // The round that was open goes on, also paused: what is on the way counts.
  EXPECT_EQ(rig.UploadUpdate("node-00", {.seed = 1}), v1::UploadReceipt::ACCEPTED);
  rig.clock.Advance(absl::Hours(1));
  rig.core->Tick();
  ASSERT_TRUE(rig.core->SetPaused(false).ok());
  rig.Start();
  EXPECT_EQ(rig.core->state(), RunState::kRunning);
  EXPECT_TRUE(rig.CheckIn("node-01").has_assignment());
  for (uint64_t i = 1; i < 4; ++i) rig.UploadUpdate(NodeName(i), {.seed = i + 1});
  EXPECT_EQ(rig.core->version(), 1u);
}

TEST(RunLifeTest, AStopThatWasStoredHoldsAfterACrash) {
  FederationRig rig;
  rig.CheckInAll(4);
  for (uint64_t i = 0; i < 3; ++i) rig.UploadUpdate(NodeName(i), {.seed = i});
  // Stored, and the process dies before it could act on it.
  ASSERT_TRUE(ArmFailpoints("core.stop.stored=error").ok());
  EXPECT_FALSE(rig.core->Stop().ok());
  ASSERT_TRUE(ArmFailpoints("").ok());
  rig.Start();
  EXPECT_EQ(rig.core->state(), RunState::kStopped);
  EXPECT_TRUE(rig.core->finished());
  EXPECT_THAT(rig.events.lines, ::testing::Contains("abandon 1"));
  EXPECT_TRUE(rig.CheckIn("node-00").has_finished());
  EXPECT_TRUE(rig.core->Stop().ok());
  rig.Start();
  EXPECT_EQ(rig.core->version(), 0u);
}

TEST(RunLifeTest, ARunThatIsOverStaysSo) {
  RunPlan plan = testing::TinyPlan();
  plan.rounds = 1;
  FederationRig rig(plan);
  rig.CheckInAll(4);
  rig.PlayRound(4, 1, 0);
  EXPECT_EQ(rig.core->state(), RunState::kFinished);
  const absl::Status paused = rig.core->SetPaused(true);
  EXPECT_EQ(paused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(paused.message(), "run 'default' is finished; clone it to train on");
  EXPECT_TRUE(rig.core->Stop().ok());
  EXPECT_EQ(rig.core->state(), RunState::kFinished);
  rig.Start();
  EXPECT_EQ(rig.core->state(), RunState::kFinished);
}

TEST(RunLifeTest, NothingChangesWhileTheDiskIsFull) {
  FederationRig rig;
  rig.CheckInAll(4);
  ASSERT_TRUE(ArmFailpoints("store.state.commit=error(resource_exhausted)").ok());
  EXPECT_EQ(rig.core->SetPaused(true).code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(ArmFailpoints("").ok());
  EXPECT_EQ(rig.core->state(), RunState::kRunning);
  EXPECT_TRUE(rig.CheckIn("node-00").has_assignment());
  EXPECT_TRUE(rig.core->SetPaused(true).ok());
}

}  // namespace
}  // namespace fedge
