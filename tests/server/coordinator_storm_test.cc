// Thousands of random events, checked against what a bystander can know.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <utility>

#include "server/coordinator.h"
#include "tests/server/rounds.h"
#include "tests/server/tiny_run.h"

namespace fedge {
namespace {

using testing::kStart;
using testing::MakeUpdate;
using testing::NodeName;
using testing::Rounds;
using testing::TinyPlan;
using testing::UpdateSpec;

// A model of what the nodes of a storm know, to check the coordinator from outside.
class Storm {
 public:
  explicit Storm(uint64_t seed) : rng_(seed), rounds_(Plan()) {}

  static RunPlan Plan() {
    RunPlan plan = TinyPlan();
    plan.rounds = 1'000'000;
    plan.nodes_per_round = 5;
    plan.min_nodes = 6;
    return plan;
  }

  void Step() {
    const std::string node = NodeName(rng_.Below(12));
    Coordinator& coordinator = rounds_.coordinator;
    switch (rng_.Below(12)) {
      case 0:
        now_ += absl::Milliseconds(static_cast<int64_t>(rng_.Below(20'000)));
        coordinator.Tick(now_);
        break;
      case 1:
        coordinator.ReportFailure(node, AnyRound(), "storm");
        break;
      case 2:
        if (coordinator.publishing()) coordinator.ConfirmPublished(coordinator.version() + 1, now_);
        break;
      case 3:
      case 4:
      case 5:
        rounds_.CheckIn(node, now_);
        break;
      default:
        Submit(node);
        break;
    }
    Check();
  }

  uint64_t published() const { return published_; }
  uint64_t abandoned() const { return abandoned_; }
  int64_t accepted_in_published() const { return accepted_in_published_; }
  int64_t late() const { return late_; }

 private:
  uint64_t AnyRound() {
    const uint64_t round = rounds_.coordinator.round();
    return rng_.Below(3) == 0 ? rng_.Below(round + 2) : round;
  }

  void Submit(const std::string& node) {
    const uint64_t round = AnyRound();
    UpdateSpec spec{
        .round = round, .base_version = rounds_.coordinator.version(), .seed = rng_.Below(3)};
    if (rng_.Below(6) == 0) spec.base_version += 1;
    const std::string bytes = MakeUpdate(rounds_.coordinator.plan(), spec);
    const UpdateVerdict verdict = rounds_.Submit(node, round, bytes);
    const auto key = std::make_pair(round, node);
    if (verdict.verdict == Verdict::kAccepted) {
      const auto [it, added] = accepted_.emplace(key, Sha256Of(bytes));
      if (!added) {
        ASSERT_EQ(it->second, Sha256Of(bytes)) << "two updates accepted of " << node;
      }
    } else if (accepted_.count(key) > 0 && round + 10 > rounds_.coordinator.round()) {
      ASSERT_NE(accepted_[key], Sha256Of(bytes)) << "an accepted update was refused later";
    }
  }

  void Check() {
    const RoundCounts counts = rounds_.coordinator.counts();
    ASSERT_EQ(counts.assigned, counts.pending + counts.accepted + counts.rejected + counts.dropped);
    for (const CoordinatorAction& action : rounds_.coordinator.TakeActions()) {
      if (const auto* const started = std::get_if<RoundStarted>(&action)) {
        ASSERT_GT(started->round, last_round_);
        last_round_ = started->round;
        ASSERT_EQ(started->base_version, published_);
        ASSERT_LE(started->cohort.size(), 5u);
      } else if (const auto* const judged = std::get_if<UpdateJudged>(&action)) {
        ASSERT_TRUE(judged_.emplace(judged->round, judged->node_id).second);
      } else if (const auto* const version = std::get_if<VersionPublished>(&action)) {
        ASSERT_EQ(version->state.version, ++published_);
        ASSERT_EQ(version->round, last_round_);
        ASSERT_EQ(version->counts.pending, 0);
        const int64_t updates = version->counts.accepted + version->counts.folded;
        ASSERT_EQ(static_cast<int64_t>(version->contributions.size()), updates);
        ASSERT_EQ(version->counts.folded, carried_);
        carried_ = 0;
        std::set<std::string> nodes;
        for (const Contribution& part : version->contributions) {
          nodes.insert(part.node_id);
          ASSERT_EQ(accepted_.at({part.round, part.node_id}), part.digest);
          ASSERT_TRUE(counted_.insert({part.round, part.node_id}).second);
        }
        ASSERT_GE(2 * static_cast<int64_t>(nodes.size()), version->counts.assigned);
        accepted_in_published_ += version->counts.accepted;
        late_ += version->counts.late;
      } else if (const auto* const lost = std::get_if<RoundAbandoned>(&action)) {
        ASSERT_EQ(lost->round, last_round_);
        carried_ = lost->counts.accepted + lost->counts.folded;
        ASSERT_EQ(lost->carried, carried_ > 0);
        std::set<std::string> nodes;
        for (const auto& [key, digest] : accepted_) {
          if (counted_.count(key) == 0) nodes.insert(key.second);
        }
        ASSERT_LT(2 * static_cast<int64_t>(nodes.size()), lost->counts.assigned);
        ++abandoned_;
      }
    }
  }

  Rng rng_;
  Rounds rounds_;
  absl::Duration now_ = kStart;
  std::map<std::pair<uint64_t, std::string>, Digest> accepted_;
  std::set<std::pair<uint64_t, std::string>> judged_;
  uint64_t last_round_ = 0;
  uint64_t published_ = 0;
  uint64_t abandoned_ = 0;
  int64_t carried_ = 0;  // by the rounds abandoned since the last version
  std::set<std::pair<uint64_t, std::string>> counted_;
  int64_t accepted_in_published_ = 0;
  int64_t late_ = 0;
};

TEST(CoordinatorStormTest, KeepsItsInvariantsInAStormOfEvents) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    Storm storm(seed);
    for (int step = 0; step < 3000; ++step) {
      storm.Step();
      if (HasFatalFailure()) return;
    }
    // The storm must have reached the interesting places, not only kept quiet.
    EXPECT_GT(storm.published(), 20u);
    EXPECT_GT(storm.abandoned(), 2u);
    EXPECT_GT(storm.accepted_in_published(), 60);
    EXPECT_GT(storm.late(), 0);
  }
}

}  // namespace
}  // namespace fedge
