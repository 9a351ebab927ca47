// When rounds begin, end and give up on nodes: over-selection, leases, learned deadlines, late
// updates, asynchronous rounds, early stopping.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "server/coordinator.h"
#include "tests/server/rounds.h"
#include "tests/server/tiny_run.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using testing::kStart;
using testing::MakeUpdate;
using testing::NodeName;
using testing::Rounds;
using testing::TinyAdapter;
using testing::TinyPlan;

bool HasTask(Rounds& rounds, absl::string_view node, absl::Duration now = kStart) {
  return std::holds_alternative<TaskAssignment>(rounds.CheckIn(node, now));
}

std::string WhyNot(Rounds& rounds, absl::string_view node, absl::Duration now = kStart) {
  return std::get<RetryLater>(rounds.CheckIn(node, now)).reason;
}

TEST(CoordinatorPaceTest, OverSelectionClosesTheRoundWithTheFirstUpdates) {
  RunPlan plan = TinyPlan();
  plan.min_nodes = 8;
  plan.pace.over_selection = 1.5;
  Rounds rounds(plan);
  rounds.CheckInAll(8);
  const std::vector<std::string> cohort = rounds.Take<RoundStarted>()->cohort;
  ASSERT_EQ(cohort.size(), 6u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(rounds.coordinator.collecting());
    rounds.Submit(cohort[i], {.seed = i});
  }
  const auto published = rounds.Take<VersionPublished>();
  ASSERT_TRUE(published.has_value());
  EXPECT_EQ(published->counts.assigned, 6);
  EXPECT_EQ(published->counts.accepted, 4);
  EXPECT_EQ(published->counts.pending, 2);  // still under way
  EXPECT_EQ(published->counts.dropped, 0);
  rounds.coordinator.ConfirmPublished(1, kStart);
  // The digest is enough to tell them.
  const auto late = rounds.coordinator.KnownVerdict(cohort[5], 1, Sha256Of("whatever"));
  ASSERT_TRUE(late.has_value());
  EXPECT_EQ(late->verdict, Verdict::kLate);
}

TEST(CoordinatorPaceTest, DoesNotDrawNodesThatAreBusyWithAnEarlierRound) {
  RunPlan plan = TinyPlan();
  plan.nodes_per_round = 2;
  plan.min_nodes = 6;
  plan.quorum = 1;
  plan.pace.over_selection = 2;
  Rounds rounds(plan);
  rounds.CheckInAll(6);
  const std::vector<std::string> first = rounds.Take<RoundStarted>()->cohort;
  for (const std::string& node : first) EXPECT_TRUE(HasTask(rounds, node));
  rounds.Submit(first[0], {.seed = 0});
  rounds.Submit(first[1], {.seed = 1});
  rounds.coordinator.ConfirmPublished(1, kStart);
  const std::vector<std::string> second = rounds.Take<RoundStarted>()->cohort;
  EXPECT_THAT(second, ::testing::Not(::testing::Contains(first[2])));
  EXPECT_THAT(second, ::testing::Not(::testing::Contains(first[3])));
}

TEST(CoordinatorPaceTest, LearnsTheDeadlineFromWhatNodesTook) {
  RunPlan plan = TinyPlan();
  plan.round_deadline = absl::Minutes(60);
  plan.pace.lease = absl::Seconds(60);
  Rounds rounds(plan);
  rounds.CheckInAll(4);
  EXPECT_EQ(rounds.coordinator.deadline(), kStart + absl::Minutes(60));  // nothing is known
  for (uint64_t i = 0; i < 4; ++i) {
    ASSERT_TRUE(HasTask(rounds, NodeName(i)));
    rounds.coordinator.NoteUpload(NodeName(i), 1, kStart + absl::Seconds(100 + 100 * i));
    rounds.Submit(NodeName(i), {.seed = i});
  }
  const absl::Duration now = kStart + absl::Minutes(10);
  rounds.coordinator.ConfirmPublished(1, now);
  // The slowest of four took 400 s; a check-in takes up to 8 s.
  EXPECT_EQ(rounds.coordinator.deadline(), now + absl::Seconds(8 + 1.5 * 400));
}

