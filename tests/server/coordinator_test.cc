#include "server/coordinator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/server/rounds.h"
#include "tests/server/tiny_run.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using testing::ExpectCounts;
using ::testing::HasSubstr;
using testing::kStart;
using testing::MakeUpdate;
using testing::NodeName;
using testing::Rounds;
using testing::TinyAdapter;
using testing::TinyPlan;
using testing::UpdateSpec;

TEST(CoordinatorTest, WaitsForMinimumOfNodes) {
  Rounds rounds;
  const auto early = std::get<RetryLater>(rounds.CheckIn("a"));
  EXPECT_EQ(early.reason, "waiting for nodes: 1 of 4 have checked in");
  EXPECT_EQ(early.min_delay, absl::Seconds(4));
  EXPECT_EQ(early.max_delay, absl::Seconds(8));
  rounds.CheckIn("b");
  rounds.CheckIn("b");
  rounds.CheckIn("c");
  EXPECT_FALSE(rounds.coordinator.collecting());
  const auto task = std::get<TaskAssignment>(rounds.CheckIn("d"));
  EXPECT_EQ(task.round, 1u);
  EXPECT_EQ(task.adapter_version, 0u);
  EXPECT_EQ(task.deadline, absl::Seconds(60));
  EXPECT_THAT(rounds.Take<RoundStarted>()->cohort, ElementsAre("a", "b", "c", "d"));
}

TEST(CoordinatorTest, ManyNodesAreAskedToComeLessOften) {
  RunPlan plan = TinyPlan();
  plan.min_nodes = 5000;
  Rounds rounds(plan);
  for (int i = 0; i < 2000; ++i) rounds.CheckIn(absl::StrCat("node-", i));
  const auto later = std::get<RetryLater>(rounds.CheckIn("node-0"));
  EXPECT_EQ(later.min_delay, absl::Seconds(10));
  EXPECT_EQ(later.max_delay, absl::Seconds(20));
  EXPECT_GT(later.min_delay, plan.retry);
}

TEST(CoordinatorTest, RepeatsTheSameAssignment) {
  Rounds rounds;
  rounds.CheckInAll(4);
  const auto first = std::get<TaskAssignment>(rounds.CheckIn("node-00"));
  const auto again =
      std::get<TaskAssignment>(rounds.CheckIn("node-00", kStart + absl::Seconds(20)));
  EXPECT_EQ(again.round, first.round);
  EXPECT_EQ(again.seed, first.seed);
  EXPECT_EQ(again.deadline, first.deadline - absl::Seconds(20));
  EXPECT_NE(first.seed, std::get<TaskAssignment>(rounds.CheckIn("node-01")).seed);
}

TEST(CoordinatorTest, DrawsTheSameCohortForAnyOrderOfArrivals) {
  RunPlan plan = TinyPlan();
  plan.nodes_per_round = 5;
  plan.min_nodes = 30;
  std::vector<std::string> names;
  for (uint64_t i = 0; i < 30; ++i) names.push_back(NodeName(i));
  std::vector<std::string> expected;
  for (uint64_t trial = 0; trial < 50; ++trial) {
    Rng(trial).Shuffle(absl::MakeSpan(names));
    Rounds rounds(plan);
    for (const std::string& name : names) rounds.CheckIn(name);
    const auto started = rounds.Take<RoundStarted>();
    ASSERT_TRUE(started.has_value());
    if (trial == 0) expected = started->cohort;
    ASSERT_EQ(started->cohort, expected);
  }
  EXPECT_EQ(expected.size(), 5u);
  EXPECT_TRUE(std::is_sorted(expected.begin(), expected.end()));
  plan.seed = 8;
  Rounds other(plan);
  for (const std::string& name : names) other.CheckIn(name);
  EXPECT_NE(other.Take<RoundStarted>()->cohort, expected);
}

TEST(CoordinatorTest, AsksNodesOutsideTheCohortToComeLater) {
  RunPlan plan = TinyPlan();
  plan.nodes_per_round = 1;
  Rounds rounds(plan);
  rounds.CheckInAll(4);
  int selected = 0;
  for (uint64_t i = 0; i < 4; ++i) {
    const CheckInDecision decision = rounds.CheckIn(NodeName(i));
    if (std::holds_alternative<TaskAssignment>(decision)) {
      ++selected;
    } else {
      EXPECT_EQ(std::get<RetryLater>(decision).reason, "not selected for round 1");
    }
  }
  EXPECT_EQ(selected, 1);
}

