// Updates of earlier rounds and asynchronous buffers over a server that is restarted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/base/failpoint.h"
#include "tests/server/federation_test_rig.h"

namespace fedge {
namespace {

using testing::FederationRig;
using testing::MakeUpdate;
using testing::NodeName;
using testing::TinyPlan;

RunPlan LatePlan(bool is_async) {
  RunPlan plan = TinyPlan();
  plan.rounds = 50;
  plan.nodes_per_round = 3;
  plan.min_nodes = 5;
  plan.pace.is_async = is_async;
  plan.pace.over_selection = 5.0 / 3;
  plan.pace.max_staleness = 4;
  return plan;
}

struct Task {
  std::string node;
  uint64_t round = 0;
  std::string bytes;
};

// Five nodes: two are slow, and bring their update when the others have made the next version.
// After every `stop`th request the server is restarted. Returns the masters of the versions.
std::vector<Digest> PlayVersions(bool is_async, int stop, const std::string& failpoints = "") {
  FederationRig rig(LatePlan(is_async));
  EXPECT_TRUE(ArmFailpoints(failpoints).ok()) << failpoints;
  int requests = 0;
  // A server that failed is started again, and what it did not answer is asked again.
  const auto until_answered = [&](const auto& request) {
    for (int tries = 0;; ++tries) {
      if (auto answer = request(); answer.ok() || tries == 3) return answer;
      while (!rig.TryStart().ok() && ++tries < 3) continue;
    }
  };
  const auto upload = [&](const Task& task) {
    const auto receipt =
        until_answered([&] { return rig.Upload(task.node, task.round, task.bytes); });
    EXPECT_TRUE(receipt.ok() && receipt->verdict() == v1::UploadReceipt::ACCEPTED)
        << task.node << " round " << task.round;
  };
  const auto maybe_restart = [&] {
    if (stop > 0 && ++requests % stop == 0) rig.Start();
  };
  std::vector<Task> slow;
  // Whom a synchronous round draws depends on who has checked in since a restart.
  for (uint64_t version = 0; version < (is_async ? 4u : 2u); ++version) {
    std::vector<Task> fast;
    for (int pass = 0; pass < 2; ++pass) {
      for (uint64_t i = 0; i < 5; ++i) {
        const v1::CheckInResponse response =
            until_answered([&] {
              return rig.core->CheckIn(rig.CheckInRequest(NodeName(i)));
            }).value();
        if (response.has_assignment()) maybe_restart();  // a round is open
        if (pass == 0 || !response.has_assignment()) continue;
        const v1::Assignment& task = response.assignment();
        EXPECT_EQ(task.adapter_version(), version);
        (i < 3 ? fast : slow)
            .push_back({NodeName(i), task.round(),
                        MakeUpdate(rig.plan, {.round = task.round(),
                                              .base_version = task.adapter_version(),
                                              .num_examples = 1 + i,
                                              .seed = 10 * version + i})});
      }
    }
    // The last of the version before come first: then the buffer or the cohort fills.
    std::vector<Task> due;
    for (Task& task : slow) {
      if (task.round <= version) due.push_back(task);
    }
    for (Task& task : fast) due.push_back(task);
    for (const Task& task : due) {
      if (rig.core->version() > version) break;
      upload(task);
      maybe_restart();
      upload(task);
    }
    EXPECT_EQ(rig.core->version(), version + 1);
  }
  rig.core.reset();
  auto store = SqliteStore::Open({.dir = rig.dir.path()}, rig.env);
  FEDGE_CHECK(store.ok(), store.status().message());
  std::vector<Digest> masters;
  int64_t folded = 0;
  const std::vector<VersionRecord> versions = (*store)->ListVersions(rig.plan.run_id).value();
  for (size_t i = 1; i < versions.size(); ++i) {
    masters.push_back(versions[i].master);
    folded += versions[i].counts.folded;
  }
  EXPECT_GE(folded, 2);
  EXPECT_TRUE(ArmFailpoints("").ok());
  return masters;
}

TEST(LateRecoveryTest, ARestartChangesNoVersionWithLateUpdates) {
  const std::vector<Digest> straight = PlayVersions(false, 0);
  ASSERT_EQ(straight.size(), 2u);
  for (int stop = 1; stop < 4; ++stop) EXPECT_EQ(PlayVersions(false, stop), straight) << stop;
}

TEST(LateRecoveryTest, ARestartChangesNoVersionOfAnAsynchronousRun) {
  const std::vector<Digest> straight = PlayVersions(true, 0);
  ASSERT_EQ(straight.size(), 4u);
  for (int stop = 1; stop < 4; ++stop) EXPECT_EQ(PlayVersions(true, stop), straight) << stop;
}

TEST(LateRecoveryTest, AFailedWriteChangesNoVersionOfAnAsynchronousRun) {
  const std::vector<Digest> straight = PlayVersions(true, 0);
  for (const char* place :
       {"core.assigned", "core.assigned.stored", "store.members.commit", "core.update.judged",
        "store.updates.commit", "core.update.stored", "core.receipt", "core.version.encoded",
        "store.publish.commit", "core.version.stored", "core.round.stored"}) {
    for (const char* action : {"error", "error-after", "error(resource_exhausted)"}) {
      for (const int hit : {1, 3}) {
        const std::string failpoint = absl::StrCat(place, "=", action, ":", hit);
        EXPECT_EQ(PlayVersions(true, 0, failpoint), straight) << failpoint;
      }
    }
  }
}

TEST(LateRecoveryTest, AnEndedRunStaysEnded) {
  RunPlan plan = TinyPlan();
  plan.rounds = 50;
  plan.pace.patience = 1;
  FederationRig rig(plan);
  rig.core->RecordHoldout(0, 3.0, 100);
  rig.CheckInAll(4);
  rig.PlayRound(4, 1, 0);
  rig.core->RecordHoldout(1, 3.5, 100);
  rig.core->Tick();
  EXPECT_FALSE(rig.core->finished());  // round 2 is open
  rig.PlayRound(4, 2, 1);
  EXPECT_TRUE(rig.core->finished());
  rig.Start();
  EXPECT_TRUE(rig.core->finished());
  EXPECT_EQ(rig.core->version(), 2u);
}

}  // namespace
}  // namespace fedge