TEST(CoordinatorPaceTest, OneSlowNodeInTenDoesNotStretchTheDeadline) {
  NodeSpeeds speeds(1000);
  std::vector<std::string> nodes;
  for (uint64_t i = 0; i < 10; ++i) {
    nodes.push_back(NodeName(i));
    speeds.NoteTask(nodes.back(), absl::Seconds(i == 4 ? 1e6 : 10 + static_cast<double>(i)));
  }
  EXPECT_EQ(speeds.MostOf(nodes), absl::Seconds(19));
  for (uint64_t i = 10; i < 21; ++i) nodes.push_back(NodeName(i));
  EXPECT_EQ(speeds.MostOf(nodes), std::nullopt);  // fewer than half are known
  speeds.NoteRate(NodeName(15), 50);              // its own word: 1000 tokens in 20 s
  EXPECT_EQ(speeds.Expected(NodeName(15)), absl::Seconds(20));
  speeds.NoteRate(NodeName(3), 1e-9);  // measured already
  EXPECT_EQ(speeds.Expected(NodeName(3)), absl::Seconds(13));
  speeds.NoteTask(NodeName(3), absl::Seconds(23));
  EXPECT_EQ(speeds.Expected(NodeName(3)), absl::Seconds(16));
}

TEST(CoordinatorPaceTest, ReplacesANodeThatNeverFetchesItsTask) {
  RunPlan plan = TinyPlan();
  plan.round_deadline = absl::Minutes(60);
  Rounds rounds(plan);
  rounds.CheckInAll(4);
  rounds.Take<RoundStarted>();
  for (uint64_t i = 0; i < 3; ++i) ASSERT_TRUE(HasTask(rounds, NodeName(i)));
  const absl::Duration later = kStart + absl::Seconds(59);
  EXPECT_EQ(WhyNot(rounds, "node-09", later), "not selected for round 1");
  // node-03 opened the round with its check-in; the others fetched their tasks since.
  rounds.coordinator.Tick(kStart + plan.pace.lease + plan.round_deadline);
  EXPECT_FALSE(rounds.coordinator.collecting());

  Rounds silent(plan);
  silent.CheckInAll(4);
  silent.CheckIn(NodeName(3));
  const absl::Duration now = kStart + plan.pace.lease;
  silent.coordinator.Tick(now);
  EXPECT_EQ(silent.coordinator.counts().dropped, 3);  // 0, 1 and 2 did not come
  EXPECT_TRUE(HasTask(silent, "node-09", now));
  const auto joined = silent.Take<NodeAssigned>();
  ASSERT_TRUE(joined.has_value());
  EXPECT_EQ(joined->node_id, "node-09");
  EXPECT_EQ(joined->round, 1u);
  EXPECT_EQ(silent.coordinator.counts().assigned, 5);
  // One that is back keeps its place, and its update counts.
  EXPECT_TRUE(HasTask(silent, NodeName(0), now));
  EXPECT_EQ(silent.Submit(NodeName(1), {.seed = 1}).verdict, Verdict::kAccepted);
  EXPECT_EQ(WhyNot(silent, "node-10", now), "not selected for round 1");  // nobody is missing
  EXPECT_EQ(silent.coordinator.counts().pending, 3);
}

TEST(CoordinatorPaceTest, ATaskThatDidNotGoOutWaitsForOneLease) {
  RunPlan plan = TinyPlan();
  plan.round_deadline = absl::Minutes(60);
  Rounds rounds(plan);
  rounds.CheckInAll(4);
  const auto task_of = [&](uint64_t node) {
    return std::get<TaskAssignment>(rounds.CheckIn(NodeName(node)));
  };
  for (uint64_t i = 1; i < 3; ++i) EXPECT_TRUE(task_of(i).is_new);
  EXPECT_FALSE(task_of(3).is_new);  // its check-in began the round
  rounds.coordinator.TakeBack(NodeName(0), task_of(0));
  const TaskAssignment again = task_of(2);
  EXPECT_FALSE(again.is_new);
  rounds.coordinator.TakeBack(NodeName(2), again);  // it trains already
  rounds.coordinator.Tick(kStart + plan.pace.lease);
  EXPECT_EQ(rounds.coordinator.counts().dropped, 1);
  EXPECT_EQ(rounds.coordinator.counts().pending, 3);
  // Its other task done, it comes back; only from now on it is measured.
  const absl::Duration now = kStart + absl::Minutes(30);
  EXPECT_TRUE(std::get<TaskAssignment>(rounds.CheckIn(NodeName(0), now)).is_new);
}