TEST(CoordinatorTest, PublishesWhenTheLastUpdateIsIn) {
  Rounds rounds;
  rounds.CheckInAll(4);
  for (uint64_t i = 0; i < 4; ++i) {
    EXPECT_FALSE(rounds.Take<VersionPublished>().has_value());
    EXPECT_EQ(rounds.Submit(NodeName(i), {.num_examples = i + 1, .seed = i}).verdict,
              Verdict::kAccepted);
  }
  const auto published = rounds.Take<VersionPublished>();
  ASSERT_TRUE(published.has_value());
  EXPECT_EQ(published->state.version, 1u);
  EXPECT_EQ(published->round, 1u);
  ExpectCounts(published->counts, {4, 0, 4, 0, 0, 0});
  ASSERT_EQ(published->contributions.size(), 4u);
  EXPECT_EQ(published->contributions[2].node_id, "node-02");
  EXPECT_EQ(published->contributions[2].weight, 3u);
  EXPECT_TRUE(rounds.coordinator.publishing());
  EXPECT_EQ(std::get<RetryLater>(rounds.CheckIn("node-00")).reason, "round 1 is being aggregated");
  rounds.coordinator.ConfirmPublished(1, kStart + absl::Seconds(5));
  EXPECT_EQ(rounds.Take<RoundStarted>()->round, 2u);
  const auto task = std::get<TaskAssignment>(rounds.CheckIn("node-00", kStart + absl::Seconds(6)));
  EXPECT_EQ(task.adapter_version, 1u);
  EXPECT_EQ(task.deadline, absl::Seconds(59));
}

TEST(CoordinatorTest, AddsTheWeightedMeanOnce) {
  RunPlan plan = TinyPlan();
  plan.nodes_per_round = plan.min_nodes = 2;
  plan.outer.learning_rate = 0.5;
  Rounds rounds(plan);
  rounds.CheckInAll(2);
  const size_t size = static_cast<size_t>(plan.lora.num_parameters());
  rounds.Submit("node-00", {.num_examples = 1, .values = std::vector<float>(size, 0.5f)});
  rounds.Submit("node-01", {.num_examples = 3, .values = std::vector<float>(size, -0.25f)});
  const auto published = rounds.Take<VersionPublished>();
  const LoraAdapter initial = TinyAdapter();
  for (size_t i = 0; i < size; ++i) {  // mean = (0.5 - 0.75) / 4
    EXPECT_EQ(published->state.adapter.values()[i],
              static_cast<float>(double{initial.values()[i]} + 0.5 * -0.0625));
  }
}

TEST(CoordinatorTest, AppliesNesterovMomentum) {
  RunPlan plan = TinyPlan();
  plan.nodes_per_round = plan.min_nodes = 1;
  plan.outer = {.kind = OuterOptimizerKind::kNesterov, .beta1 = 0.5};
  Rounds rounds(plan);
  rounds.CheckInAll(1);
  const size_t size = static_cast<size_t>(plan.lora.num_parameters());
  const std::vector<float> ones(size, 1.0f);
  rounds.Submit("node-00", {.round = 1, .base_version = 0, .values = ones});
  const auto first = rounds.Take<VersionPublished>();
  EXPECT_EQ(first->state.momentum[0], 1.0f);  // m = 1, step = 1 + 0.5
  const double before = TinyAdapter().values()[0];
  EXPECT_EQ(first->state.adapter.values()[0], static_cast<float>(before + 1.5));
  rounds.coordinator.ConfirmPublished(1, kStart);
  rounds.Submit("node-00", {.round = 2, .base_version = 1, .values = ones});
  const auto second = rounds.Take<VersionPublished>();
  EXPECT_EQ(second->state.momentum[0], 1.5f);  // m = 1.5, step = 1 + 0.75
  EXPECT_EQ(second->state.adapter.values()[0],
            static_cast<float>(double{first->state.adapter.values()[0]} + 1.75));
}

