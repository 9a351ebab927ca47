// The quality gate in a federation that is attacked: the real server and the real participants.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "common/base/logging.h"
#include "tests/tools/simulate/tiny_federation.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

class GateInSimulationTest : public ::testing::Test {
 protected:
  GateInSimulationTest() {
    SetLogLevel(LogLevel::kError);
    dir_ = absl::StrCat(::testing::TempDir(), "gate/",
                        ::testing::UnitTest::GetInstance()->current_test_info()->name());
    options_ = testing::TinyFederation(dir_);
    options_.run.set_nodes_per_round(2);
    options_.run.set_rounds(3);
    options_.run.mutable_codec()->set_support("dense");
    options_.run.mutable_admission()->set_norm_bound("off");
    options_.centralized = false;
    options_.label_questions = 0;
  }
  RunReport Run(const std::string& out) {
    options_.out_dir = JoinPath(dir_, out);
    const auto report = RunSimulation(options_, testing::TinyEnvironment());
    EXPECT_TRUE(report.ok()) << report.status();
    return report.value_or(RunReport());
  }
  static int64_t Refused(const RunReport& report) {
    return std::count_if(report.rounds.begin(), report.rounds.end(), [](const RoundRecord& round) {
      return round.note.rfind("refused: ", 0) == 0;
    });
  }

  std::string dir_;
  SimulationOptions options_;
};

TEST_F(GateInSimulationTest, PoisonedRoundsAreRefusedAndTheRunGoesOn) {
  options_.attack.kind = AttackKind::kSignFlip;
  options_.attack.attackers = 0.5;
  options_.attack.strength = 200;
  const RunReport open = Run("open");
  options_.run.mutable_gate()->set_enabled(true);
  const RunReport gated = Run("gated");
  EXPECT_EQ(Refused(open), 0);
  EXPECT_GT(Refused(gated), 0);
  ASSERT_FALSE(gated.rounds.empty());
  EXPECT_EQ(gated.rounds.back().version, 3u);  // as many versions as without
  EXPECT_GT(open.after.validation_loss, open.before.validation_loss + 0.2);
  EXPECT_LT(gated.after.validation_loss, gated.before.validation_loss + 0.15);
  for (const RoundRecord& round : gated.rounds) {
    if (round.version == 0) {
      EXPECT_THAT(round.note, HasSubstr("holdout loss"));
    }
  }
}

TEST_F(GateInSimulationTest, HonestRoundsPassAndTheBytesStayTheSame) {
  Run("open");
  options_.run.mutable_gate()->set_max_regression(1);
  options_.run.mutable_gate()->set_slices("completion");
  options_.run.mutable_gate()->set_max_slice_regression(5);
  EXPECT_EQ(Refused(Run("gated")), 0);
  const auto adapter = [this](const std::string& out) {
    return Env::Posix()->ReadFile(JoinPath(JoinPath(dir_, out), "adapter.gguf")).value_or(out);
  };
  EXPECT_EQ(adapter("open"), adapter("gated"));
}

TEST_F(GateInSimulationTest, NodesMeasureCandidatesOnTheirOwnData) {
  options_.run.mutable_gate()->set_max_regression(1);
  options_.run.mutable_gate()->set_max_slice_regression(1);
  options_.run.mutable_gate()->set_evaluation_nodes(3);
  const RunReport report = Run("out");
  EXPECT_EQ(Refused(report), 0);
  ASSERT_FALSE(report.rounds.empty());
  EXPECT_EQ(report.rounds.back().version, 3u);
}

TEST_F(GateInSimulationTest, NodesRefuseWhatTheHoldoutLetsPass) {
  options_.attack.kind = AttackKind::kSignFlip;
  options_.attack.attackers = 0.5;
  options_.attack.strength = 200;
  options_.run.mutable_gate()->set_max_regression(0.05);
  options_.run.mutable_gate()->set_canary_fraction(1);
  options_.eval_tokens = 1;  // the server sees next to nothing
  const RunReport report = Run("out");
  EXPECT_GT(Refused(report), 0);
}

}  // namespace
}  // namespace fedge
