// Coordinator: rounds that end without a version, and what follows them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/coordinator.h"
#include "tests/server/rounds.h"
#include "tests/server/tiny_run.h"

namespace fedge {
namespace {

using testing::ExpectCounts;
using ::testing::HasSubstr;
using testing::kStart;
using testing::MakeUpdate;
using testing::NodeName;
using testing::Rounds;
using testing::TinyAdapter;
using testing::TinyPlan;

TEST(CoordinatorAttemptsTest, AbandonsBelowQuorumAndTriesTheNextNumber) {
  Rounds rounds;
  rounds.CheckInAll(4);
  rounds.Submit("node-00", {.seed = 0});
  rounds.coordinator.Tick(kStart + absl::Seconds(60));
  const auto abandoned = rounds.Take<RoundAbandoned>();
  EXPECT_EQ(abandoned->round, 1u);
  EXPECT_EQ(abandoned->reason, "1 of 4 updates accepted, 2 needed");
  ExpectCounts(abandoned->counts, {4, 0, 1, 0, 3, 0});
  EXPECT_EQ(rounds.coordinator.version(), 0u);
  // Silent nodes are gone until they come back, and node-03, whose check-in began the round, may
  // be training; two are enough for a usual cohort's quorum.
  EXPECT_EQ(rounds.coordinator.known_nodes(), 2u);
  EXPECT_TRUE(std::holds_alternative<RetryLater>(rounds.CheckIn("node-00")));
  const auto task = std::get<TaskAssignment>(rounds.CheckIn("node-02"));
  EXPECT_EQ(task.round, 2u);
  EXPECT_EQ(task.adapter_version, 0u);
}

TEST(CoordinatorAttemptsTest, UpdatesOfAnAbandonedRoundCountInTheNextAttempt) {
  const auto fail_but = [](Rounds& rounds, uint64_t round, const std::string& node) {
    for (uint64_t i = 0; i < 4; ++i) {
      if (NodeName(i) != node) rounds.coordinator.ReportFailure(NodeName(i), round, "no battery");
    }
  };
  Rounds rounds;
  rounds.CheckInAll(4);
  EXPECT_EQ(rounds.Submit("node-00", {.seed = 0}).verdict, Verdict::kAccepted);
  fail_but(rounds, 1, "node-00");
  EXPECT_TRUE(rounds.Take<RoundAbandoned>()->carried);
  EXPECT_EQ(rounds.coordinator.counts().folded, 1);
  rounds.CheckInAll(4);
  ASSERT_EQ(rounds.coordinator.round(), 2u);
  // With the update of before, one of four makes the quorum of two.
  EXPECT_EQ(rounds.Submit("node-02", {.round = 2, .seed = 2}).verdict, Verdict::kAccepted);
  fail_but(rounds, 2, "node-02");
  const auto published = rounds.Take<VersionPublished>();
  ASSERT_TRUE(published);
  EXPECT_EQ(published->counts.accepted, 1);
  EXPECT_EQ(published->counts.folded, 1);
  ASSERT_EQ(published->contributions.size(), 2u);
  EXPECT_EQ(published->contributions[0].node_id, "node-00");
  EXPECT_EQ(published->contributions[0].round, 1u);
  EXPECT_EQ(published->contributions[1].round, 2u);
  // The bytes are those of a round that had both.
  Rounds one;
  one.CheckInAll(4);
  one.Submit("node-00", {.seed = 0});
  one.Submit("node-02", {.seed = 2});
  one.coordinator.Tick(kStart + absl::Seconds(60));
  EXPECT_TRUE(one.Take<VersionPublished>()->state.adapter.values() ==
              published->state.adapter.values());
}

TEST(CoordinatorAttemptsTest, TwoUpdatesOfOneNodeAreNoQuorumOfTwo) {
  Rounds rounds;
  const auto attempt = [&](uint64_t round, const std::string& node) {
    rounds.CheckInAll(4);
    EXPECT_EQ(rounds.Submit(node, {.round = round, .seed = round}).verdict, Verdict::kAccepted);
    for (uint64_t i = 0; i < 4; ++i) {
      if (NodeName(i) != node) rounds.coordinator.ReportFailure(NodeName(i), round, "no battery");
    }
  };
  attempt(1, "node-00");
  EXPECT_TRUE(rounds.Take<RoundAbandoned>()->carried);
  attempt(2, "node-00");
  EXPECT_EQ(rounds.Take<RoundAbandoned>()->reason,
            "1 of 4 updates accepted, 1 of earlier rounds, of 1 nodes, 2 needed");
  attempt(3, "node-01");
  EXPECT_EQ(rounds.Take<VersionPublished>()->contributions.size(), 3u);
}

TEST(CoordinatorAttemptsTest, ARollbackMakesWhatAnAbandonedRoundLeftVoid) {
  Rounds rounds;
  rounds.CheckInAll(4);
  rounds.Submit("node-00", {.seed = 0});
  for (uint64_t i = 1; i < 4; ++i) rounds.coordinator.ReportFailure(NodeName(i), 1, "no battery");
  EXPECT_EQ(rounds.coordinator.counts().folded, 1);
  LoraAdapter other = TinyAdapter();
  other.values()[3] = 7;
  rounds.coordinator.Restore(ModelState{other, {}, 1, {}}, "rolled back");
  rounds.coordinator.ConfirmPublished(1, kStart);
  rounds.CheckInAll(4);
  ASSERT_EQ(rounds.coordinator.round(), 2u);
  EXPECT_EQ(rounds.coordinator.counts().folded, 0);
  rounds.Submit("node-02", {.round = 2, .base_version = 1, .seed = 2});
  rounds.coordinator.Tick(kStart + absl::Seconds(60));
  EXPECT_EQ(rounds.Take<RoundAbandoned>()->reason, "1 of 4 updates accepted, 2 needed");
}

TEST(CoordinatorAttemptsTest, SurvivesManyAbandonedRounds) {
  Rounds rounds;
  for (int attempt = 1; attempt <= 50; ++attempt) {
    const absl::Duration now = kStart + attempt * absl::Minutes(2);
    rounds.CheckInAll(4, now);
    rounds.coordinator.Tick(now + absl::Minutes(1));
    EXPECT_EQ(rounds.Take<RoundAbandoned>()->round, static_cast<uint64_t>(attempt));
  }
  EXPECT_FALSE(rounds.coordinator.finished());
}

TEST(CoordinatorAttemptsTest, AbandonsAnAggregateThatCannotBeServed) {
  RunPlan plan = TinyPlan();
  plan.nodes_per_round = plan.min_nodes = 1;
  LoraAdapter edge = TinyAdapter();
  edge.values()[3] = 65500;
  Coordinator coordinator(plan, ModelState{edge, {}, 0});
  ASSERT_TRUE(coordinator.CheckIn("node-00", plan.base_model, kStart).ok());
  std::vector<float> values(edge.values().size());
  values[3] = 50.0f;
  const std::string bytes = MakeUpdate(plan, {.values = values});
  EXPECT_EQ(coordinator
                .SubmitUpdate("node-00", 1,
                              {.digest = Sha256Of(bytes),
                               .wire_bytes = bytes.size(),
                               .admitted = AdmitUpdate(plan, 1, 0, bytes)})
                .verdict,
            Verdict::kAccepted);
  const std::vector<CoordinatorAction> actions = coordinator.TakeActions();
  EXPECT_THAT(std::get<RoundAbandoned>(actions.back()).reason, HasSubstr("beyond 65504"));
  EXPECT_EQ(coordinator.version(), 0u);
  EXPECT_EQ(coordinator.adapter().values()[3], 65500.0f);
}

TEST(CoordinatorAttemptsTest, TrainsTheVersionOfBeforeAfterARefusedCandidate) {
  Rounds rounds;
  rounds.CheckInAll(4);
  for (uint64_t i = 0; i < 4; ++i) rounds.Submit(NodeName(i), {.seed = i});
  EXPECT_EQ(rounds.Take<VersionPublished>()->state.version, 1u);
  EXPECT_EQ(rounds.coordinator.version(), 0u);
  rounds.coordinator.RejectCandidate(1, kStart);
  const auto started = rounds.Take<RoundStarted>();
  EXPECT_EQ(started->round, 2u);
  EXPECT_EQ(started->base_version, 0u);
  EXPECT_TRUE(rounds.coordinator.adapter().values() == TinyAdapter().values());
  for (uint64_t i = 0; i < 4; ++i) rounds.Submit(NodeName(i), {.round = 2, .seed = 9 + i});
  rounds.coordinator.ConfirmPublished(1, kStart);
  EXPECT_EQ(rounds.coordinator.version(), 1u);
}

TEST(CoordinatorAttemptsTest, RestoresAStateAsTheNextVersion) {
  Rounds rounds;
  rounds.CheckInAll(4);
  rounds.Submit("node-00", {.seed = 1});
  LoraAdapter other = TinyAdapter();
  other.values()[3] = 7;
  rounds.coordinator.Restore(ModelState{other, {}, 1, {}}, "rolled back");
  const std::vector<CoordinatorAction> actions = rounds.coordinator.TakeActions();
  ASSERT_GE(actions.size(), 2u);
  const auto* const abandoned = std::get_if<RoundAbandoned>(&actions[actions.size() - 2]);
  ASSERT_NE(abandoned, nullptr);
  EXPECT_EQ(abandoned->reason, "rolled back");
  const auto* const restored = std::get_if<VersionPublished>(&actions.back());
  ASSERT_NE(restored, nullptr);
  EXPECT_EQ(restored->round, 0u);
  EXPECT_TRUE(restored->contributions.empty());
  rounds.coordinator.ConfirmPublished(1, kStart);
  EXPECT_EQ(rounds.coordinator.adapter().values()[3], 7);
  EXPECT_EQ(rounds.Take<RoundStarted>()->base_version, 1u);
}

}  // namespace
}  // namespace fedge