TEST(CoordinatorTest, TakesTheSlicesThatTheRunGivesOut) {
  RunPlan plan = TinyPlan();
  plan.node_ranks = {{.rank = 1, .share = 0.5}};
  Rounds rounds(plan);
  rounds.CheckInAll(4);
  EXPECT_EQ(rounds.Submit("node-00", UpdateSpec{}).verdict, Verdict::kAccepted);
  const AdapterSlice small{SliceFactors::kBoth, 0, 1};
  EXPECT_EQ(rounds.Submit("node-01", {.slice = small}).verdict, Verdict::kAccepted);
  const UpdateVerdict other =
      rounds.Submit("node-02", {.slice = AdapterSlice{SliceFactors::kB, 0, 1}});
  EXPECT_EQ(other.verdict, Verdict::kRejected);
  EXPECT_EQ(other.reason, "update: is of B, components 0-0, round 1 trains A and B");
  EXPECT_EQ(rounds.Submit("node-03", {.slice = AdapterSlice{SliceFactors::kBoth, 1, 2}}).verdict,
            Verdict::kRejected);
}

TEST(CoordinatorTest, PublishesTheSameBytesForAnyOrderOfUpdates) {
  RunPlan plan = TinyPlan();
  plan.nodes_per_round = plan.min_nodes = 8;
  plan.outer = {.kind = OuterOptimizerKind::kNesterov, .beta1 = 0.9};
  std::vector<uint64_t> order = {0, 1, 2, 3, 4, 5, 6, 7};
  std::vector<float> expected;
  for (uint64_t trial = 0; trial < 30; ++trial) {
    Rounds rounds(plan);
    rounds.CheckInAll(8);
    Rng(trial).Shuffle(absl::MakeSpan(order));
    for (const uint64_t i : order) {
      rounds.Submit(NodeName(i), {.num_examples = 3 + 5 * i, .seed = i});
    }
    const auto published = rounds.Take<VersionPublished>();
    const std::vector<float> values(published->state.adapter.values().begin(),
                                    published->state.adapter.values().end());
    if (trial == 0) expected = values;
    ASSERT_EQ(values, expected) << "order of trial " << trial;
  }
}

TEST(CoordinatorTest, AnswersTheSameBytesWithTheSameVerdict) {
  Rounds rounds;
  rounds.CheckInAll(4);
  const std::string good = MakeUpdate(rounds.coordinator.plan(), {.seed = 1});
  const std::string bad = MakeUpdate(rounds.coordinator.plan(), {.base_version = 5});
  EXPECT_EQ(rounds.Submit("node-00", 1, good).verdict, Verdict::kAccepted);
  EXPECT_EQ(rounds.Submit("node-00", 1, good).verdict, Verdict::kAccepted);
  const UpdateVerdict first = rounds.Submit("node-01", 1, bad);
  const UpdateVerdict second = rounds.Submit("node-01", 1, bad);
  EXPECT_EQ(first.verdict, Verdict::kRejected);
  EXPECT_EQ(second.verdict, Verdict::kRejected);
  EXPECT_EQ(first.reason, second.reason);
  ExpectCounts(rounds.coordinator.counts(), {4, 2, 1, 1, 0, 0});
  // Also after the round: the receipt may have been lost.
  rounds.Submit("node-02", {.seed = 2});
  rounds.Submit("node-03", {.seed = 3});
  rounds.coordinator.ConfirmPublished(1, kStart);
  EXPECT_EQ(rounds.Submit("node-00", 1, good).verdict, Verdict::kAccepted);
  EXPECT_EQ(rounds.Submit("node-01", 1, bad).verdict, Verdict::kRejected);
}

TEST(CoordinatorTest, RejectsOtherBytesAfterAVerdictWithoutEffect) {
  Rounds rounds;
  rounds.CheckInAll(4);
  rounds.Submit("node-00", {.seed = 1});
  const UpdateVerdict other = rounds.Submit("node-00", {.seed = 2});
  EXPECT_EQ(other.verdict, Verdict::kRejected);
  EXPECT_EQ(other.reason, "another update of this node for round 1 was judged already");
  ExpectCounts(rounds.coordinator.counts(), {4, 3, 1, 0, 0, 0});
}

TEST(CoordinatorTest, RejectsNodesOutsideTheCohortAndFutureRounds) {
  Rounds rounds;
  EXPECT_EQ(rounds.Submit("stranger", {}).reason, "round 1 has not started");
  rounds.CheckInAll(4);
  EXPECT_EQ(rounds.Submit("stranger", {}).reason,
            "node 'stranger' is not in the cohort of round 1");
  EXPECT_EQ(rounds.Submit("node-00", {.round = 2}).reason, "round 2 has not started");
  EXPECT_EQ(rounds.Submit("node-00", {.round = 0}).verdict, Verdict::kLate);
  ExpectCounts(rounds.coordinator.counts(), {4, 4, 0, 0, 0, 0});
}