TEST(CoordinatorPaceTest, ANodeThatShowsProgressKeepsItsPlace) {
  RunPlan plan = TinyPlan();
  plan.round_deadline = absl::Minutes(60);
  Rounds rounds(plan);
  rounds.CheckInAll(4);
  for (uint64_t i = 0; i < 4; ++i) rounds.CheckIn(NodeName(i));
  absl::Duration now = kStart;
  for (int minute = 1; minute < 58; ++minute) {
    now = kStart + absl::Minutes(minute);
    for (uint64_t i = 0; i < 2; ++i) rounds.coordinator.NoteUpload(NodeName(i), 1, now);
    rounds.coordinator.NoteDownload(NodeName(2), now);
    rounds.coordinator.Tick(now);
  }
  EXPECT_EQ(rounds.coordinator.counts().pending, 4);
}

TEST(CoordinatorPaceTest, FoldsALateUpdateInOnceWithAPartOfItsChange) {
  RunPlan plan = TinyPlan();
  plan.nodes_per_round = plan.min_nodes = 3;
  plan.quorum = 0.3;
  plan.rounds = 9;
  plan.admission.norm_bound = NormBound::kOff;
  plan.pace.max_staleness = 2;
  Rounds rounds(plan);
  rounds.CheckInAll(3);
  const auto size = static_cast<size_t>(plan.lora.num_parameters());
  const std::string late =
      MakeUpdate(plan, {.num_examples = 2, .values = std::vector<float>(size, 0.5f)});
  for (uint64_t i = 0; i < 2; ++i) {
    rounds.Submit(NodeName(i), {.values = std::vector<float>(size, 0.0f)});
  }
  rounds.coordinator.Tick(kStart + plan.round_deadline);
  EXPECT_EQ(rounds.Submit("node-02", 1, late).verdict, Verdict::kLater);  // nothing is open
  rounds.coordinator.ConfirmPublished(1, kStart);
  rounds.Take<RoundStarted>();
  EXPECT_EQ(rounds.Submit("node-02", 1, late).verdict, Verdict::kAccepted);
  EXPECT_EQ(rounds.Submit("node-02", 1, late).verdict, Verdict::kAccepted);
  const auto judged = rounds.Take<UpdateJudged>();
  EXPECT_EQ(judged->round, 1u);
  EXPECT_EQ(judged->counted, 2u);
  EXPECT_EQ(rounds.coordinator.counts().folded, 1);
  EXPECT_EQ(rounds.Submit("node-02", 1, MakeUpdate(plan, {.seed = 5})).verdict, Verdict::kRejected);
  const LoraAdapter before = rounds.coordinator.adapter();
  for (uint64_t i = 0; i < 2; ++i) {
    rounds.Submit(NodeName(i), {.round = 2,
                                .base_version = 1,
                                .num_examples = 3,
                                .values = std::vector<float>(size, 0.25f)});
  }
  rounds.coordinator.Tick(kStart + 2 * plan.round_deadline + absl::Minutes(5));
  const auto published = rounds.Take<VersionPublished>();
  ASSERT_TRUE(published.has_value());
  ASSERT_EQ(published->contributions.size(), 3u);
  EXPECT_EQ(published->contributions[2].round, 1u);
  // (2 * 3 * 0.25 + 2 * 0.5 / sqrt(2)) / 8
  const double step = (1.5 + 1 / std::sqrt(2.0)) / 8;
  for (size_t i = 0; i < size; ++i) {
    EXPECT_NEAR(published->state.adapter.values()[i] - before.values()[i], step, 1e-7);
  }
}

