#include "server/quality_gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "fedge/v1/config.pb.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using Stage = QualityGate::Stage;

constexpr absl::Duration kNow = absl::Seconds(100);
constexpr absl::Duration kLimit = absl::Minutes(10);
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Over 100 tokens.
LossSum Loss(double mean) { return {mean * 100, 100}; }
Measurement Of(double total, std::map<std::string, LossSum> slices = {}) {
  return {Loss(total), std::move(slices)};
}
HoldoutMeasurement Holdout(double base, double current, double candidate) {
  return {Of(base), Of(current), Of(candidate)};
}
GatePlan HoldoutOnly() {
  GatePlan plan;
  plan.enabled = true;
  return plan;
}
GatePlan WithNodes() {
  GatePlan plan = HoldoutOnly();
  plan.evaluation_nodes = 4;
  return plan;
}
std::vector<std::string> Names(int count) {
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.push_back(absl::StrCat("n", i < 10 ? "0" : "", i));
  return names;
}
QualityGate ByHoldout(const HoldoutMeasurement& measured) {
  QualityGate gate(HoldoutOnly(), true, {}, kLimit, kNow);
  gate.NoteHoldout(measured, kNow);
  return gate;
}
// Nodes whose loss changes by so much.
QualityGate ByNodes(const std::vector<double>& changes, GatePlan plan = WithNodes()) {
  QualityGate gate(plan, false, Names(static_cast<int>(changes.size())), kLimit, kNow);
  const std::vector<std::string> names = Names(static_cast<int>(changes.size()));
  for (size_t i = 0; i < changes.size(); ++i) gate.NoteNode(names[i], {Of(2), Of(2 + changes[i])});
  return gate;
}

TEST(QualityGateTest, PassesWhatIsNotWorse) {
  const QualityGate gate = ByHoldout(Holdout(4, 3, 2.9));
  EXPECT_EQ(gate.stage(), Stage::kPassed);
  EXPECT_TRUE(gate.decision().passed());
  EXPECT_DOUBLE_EQ(gate.decision().holdout().candidate().nats(), 290);
  EXPECT_EQ(ByHoldout(Holdout(4, 3, 3.05)).stage(), Stage::kPassed);  // just at the limit
}

TEST(QualityGateTest, RefusesWhatIsWorseThanTheCurrentVersion) {
  const QualityGate gate = ByHoldout(Holdout(4, 3, 3.0502));
  EXPECT_EQ(gate.stage(), Stage::kRefused);
  EXPECT_EQ(gate.decision().reason(),
            "holdout loss 3.0502 is worse than the current version's 3.0000 by 0.0502 nats a "
            "token, allowed are 0.05");
}

TEST(QualityGateTest, RefusesWhatManySmallStepsMadeWorseThanTheBase) {
  const QualityGate gate = ByHoldout(Holdout(3, 3.04, 3.08));
  EXPECT_EQ(gate.stage(), Stage::kRefused);
  EXPECT_THAT(gate.decision().reason(), HasSubstr("worse than the base model's 3.0000 by 0.08"));
}

TEST(QualityGateTest, RefusesWhatIsNotANumber) {
  EXPECT_EQ(ByHoldout(Holdout(4, 3, kNaN)).decision().reason(), "holdout loss is not a number");
  EXPECT_EQ(ByHoldout(Holdout(4, 3, std::numeric_limits<double>::infinity())).stage(),
            Stage::kRefused);
  EXPECT_EQ(ByHoldout(Holdout(kNaN, kNaN, 3)).stage(), Stage::kPassed);
}

TEST(QualityGateTest, RefusesASliceThatGetsWorseThoughTheMeanImproves) {
  HoldoutMeasurement measured = Holdout(4, 3, 2.5);
  for (Measurement* part : {&measured.base, &measured.current, &measured.candidate}) {
    part->slices = {{"common", Loss(3)}, {"rare", {30, 10}}};
  }
  measured.candidate.slices["common"] = Loss(2.4);
  EXPECT_EQ(ByHoldout(measured).stage(), Stage::kPassed);
  measured.candidate.slices["rare"] = {32.1, 10};
  const QualityGate gate = ByHoldout(measured);
  EXPECT_EQ(gate.stage(), Stage::kRefused);
  EXPECT_THAT(gate.decision().reason(), HasSubstr("slice 'rare': loss 3.2100 is worse than"));
  ASSERT_EQ(gate.decision().slices_size(), 2);  // what was measured is on record all the same
  EXPECT_EQ(gate.decision().slices(1).candidate().tokens(), 10u);
}