TEST(CoordinatorTest, RejectsUpdatesThatFailAdmission) {
  Rounds rounds;
  rounds.CheckInAll(4);
  const RunPlan& plan = rounds.coordinator.plan();
  EXPECT_EQ(rounds.Submit("node-00", {.base_version = 1}).reason,
            "update: is relative to adapter version 1, round 1 trains version 0");
  EXPECT_THAT(rounds.Submit("node-01", 1, MakeUpdate(plan, {.round = 9})).reason,
              HasSubstr("header says round 9"));
  RunPlan other_shape = TinyPlan();
  other_shape.lora = testing::TinySpec(/*alpha=*/8);
  EXPECT_EQ(rounds.Submit("node-02", 1, MakeUpdate(other_shape, {})).verdict, Verdict::kRejected);
  RunPlan other_base = TinyPlan();
  other_base.base_model = Sha256Of("another");
  EXPECT_THAT(rounds.Submit("node-03", 1, MakeUpdate(other_base, {})).reason,
              HasSubstr("made with base model"));
  const auto abandoned = rounds.Take<RoundAbandoned>();
  EXPECT_EQ(abandoned->reason, "0 of 4 updates accepted, 2 needed");
  ExpectCounts(abandoned->counts, {4, 0, 0, 4, 0, 0});
}

TEST(CoordinatorTest, OneBadUpdateDoesNotHurtTheOthers) {
  Rounds good;
  Rounds bad;
  for (Rounds* rounds : {&good, &bad}) {
    rounds->CheckInAll(4);
    for (uint64_t i = 0; i < 3; ++i) rounds->Submit(NodeName(i), {.seed = i});
  }
  good.coordinator.ReportFailure("node-03", 1, "gave up");
  EXPECT_EQ(bad.Submit("node-03", 1, "not an update").verdict, Verdict::kRejected);
  const auto a = good.Take<VersionPublished>();
  const auto b = bad.Take<VersionPublished>();
  EXPECT_EQ(a->state.adapter.values(), b->state.adapter.values());
  ExpectCounts(a->counts, {4, 0, 3, 0, 1, 0});
  ExpectCounts(b->counts, {4, 0, 3, 1, 0, 0});
}

TEST(CoordinatorTest, ClosesAtTheDeadlineWithQuorum) {
  Rounds rounds;
  rounds.CheckInAll(4);
  rounds.Submit("node-00", {.seed = 0});
  rounds.Submit("node-01", {.seed = 1});
  rounds.coordinator.Tick(kStart + absl::Seconds(60) - absl::Nanoseconds(1));
  EXPECT_TRUE(rounds.coordinator.collecting());
  rounds.coordinator.Tick(kStart + absl::Seconds(60));
  ExpectCounts(rounds.Take<VersionPublished>()->counts, {4, 0, 2, 0, 2, 0});
}

TEST(CoordinatorTest, CallsUpdatesOfClosedRoundsLate) {
  Rounds rounds;
  rounds.CheckInAll(4);
  for (uint64_t i = 0; i < 3; ++i) rounds.Submit(NodeName(i), {.seed = i});
  rounds.coordinator.Tick(kStart + absl::Seconds(60));
  rounds.coordinator.ConfirmPublished(1, kStart + absl::Seconds(60));
  EXPECT_EQ(rounds.coordinator.round(), 2u);
  const UpdateVerdict late = rounds.Submit("node-03", {.round = 1, .seed = 3});
  EXPECT_EQ(late.verdict, Verdict::kLate);
  EXPECT_EQ(late.reason, "round 1 is over");
  rounds.Submit("node-03", {.round = 1, .seed = 3});  // counted once
  EXPECT_EQ(rounds.coordinator.counts().late, 1);
  EXPECT_EQ(rounds.coordinator.counts().accepted, 0);
}

TEST(CoordinatorTest, FailureReportFreesTheRound) {
  Rounds rounds;
  rounds.CheckInAll(4);
  for (uint64_t i = 0; i < 3; ++i) rounds.Submit(NodeName(i), {.seed = i});
  rounds.coordinator.ReportFailure("node-00", 1, "ignored: accepted already");
  rounds.coordinator.ReportFailure("stranger", 1, "ignored");
  rounds.coordinator.ReportFailure("node-03", 7, "ignored");
  ExpectCounts(rounds.coordinator.counts(), {4, 1, 3, 0, 0, 0});
  rounds.coordinator.ReportFailure("node-03", 1, "out of memory");
  ExpectCounts(rounds.Take<VersionPublished>()->counts, {4, 0, 3, 0, 1, 0});
}