TEST(CoordinatorPaceTest, CallsUpdatesOfTooOldVersionsLate) {
  RunPlan plan = TinyPlan();
  plan.nodes_per_round = plan.min_nodes = 2;
  plan.rounds = 9;
  plan.pace.max_staleness = 1;
  plan.pace.over_selection = 2;
  Rounds rounds(plan);
  for (uint64_t i = 0; i < 3; ++i) rounds.CheckIn(NodeName(i));
  rounds.CheckInAll(4);
  std::vector<std::string> cohort = rounds.Take<RoundStarted>()->cohort;
  EXPECT_THAT(cohort, ElementsAre("node-00", "node-01"));
  // node-01 stays away for two versions.
  rounds.Submit("node-00", {.seed = 1});
  rounds.coordinator.Tick(kStart + plan.round_deadline);
  for (uint64_t version = 1; version <= 2; ++version) {
    rounds.coordinator.ConfirmPublished(version, kStart + plan.round_deadline);
    if (version == 2) break;
    EXPECT_TRUE(rounds.coordinator.HasOpenTask("node-01", 1));
    rounds.CheckInAll(4, kStart + plan.round_deadline);
    cohort = rounds.Take<RoundStarted>()->cohort;
    for (size_t i = 0; i < 2; ++i) {
      rounds.Submit(cohort[i], {.round = 2, .base_version = 1, .seed = i});
    }
  }
  EXPECT_FALSE(rounds.coordinator.HasOpenTask("node-01", 1));
  EXPECT_EQ(rounds.Submit("node-01", {.round = 1, .seed = 3}).verdict, Verdict::kLate);
}

TEST(CoordinatorPaceTest, WhatWasTrainedBeforeARestoredVersionCountsNoMore) {
  RunPlan plan = TinyPlan();
  plan.pace.max_staleness = 2;
  Rounds rounds(plan);
  rounds.CheckInAll(4);
  EXPECT_TRUE(HasTask(rounds, "node-00"));
  rounds.coordinator.Restore(ModelState{TinyAdapter(), {}, 1, {}}, "rolled back");
  rounds.coordinator.ConfirmPublished(1, kStart);
  EXPECT_TRUE(rounds.coordinator.collecting());
  const auto late = rounds.coordinator.KnownVerdict("node-00", 1, Sha256Of("update"));
  ASSERT_TRUE(late.has_value());
  EXPECT_EQ(late->verdict, Verdict::kLate);
}

RunPlan AsyncPlan() {
  RunPlan plan = TinyPlan();
  plan.pace.is_async = true;
  plan.pace.over_selection = 1.5;
  plan.pace.max_staleness = 8;
  plan.nodes_per_round = 2;  // updates to a version
  plan.min_nodes = 4;
  plan.rounds = 20;
  plan.admission.norm_bound = NormBound::kOff;
  return plan;
}

TEST(CoordinatorPaceTest, AsynchronousNodesTrainTheNewestVersionWithoutABarrier) {
  Rounds rounds(AsyncPlan());
  rounds.CheckInAll(4);
  // The fourth check-in began it; three nodes train at a time.
  EXPECT_EQ(rounds.coordinator.counts().assigned, 1);
  EXPECT_TRUE(HasTask(rounds, "node-00"));
  EXPECT_TRUE(HasTask(rounds, "node-01"));
  EXPECT_EQ(WhyNot(rounds, "node-02"), "3 nodes are training already");
  EXPECT_TRUE(HasTask(rounds, "node-00"));  // the same task again
  EXPECT_EQ(rounds.coordinator.counts().assigned, 3);
  rounds.Submit("node-00", {.seed = 1});
  EXPECT_EQ(WhyNot(rounds, "node-00"), "round 1 has had this node's update");
  EXPECT_TRUE(HasTask(rounds, "node-02"));  // a place is free
  rounds.Submit("node-01", {.seed = 2});    // the second closes the buffer
  const auto first = rounds.Take<VersionPublished>();
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->counts.pending, 2);
  rounds.coordinator.ConfirmPublished(1, kStart);
  // node-02 and node-03 still train version 0; their updates make version 2 with node-00's.
  const auto task = std::get<TaskAssignment>(rounds.CheckIn("node-00"));
  EXPECT_EQ(task.round, 2u);
  EXPECT_EQ(task.adapter_version, 1u);
  EXPECT_EQ(WhyNot(rounds, "node-01"), "3 nodes are training already");
  EXPECT_EQ(rounds.Submit("node-02", {.round = 1, .seed = 3}).verdict, Verdict::kAccepted);
  EXPECT_EQ(rounds.Submit("node-03", {.round = 1, .seed = 4}).verdict, Verdict::kAccepted);
  const auto second = rounds.Take<VersionPublished>();
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->counts.folded, 2);
  EXPECT_EQ(second->counts.accepted, 0);
  rounds.coordinator.ConfirmPublished(2, kStart);
  EXPECT_EQ(rounds.Submit("node-00", {.round = 2, .base_version = 1, .seed = 5}).verdict,
            Verdict::kAccepted);
}