TEST(QualityGateTest, AsksNodesAfterTheHoldout) {
  QualityGate gate(WithNodes(), true, Names(4), kLimit, kNow);
  EXPECT_FALSE(gate.Asks("n00"));
  gate.NoteHoldout(Holdout(4, 3, 2.9), kNow);
  EXPECT_EQ(gate.stage(), Stage::kNodes);
  EXPECT_TRUE(gate.Asks("n00"));
  EXPECT_FALSE(gate.Asks("stranger"));
  gate.NoteNode("stranger", {Of(1), Of(9)});
  gate.NoteNode("n00", {Of(2), Of(1.9)});
  EXPECT_FALSE(gate.Asks("n00"));
  gate.NoteNode("n00", {Of(2), Of(9)});  // the first answer counts
  for (const char* node : {"n01", "n02", "n03"}) gate.NoteNode(node, {Of(2), Of(1.9)});
  EXPECT_EQ(gate.stage(), Stage::kPassed);
  EXPECT_NEAR(gate.decision().nodes().mean_change(), -0.1, 1e-12);
  EXPECT_EQ(gate.decision().nodes().reported(), 4u);
}

TEST(QualityGateTest, ABadHoldoutIsNotShownToNodes) {
  QualityGate gate(WithNodes(), true, Names(4), kLimit, kNow);
  gate.NoteHoldout(Holdout(4, 3, 3.2), kNow);
  EXPECT_EQ(gate.stage(), Stage::kRefused);
  EXPECT_FALSE(gate.Asks("n00"));
}

TEST(QualityGateTest, RefusesByTheMeanOfTheNodes) {
  const QualityGate gate = ByNodes({0.06, 0.06, 0.06, 0.04});
  EXPECT_EQ(gate.stage(), Stage::kRefused);
  EXPECT_THAT(gate.decision().reason(), HasSubstr("worse by 0.0550 nats a token in the mean of 4"));
}

TEST(QualityGateTest, RefusesByTheWorstTenthOfTheNodes) {
  std::vector<double> changes(20, -0.1);
  changes[3] = changes[4] = 0.9;  // two of twenty: nine of ten are fine
  EXPECT_EQ(ByNodes(changes).stage(), Stage::kPassed);
  changes[5] = 0.9;
  const QualityGate gate = ByNodes(changes);
  EXPECT_EQ(gate.stage(), Stage::kRefused);
  EXPECT_THAT(gate.decision().reason(), HasSubstr("for a tenth of 20 nodes"));
}

TEST(QualityGateTest, OneNodeThatLiesDoesNotDecide) {
  std::vector<double> changes(30, -0.1);
  changes[7] = kNaN;
  EXPECT_EQ(ByNodes(changes).stage(), Stage::kPassed);
  changes[7] = 1e300;
  EXPECT_EQ(ByNodes(changes).stage(), Stage::kPassed);
  std::vector<double> bad(30, 0.3);
  bad[7] = -1e300;
  EXPECT_EQ(ByNodes(bad).stage(), Stage::kRefused);
}

TEST(QualityGateTest, RefusesASliceOfTheNodesData) {
  const auto gate_of = [](int nodes_with_slice) {
    QualityGate gate(WithNodes(), false, Names(4), kLimit, kNow);
    const std::vector<std::string> names = Names(4);
    for (int i = 0; i < 4; ++i) {
      NodeMeasurement measured{Of(2), Of(1.9)};
      if (i < nodes_with_slice) {
        measured.current.slices["rare"] = {10, 5};
        measured.candidate.slices["rare"] = {12, 5};
      }
      gate.NoteNode(names[static_cast<size_t>(i)], measured);
    }
    return gate;
  };
  EXPECT_EQ(gate_of(2).stage(), Stage::kPassed);  // too few to tell
  EXPECT_EQ(gate_of(3).stage(), Stage::kRefused);
  EXPECT_THAT(gate_of(3).decision().reason(), HasSubstr("slice 'rare': on the data of 3 nodes"));
}

