#include "server/quarantine.h"

#include <gtest/gtest.h>

#include "tests/server/rounds.h"

namespace fedge {
namespace {

using testing::NodeName;
using testing::Rounds;
using testing::TinyPlan;

TEST(QuarantineTest, KeepsOutAfterSoManyInARow) {
  Quarantine quarantine(3, 10);
  quarantine.Note("x", 1, false);
  quarantine.Note("x", 2, false);
  EXPECT_FALSE(quarantine.Holds("x", 3));
  EXPECT_EQ(quarantine.Reason("x", 3), "");
  quarantine.Note("x", 3, false);
  EXPECT_TRUE(quarantine.Holds("x", 4));
  EXPECT_TRUE(quarantine.Holds("x", 13));
  EXPECT_FALSE(quarantine.Holds("x", 14));
  EXPECT_FALSE(quarantine.Holds("y", 4));
  EXPECT_EQ(quarantine.Reason("x", 4),
            "quarantined until round 13: 3 updates in a row were rejected");
}

TEST(QuarantineTest, AnAcceptedUpdateEndsTheRow) {
  Quarantine quarantine(2, 5);
  quarantine.Note("x", 1, false);
  quarantine.Note("x", 2, true);
  quarantine.Note("x", 3, false);
  EXPECT_FALSE(quarantine.Holds("x", 4));
}

TEST(QuarantineTest, GivesOneTryAfterwards) {
  Quarantine quarantine(2, 5);
  quarantine.Note("x", 1, false);
  quarantine.Note("x", 2, false);
  EXPECT_FALSE(quarantine.Holds("x", 8));
  quarantine.Note("x", 8, false);
  EXPECT_TRUE(quarantine.Holds("x", 13));
  quarantine.Note("x", 14, true);
  quarantine.Note("x", 15, false);
  EXPECT_FALSE(quarantine.Holds("x", 16));
}

TEST(QuarantineTest, ZeroKeepsNobodyOut) {
  Quarantine quarantine(0, 5);
  for (uint64_t round = 1; round < 9; ++round) quarantine.Note("x", round, false);
  EXPECT_FALSE(quarantine.Holds("x", 9));
}

RunPlan SmallCohorts() {
  RunPlan plan = TinyPlan();
  plan.rounds = 40;
  plan.min_nodes = 6;
  plan.quorum = 0.25;
  plan.admission.quarantine_after = 2;
  plan.admission.quarantine_rounds = 3;
  return plan;
}

// Node 0 sends rubbish whenever it is drawn.
TEST(QuarantineTest, ARunDrawsOthersAndSaysWhy) {
  RunPlan plan = SmallCohorts();
  plan.nodes_per_round = 5;
  Rounds rounds(plan);
  uint64_t held_rounds = 0;
  int rejected = 0;
  uint64_t kept_out_until = 0;
  for (uint64_t round = 1; round <= 30; ++round) {
    rounds.CheckInAll(6);
    ASSERT_EQ(rounds.coordinator.round(), round);
    const CheckInDecision decision = rounds.CheckIn(NodeName(0));
    if (round <= kept_out_until) {
      ++held_rounds;
      const auto* const later = std::get_if<RetryLater>(&decision);
      ASSERT_NE(later, nullptr) << round;
      EXPECT_EQ(later->reason.substr(0, 18), "quarantined until ") << later->reason;
    } else if (std::holds_alternative<TaskAssignment>(decision)) {
      EXPECT_EQ(rounds.Submit(NodeName(0), round, "rubbish").verdict, Verdict::kRejected);
      if (++rejected >= 2) kept_out_until = round + 3;
    }
    for (uint64_t node = 1; node < 6; ++node) {
      rounds.Submit(NodeName(node),
                    {.round = round, .base_version = rounds.coordinator.version(), .seed = node});
    }
    ASSERT_TRUE(rounds.coordinator.publishing()) << round;
    rounds.coordinator.ConfirmPublished(rounds.coordinator.version() + 1, testing::kStart);
  }
  EXPECT_GE(held_rounds, 15u);
}

TEST(QuarantineTest, ARunWithoutOtherNodesGoesOnWithThem) {
  RunPlan plan = SmallCohorts();
  plan.nodes_per_round = plan.min_nodes = 2;
  plan.quorum = 1;
  Rounds rounds(plan);
  for (uint64_t round = 1; round <= 3; ++round) {
    rounds.CheckInAll(2);
    ASSERT_EQ(rounds.coordinator.round(), round);
    EXPECT_TRUE(std::holds_alternative<TaskAssignment>(rounds.CheckIn(NodeName(0))));
    rounds.Submit(NodeName(0), round, "rubbish");
    rounds.coordinator.ReportFailure(NodeName(1), round, "no battery");
  }
}

}  // namespace
}  // namespace fedge