TEST(CoordinatorPaceTest, AnAsynchronousNodeThatStartsAnewGetsTheNewestVersion) {
  Rounds rounds(AsyncPlan());
  rounds.CheckInAll(4);
  ASSERT_TRUE(HasTask(rounds, "node-00"));
  ASSERT_TRUE(HasTask(rounds, "node-01"));
  rounds.Submit("node-00", {.seed = 1});
  rounds.Submit("node-01", {.seed = 2});
  rounds.coordinator.ConfirmPublished(1, kStart);
  EXPECT_EQ(std::get<TaskAssignment>(rounds.CheckIn("node-03")).round, 2u);
  // What it had made before still counts, once.
  EXPECT_EQ(rounds.Submit("node-03", {.round = 1, .seed = 7}).verdict, Verdict::kAccepted);
  EXPECT_EQ(rounds.Submit("node-03", {.round = 2, .base_version = 1, .seed = 8}).verdict,
            Verdict::kAccepted);
  const auto published = rounds.Take<VersionPublished>();
  ASSERT_TRUE(published.has_value());
  ASSERT_EQ(published->contributions.size(), 2u);
  EXPECT_EQ(published->contributions[0].round, 1u);
  EXPECT_EQ(published->contributions[1].round, 2u);
}

TEST(CoordinatorPaceTest, AnAsynchronousBufferIsNeverAbandoned) {
  RunPlan plan = AsyncPlan();
  plan.nodes_per_round = 4;
  Rounds rounds(plan);
  rounds.CheckInAll(4);
  rounds.CheckIn("node-00");
  rounds.Submit("node-03", {.seed = 1});
  rounds.coordinator.Tick(kStart + plan.round_deadline);  // one of four: no quorum
  EXPECT_TRUE(rounds.coordinator.collecting());
  rounds.Submit("node-00", {.seed = 2});
  rounds.coordinator.Tick(kStart + 2 * plan.round_deadline);
  EXPECT_EQ(rounds.Take<VersionPublished>()->counts.accepted, 2);
}

TEST(CoordinatorPaceTest, AnAsynchronousBufferDoesNotWaitForNobody) {
  RunPlan plan = TinyPlan();
  plan.pace.is_async = true;
  plan.quorum = 1;
  Rounds rounds(plan);
  rounds.CheckInAll(4);
  for (uint64_t i = 0; i < 4; ++i) rounds.CheckIn(NodeName(i));
  rounds.Submit(NodeName(0), {.seed = 0});
  for (uint64_t i = 1; i < 4; ++i) rounds.coordinator.ReportFailure(NodeName(i), 1, "no room");
  rounds.coordinator.Tick(kStart + plan.round_deadline - absl::Seconds(1));
  EXPECT_TRUE(rounds.coordinator.collecting());
  rounds.coordinator.Tick(kStart + plan.round_deadline);
  EXPECT_FALSE(rounds.coordinator.collecting());
  EXPECT_TRUE(HasTask(rounds, NodeName(1), kStart + plan.round_deadline));
  EXPECT_EQ(rounds.coordinator.round(), 2u);
}

