#include "tools/simulate/timeline.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/tools/simulate/tiny_federation.h"

namespace fedge {
namespace {

TEST(TimelineTest, GoesByTimeThenByOrder) {
  Timeline timeline;
  timeline.Add(absl::Seconds(2), 7);
  timeline.Add(absl::Seconds(1), 8);
  timeline.Add(absl::Seconds(2), 6);
  EXPECT_EQ(timeline.Take().node, 8u);
  EXPECT_EQ(timeline.Take().node, 7u);
  EXPECT_EQ(timeline.Take().node, 6u);
  EXPECT_TRUE(timeline.empty());
}

TEST(TimelineTest, DrawsAShareOfSlowNodesFromTheSeed) {
  const SpeedOptions options{.slow_share = 0.2, .slow_factor = 100, .seed = 3};
  const std::vector<double> speeds = DrawSpeeds(options, 50);
  EXPECT_EQ(speeds, DrawSpeeds(options, 50));
  EXPECT_EQ(std::count_if(speeds.begin(), speeds.end(), [](double s) { return s < 5; }), 10);
  EXPECT_GT(*std::max_element(speeds.begin(), speeds.end()), 60);
}

RunReport RunTiny(const std::string& name, bool is_async) {
  SimulationOptions options = testing::TinyFederation(::testing::TempDir() + name);
  options.run.set_mode(is_async ? "async" : "sync");
  options.run.set_rounds(4);
  options.run.set_nodes_per_round(3);
  if (is_async) options.run.set_over_selection(5.0 / 3);
  options.speeds.slow_share = 0.34;  // 2 of 6
  options.centralized = false;
  auto report = RunSimulation(options, testing::TinyEnvironment());
  FEDGE_CHECK(report.ok(), report.status().message());
  return *std::move(report);
}

TEST(TimelineTest, AnAsynchronousRunDoesNotWaitForSlowNodes) {
  const RunReport sync = RunTiny("timeline_sync", false);
  const RunReport async = RunTiny("timeline_async", true);
  ASSERT_EQ(sync.rounds.size(), 4u);
  ASSERT_EQ(async.rounds.size(), 4u);
  EXPECT_GT(async.rounds.back().folded + async.rounds[1].folded + async.rounds[2].folded, 0);
  EXPECT_LT(3 * async.rounds.back().virtual_seconds, sync.rounds.back().virtual_seconds);
  for (const RunReport* report : {&sync, &async}) {
    double last = 0;
    for (const RoundRecord& round : report->rounds) {
      EXPECT_GT(round.virtual_seconds, last);
      last = round.virtual_seconds;
    }
  }
  EXPECT_EQ(RunTiny("timeline_again", true).adapter_sha256, async.adapter_sha256);
}

}  // namespace
}  // namespace fedge