TEST(QualityGateTest, DecidesAtTheDeadlineWithHalfOfTheNodes) {
  QualityGate gate(WithNodes(), false, Names(4), kLimit, kNow);
  gate.NoteNode("n00", {Of(2), Of(1.9)});
  gate.NoteNode("n01", {Of(2), Of(1.9)});
  gate.Tick(kNow + kLimit - absl::Milliseconds(1));
  EXPECT_EQ(gate.stage(), Stage::kNodes);
  gate.Tick(kNow + kLimit);
  EXPECT_EQ(gate.stage(), Stage::kPassed);
}

TEST(QualityGateTest, RefusesWhatTooFewNodesMeasured) {
  QualityGate gate(WithNodes(), false, Names(4), kLimit, kNow);
  gate.NoteNode("n00", {Of(2), Of(1.9)});
  gate.NoteNode("n01", {{}, {}});                  // no held-out token: no answer
  gate.NoteNode("n02", {Of(2), {{190, 99}, {}}});  // not the same tokens: none either
  gate.NoteNodeFailed("n03");
  gate.Tick(kNow + kLimit);
  EXPECT_EQ(gate.decision().reason(),
            "1 of 4 nodes that were asked to measure it reported, 2 are needed");
}

TEST(QualityGateTest, AnOperatorMayNotWait) {
  QualityGate gate(WithNodes(), true, Names(4), kLimit, kNow);
  EXPECT_FALSE(gate.Approve("root"));
  gate.NoteHoldout(Holdout(4, 3, 2.9), kNow);
  gate.NoteNode("n00", {Of(2), Of(1.9)});
  EXPECT_TRUE(gate.Approve("root"));
  EXPECT_EQ(gate.stage(), Stage::kPassed);
  EXPECT_EQ(gate.decision().approved_by(), "root");
  EXPECT_EQ(gate.decision().reason(), "approved after 1 of 4 nodes reported");
  gate.NoteNode("n01", {Of(2), Of(9)});
  gate.Tick(kNow + 2 * kLimit);
  EXPECT_EQ(gate.stage(), Stage::kPassed);
}

absl::Status Fill(const v1::GateConfig& config, bool has_holdout, GatePlan& plan) {
  Limits limits;
  FillGate(config, has_holdout, limits, plan);
  return limits.status();
}

TEST(GatePlanTest, IsOnWhereThereIsSomethingToMeasureWith) {
  GatePlan none, holdout, nodes;
  ASSERT_TRUE(Fill({}, false, none).ok());
  EXPECT_FALSE(none.enabled);
  ASSERT_TRUE(Fill({}, true, holdout).ok());
  EXPECT_TRUE(holdout.enabled);
  v1::GateConfig config;
  config.set_canary_fraction(0.1);
  ASSERT_TRUE(Fill(config, false, nodes).ok());
  EXPECT_TRUE(nodes.enabled);
  config.set_enabled(false);
  GatePlan off;
  ASSERT_TRUE(Fill(config, true, off).ok());
  EXPECT_FALSE(off.enabled);
}

TEST(GatePlanTest, RefusesWhatCannotWork) {
  GatePlan plan;
  v1::GateConfig config;
  config.set_enabled(true);
  EXPECT_THAT(std::string(Fill(config, false, plan).message()), HasSubstr("nothing to measure"));
  config.set_slices("label");
  EXPECT_THAT(std::string(Fill(config, true, plan).message()),
              HasSubstr("use field, node or completion"));
  config.set_slices("completion");
  config.set_canary_fraction(1.5);
  EXPECT_EQ(Fill(config, true, plan).message(), "run.gate.canary_fraction: 1.5 is above 1");
}

}  // namespace
}  // namespace fedge
