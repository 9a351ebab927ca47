#include "server/round_updates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/server/tiny_run.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using testing::MakeUpdate;
using testing::NodeName;
using testing::TinyAdapter;
using testing::TinyPlan;

constexpr RobustRule kRules[] = {RobustRule::kNone, RobustRule::kMedian, RobustRule::kTrimmedMean,
                                 RobustRule::kMultiKrum, RobustRule::kGeometricMedian};

// Five updates, one of them large, in an order of its own for each `start`.
absl::StatusOr<ClosedRound> Close(const RunPlan& plan, bool from_store, size_t start,
                                  bool forget = false) {
  const ModelState before{TinyAdapter(), {}, 0, {}};
  std::map<Digest, std::string> store;
  BlobReader read;
  if (from_store) {
    read = [&](const Digest& digest) -> absl::StatusOr<std::string> {
      const auto found = store.find(digest);
      if (found == store.end()) return absl::NotFoundError("no such blob");
      return found->second;
    };
  }
  RoundUpdates updates(plan, before, read);
  for (size_t i = 0; i < 5; ++i) {
    const size_t node = (start + i) % 5;
    std::vector<float> values(static_cast<size_t>(plan.lora.num_parameters()));
    Rng rng(node + 1);
    for (float& value : values) value = static_cast<float>(rng.Normal() * (node == 2 ? 0.5 : 0.01));
    const std::string bytes = MakeUpdate(plan, {.num_examples = 1 + node, .values = values});
    store[Sha256Of(bytes)] = bytes;
    EXPECT_TRUE(updates
                    .Add(NodeName(node), {.digest = Sha256Of(bytes),
                                          .wire_bytes = bytes.size(),
                                          .admitted = AdmitUpdate(plan, 1, 0, bytes)})
                    .ok());
  }
  if (forget) store.erase(store.begin());  // any of them
  return updates.Close();
}

TEST(RoundUpdatesTest, StoredUpdatesMakeTheSameVersionAsHeldOnes) {
  for (const RobustRule rule : kRules) {
    SCOPED_TRACE(static_cast<int>(rule));
    RunPlan plan = TinyPlan();
    plan.robust.rule = rule;
    const auto held = Close(plan, /*from_store=*/false, 0);
    const auto stored = Close(plan, /*from_store=*/true, 3);
    ASSERT_TRUE(held.ok() && stored.ok()) << stored.status();
    EXPECT_TRUE(held->next.state.adapter.values() == stored->next.state.adapter.values());
    EXPECT_EQ(held->next.state.typical_norm, stored->next.state.typical_norm);
    ASSERT_EQ(held->contributions.size(), 5u);
    ASSERT_EQ(stored->contributions.size(), 5u);
    for (size_t i = 0; i < 5; ++i) {
      EXPECT_EQ(held->contributions[i].weight, stored->contributions[i].weight);
    }
  }
}

TEST(RoundUpdatesTest, SaysWhichUpdateCannotBeReadAgain) {
  const auto closed = Close(TinyPlan(), /*from_store=*/true, 0, /*forget=*/true);
  EXPECT_EQ(closed.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(closed.status().message(), HasSubstr("for round 1 cannot be read again: no such"));
}

TEST(RoundUpdatesTest, ReadsNothingWhereSumsDo) {
  RunPlan plan = TinyPlan();
  plan.admission.norm_bound = NormBound::kOff;
  EXPECT_TRUE(Close(plan, /*from_store=*/true, 0, /*forget=*/true).ok());
}

}  // namespace
}  // namespace fedge