TEST(CoordinatorPaceTest, AsynchronousPlacesOfSilentNodesAreGivenToOthers) {
  RunPlan plan = AsyncPlan();
  Rounds rounds(plan);
  rounds.CheckInAll(4);
  rounds.CheckIn("node-00");
  rounds.CheckIn("node-01");
  EXPECT_FALSE(HasTask(rounds, "node-02"));
  // Nothing is known of their speed.
  const absl::Duration now = kStart + plan.pace.lease + plan.round_deadline;
  EXPECT_TRUE(HasTask(rounds, "node-02", now));
  // It was slow, not gone.
  EXPECT_EQ(rounds.Submit("node-00", {.seed = 1}).verdict, Verdict::kAccepted);
}

TEST(CoordinatorPaceTest, AnyOrderOfFreshAndStaleUpdatesGivesTheSameBytes) {
  std::vector<float> expected;
  for (uint64_t trial = 0; trial < 10; ++trial) {
    RunPlan plan = AsyncPlan();
    plan.nodes_per_round = 4;
    plan.pace.over_selection = 3;
    Rounds rounds(plan);
    for (int again = 0; again < 2; ++again) rounds.CheckInAll(8);
    for (uint64_t i = 0; i < 4; ++i) rounds.Submit(NodeName(i), {.seed = i});
    rounds.coordinator.ConfirmPublished(1, kStart);
    rounds.CheckInAll(2);
    std::vector<uint64_t> order = {0, 1, 4, 5};
    Rng(trial).Shuffle(absl::MakeSpan(order));
    for (const uint64_t i : order) {
      const bool is_stale = i >= 4;
      EXPECT_EQ(rounds
                    .Submit(NodeName(i), {.round = is_stale ? uint64_t{1} : uint64_t{2},
                                          .base_version = is_stale ? uint64_t{0} : uint64_t{1},
                                          .num_examples = 3 + i,
                                          .seed = 50 + i})
                    .verdict,
                Verdict::kAccepted);
    }
    const auto published = rounds.Take<VersionPublished>();
    const std::vector<float> values(published->state.adapter.values().begin(),
                                    published->state.adapter.values().end());
    if (trial == 0) expected = values;
    ASSERT_EQ(values, expected) << trial;
  }
}

TEST(CoordinatorPaceTest, StopsWhenTheHeldOutLossNoLongerFalls) {
  RunPlan plan = TinyPlan();
  plan.rounds = 100;
  plan.pace.patience = 2;
  plan.pace.min_improvement = 0.1;
  Rounds rounds(plan);
  rounds.CheckInAll(4);
  const double losses[] = {4.0, 3.5, 3.45, 3.41, 2.0};
  uint64_t version = 0;
  for (; !rounds.coordinator.finished() && version < 5; ++version) {
    rounds.coordinator.NoteHoldout(version, losses[version]);
    for (uint64_t i = 0; i < 4; ++i) {
      rounds.Submit(NodeName(i), {.round = version + 1, .base_version = version, .seed = i});
    }
    rounds.coordinator.ConfirmPublished(version + 1, kStart);
  }
  EXPECT_TRUE(rounds.coordinator.finished());
  EXPECT_EQ(version, 4u);  // 3.45 and 3.41 are no improvements by 0.1; round 4 was open
  EXPECT_EQ(rounds.Take<RunCompleted>()->final_version, 4u);
}

TEST(CoordinatorPaceTest, ALossThatIsNoNumberIsNoImprovement) {
  EarlyStopping stopping(1, 0);
  stopping.Note(0, 3.0);
  stopping.Note(0, 5.0);  // the same version again
  EXPECT_FALSE(stopping.reached());
  stopping.Note(1, std::nan(""));
  EXPECT_TRUE(stopping.reached());
  EarlyStopping never(0, 0);
  for (uint64_t version = 0; version < 9; ++version) never.Note(version, 9.0);
  EXPECT_FALSE(never.reached());
}

}  // namespace
}  // namespace fedge