TEST(CoordinatorTest, CapsTheWeightAndRefusesNone) {
  RunPlan plan = TinyPlan();
  plan.max_examples_per_node = 100;
  const auto huge = AdmitUpdate(
      plan, 1, 0, MakeUpdate(plan, {.num_examples = std::numeric_limits<uint64_t>::max()}));
  ASSERT_TRUE(huge.ok()) << huge.status();
  EXPECT_EQ(huge->weight, 100u);
  const auto none = AdmitUpdate(plan, 1, 0, MakeUpdate(plan, {.num_examples = 0}));
  EXPECT_EQ(none.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CoordinatorTest, RefusesNonFiniteValuesAndTruncation) {
  const RunPlan plan = TinyPlan();
  std::string bytes = MakeUpdate(plan, {});
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(AdmitUpdate(plan, 1, 0, bytes.substr(0, size)).ok()) << size;
  }
  for (size_t i = 0; i < bytes.size(); ++i) {  // every byte is under a checksum
    std::string damaged = bytes;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x40);
    EXPECT_FALSE(AdmitUpdate(plan, 1, 0, damaged).ok()) << i;
  }
  EXPECT_EQ(
      AdmitUpdate(plan, 1, 0, bytes + std::string(plan.max_update_bytes, 'x')).status().code(),
      absl::StatusCode::kInvalidArgument);
}

TEST(CoordinatorTest, FinishesAfterTheLastPublishedRound) {
  Rounds rounds;
  rounds.CheckInAll(4);
  for (uint64_t round = 1; round <= 3; ++round) {
    for (uint64_t i = 0; i < 4; ++i) {
      rounds.Submit(NodeName(i), {.round = round, .base_version = round - 1, .seed = i});
    }
    rounds.coordinator.ConfirmPublished(round, kStart);
  }
  EXPECT_TRUE(rounds.coordinator.finished());
  EXPECT_EQ(rounds.Take<RunCompleted>()->final_version, 3u);
  EXPECT_EQ(std::get<RunEnded>(rounds.CheckIn("node-00")).final_version, 3u);
  EXPECT_EQ(rounds.Submit("node-00", {.round = 4, .base_version = 3}).verdict, Verdict::kRejected);
}

TEST(CoordinatorTest, ContinuesAfterARestart) {
  RunPlan plan = TinyPlan();
  Coordinator coordinator(plan, ModelState{TinyAdapter(), {}, 2}, 6);
  for (uint64_t i = 0; i < 4; ++i) {
    ASSERT_TRUE(coordinator.CheckIn(NodeName(i), plan.base_model, kStart).ok());
  }
  EXPECT_EQ(coordinator.round(), 6u);
  EXPECT_EQ(coordinator.version(), 2u);
  EXPECT_EQ(coordinator.KnownVerdict("node-00", 5, Digest())->verdict, Verdict::kLate);
  Coordinator done(plan, ModelState{TinyAdapter(), {}, 3}, 9);
  EXPECT_TRUE(done.finished());
}

TEST(CoordinatorTest, RefusesForeignBaseModelNamingBoth) {
  Rounds rounds;
  const Digest other = Sha256Of("other");
  const auto decision = rounds.coordinator.CheckIn("a", other, kStart);
  EXPECT_EQ(decision.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(decision.status().message()), HasSubstr(other.Hex()));
  EXPECT_THAT(std::string(decision.status().message()),
              HasSubstr(rounds.coordinator.plan().base_model.Hex()));
  EXPECT_EQ(rounds.coordinator.known_nodes(), 0u);
}

TEST(CoordinatorTest, ChecksNodeIds) {
  EXPECT_TRUE(CheckNodeId("raspberry-pi.7").ok());
  EXPECT_TRUE(CheckNodeId("Köln \xF0\x9F\x8F\xA0").ok());
  EXPECT_TRUE(CheckNodeId(std::string(128, 'x')).ok());
  for (const std::string& bad :
       {std::string(), std::string(129, 'x'), std::string("a\nb"), std::string("a\0b", 3),
        std::string("\x7F"), std::string("\xC2\x85"), std::string("\xC3"), std::string("\xC0\x80"),
        std::string("\xED\xA0\x80"), std::string("\xF5\x80\x80\x80"), std::string("\x80")}) {
    EXPECT_EQ(CheckNodeId(bad).code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace fedge
