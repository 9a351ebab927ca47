#include "tools/simulate/attack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/logging.h"
#include "tests/tools/simulate/tiny_federation.h"

namespace fedge {
namespace {

class AttackTest : public ::testing::Test {
 protected:
  AttackTest() {
    SetLogLevel(LogLevel::kError);
    dir_ = absl::StrCat(::testing::TempDir(), "attack/",
                        ::testing::UnitTest::GetInstance()->current_test_info()->name());
    options_ = testing::TinyFederation(dir_);
    options_.run.set_quorum(0.25);
    options_.run.set_nodes_per_round(6);
    options_.run.mutable_codec()->set_support("dense");
    options_.centralized = false;
    options_.label_questions = 0;
  }

  RunReport Run(AttackKind kind, double share, const std::string& out) {
    options_.attack.kind = kind;
    options_.attack.attackers = share;
    options_.out_dir = JoinPath(dir_, out);
    const auto report = RunSimulation(options_, testing::TinyEnvironment());
    EXPECT_TRUE(report.ok()) << report.status();
    return report.value_or(RunReport());
  }
  std::string Adapter(const std::string& out) {
    return Env::Posix()->ReadFile(JoinPath(JoinPath(dir_, out), "adapter.gguf")).value_or(out);
  }

  std::string dir_;
  SimulationOptions options_;
};

TEST_F(AttackTest, NonFiniteUpdatesAreRejectedAndChangeNothingElse) {
  for (const AttackKind kind : {AttackKind::kNan, AttackKind::kInf}) {
    const RunReport report = Run(kind, 0.34, "out");
    ASSERT_EQ(report.rounds.size(), 2u);
    for (const RoundRecord& round : report.rounds) {
      EXPECT_EQ(round.rejected, 2);
      EXPECT_EQ(round.accepted, 4);
    }
  }
}

TEST_F(AttackTest, EachAttackChangesTheResultTheSameWayForAnyWorkers) {
  Run(AttackKind::kNone, 0, "clean");
  const std::string clean = Adapter("clean");
  for (const AttackKind kind :
       {AttackKind::kSignFlip, AttackKind::kScale, AttackKind::kNoise, AttackKind::kAlie,
        AttackKind::kInnerProduct, AttackKind::kLabelFlip}) {
    options_.workers = 1;
    Run(kind, 0.34, "one");
    options_.workers = 2;
    Run(kind, 0.34, "two");
    EXPECT_EQ(Adapter("one"), Adapter("two")) << static_cast<int>(kind);
    EXPECT_NE(Adapter("one"), clean) << static_cast<int>(kind);
  }
}

// A lie is as large as the update it replaces, whatever the code.
TEST_F(AttackTest, LiesTravelAsATrellisToo) {
  options_.run.mutable_codec()->set_support("trellis");
  const RunReport report = Run(AttackKind::kSignFlip, 0.34, "out");
  ASSERT_EQ(report.rounds.size(), 2u);
  for (const RoundRecord& round : report.rounds) {
    EXPECT_EQ(round.rejected, 0);
    EXPECT_EQ(round.accepted, 6);
  }
}

TEST_F(AttackTest, RobustRulesRunInASimulation) {
  options_.run.mutable_aggregation()->set_robust("median");
  const RunReport report = Run(AttackKind::kScale, 0.34, "out");
  EXPECT_EQ(report.rounds.size(), 2u);
  EXPECT_LT(report.after.validation_loss, report.before.validation_loss + 0.1);
}

TEST(AttackKindTest, NamesWhatItKnows) {
  EXPECT_EQ(*ParseAttackKind("alie"), AttackKind::kAlie);
  EXPECT_EQ(ParseAttackKind("ddos").status().message(),
            "--attack: 'ddos' is not known; use none, nan, inf, sign-flip, scale, noise, alie, "
            "inner-product, label-flip");
}

}  // namespace
}  // namespace fedge
