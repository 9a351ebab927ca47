#include "server/node_quota.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/server/federation_test_rig.h"

namespace fedge {
namespace {

using testing::FederationRig;
using testing::NodeName;
using testing::TinyPlan;

constexpr absl::Duration kStart = absl::Seconds(1000);

TEST(NodeQuotaTest, GivesRequestsBackEvenly) {
  NodeQuota quota({.requests_per_minute = 60});
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(quota.TakeRequest("x", kStart).ok()) << i;
  const absl::Status refused = quota.TakeRequest("x", kStart);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(), "quota: node 'x' sent its 60 requests of a minute; try again in 1s");
  EXPECT_EQ(RetryAfter(refused), absl::Seconds(1));
  EXPECT_TRUE(quota.TakeRequest("y", kStart).ok());
  EXPECT_TRUE(quota.TakeRequest("x", kStart + absl::Seconds(1)).ok());
  EXPECT_FALSE(quota.TakeRequest("x", kStart + absl::Seconds(1)).ok());
  // What was not used is not saved up beyond a minute's share.
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(quota.TakeRequest("x", kStart + absl::Hours(5)).ok());
  EXPECT_FALSE(quota.TakeRequest("x", kStart + absl::Hours(5)).ok());
}

TEST(NodeQuotaTest, LimitsBytesADay) {
  NodeQuota quota({.upload_bytes_per_day = 86'400});  // one a second
  EXPECT_TRUE(quota.TakeBytes("x", 86'000, kStart).ok());
  const absl::Status refused = quota.TakeBytes("x", 1000, kStart);
  EXPECT_EQ(refused.message(),
            "quota: node 'x' would pass its 86400 bytes of uploads a day with 1000 more; try again "
            "in 10m");
  EXPECT_EQ(RetryAfter(refused), absl::Minutes(10));
  EXPECT_FALSE(quota.TakeBytes("x", 1000, kStart + absl::Seconds(599)).ok());
  EXPECT_TRUE(quota.TakeBytes("x", 1000, kStart + absl::Seconds(600)).ok());
  // One that is larger than a day's share waits for a whole one, and is paid back afterwards.
  EXPECT_FALSE(quota.TakeBytes("x", 200'000, kStart + absl::Hours(20)).ok());
  EXPECT_TRUE(quota.TakeBytes("x", 200'000, kStart + absl::Hours(30)).ok());
  EXPECT_FALSE(quota.TakeBytes("x", 1, kStart + absl::Hours(54)).ok());
}

TEST(NodeQuotaTest, LimitsOpenStreams) {
  NodeQuota quota({.open_streams = 2});
  EXPECT_TRUE(quota.OpenStream("x", kStart).ok());
  EXPECT_TRUE(quota.OpenStream("x", kStart).ok());
  const absl::Status refused = quota.OpenStream("x", kStart);
  EXPECT_EQ(refused.message(), "quota: node 'x' has 2 open uploads, its limit; try again in 5s");
  quota.CloseStream("x");
  quota.CloseStream("stranger");
  EXPECT_TRUE(quota.OpenStream("x", kStart).ok());
}

TEST(NodeQuotaTest, ZeroIsNoLimitAndRemembersNobody) {
  NodeQuota quota({.requests_per_minute = 0, .upload_bytes_per_day = 0, .open_streams = 0});
  for (int i = 0; i < 100'000; ++i) ASSERT_TRUE(quota.TakeRequest("x", kStart).ok());
  EXPECT_TRUE(quota.TakeBytes("x", uint64_t{1} << 60, kStart).ok());
  EXPECT_TRUE(quota.OpenStream("x", kStart).ok());
  EXPECT_EQ(quota.known_nodes(), 0u);
}

TEST(NodeQuotaTest, IsBoundedAndForgetsIdleNodes) {
  NodeQuota quota({.requests_per_minute = 60, .max_nodes = 3});
  for (uint64_t i = 0; i < 3; ++i) ASSERT_TRUE(quota.TakeRequest(NodeName(i), kStart).ok());
  EXPECT_EQ(quota.TakeRequest("one more", kStart).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(quota.TakeRequest("one more", kStart + absl::Minutes(2)).ok());
  EXPECT_EQ(quota.known_nodes(), 1u);
}

TEST(NodeQuotaTest, TheServerHoldsNodesToIt) {
  RunPlan plan = TinyPlan();
  plan.admission.quota = {.requests_per_minute = 6, .upload_bytes_per_day = 200, .open_streams = 1};
  FederationRig rig(plan);
  rig.CheckInAll(4);
  const std::string bytes = testing::MakeUpdate(plan, {.seed = 1});
  ASSERT_GT(bytes.size(), 200u);
  EXPECT_EQ(rig.Upload(NodeName(0), 1, bytes, 142).status().code(),
            absl::StatusCode::kResourceExhausted);
  FederationCore::Upload first = rig.core->StartUpload();
  v1::UploadRequest id;
  *id.mutable_id() = rig.IdOf(NodeName(1), 1, bytes);
  ASSERT_TRUE(first.OnMessage(id).ok());
  EXPECT_EQ(rig.core->StartUpload().OnMessage(id).status().code(),
            absl::StatusCode::kResourceExhausted);
  v1::ReportRequest report;
  report.set_run_id("default");
  report.set_round(1);
  report.set_node_id(NodeName(2));
  report.set_completed(true);
  absl::Status status;
  int sent = 0;
  for (; sent < 20 && status.ok(); ++sent) status = rig.core->Report(report);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_LE(sent, 6);
  EXPECT_EQ(RetryAfter(status), absl::Seconds(10));
  rig.clock.Advance(absl::Seconds(10));
  EXPECT_TRUE(rig.core->Report(report).ok());
}

}  // namespace
}  // namespace fedge
