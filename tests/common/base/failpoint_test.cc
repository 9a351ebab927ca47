#include "common/base/failpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>

#include "common/base/status.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

int writes = 0;

absl::Status Write() { return FEDGE_FAILPOINT_RUN("test.write", (++writes, absl::OkStatus())); }
absl::Status Edge() { return FEDGE_FAILPOINT("test.edge"); }

uint64_t HitsOf(absl::string_view name) {
  for (const FailpointHits& place : ListFailpoints()) {
    if (place.name == name) return place.hits;
  }
  return 999;
}

class FailpointTest : public ::testing::Test {
 protected:
  FailpointTest() { writes = 0; }
  ~FailpointTest() override { ArmFailpoints("").IgnoreError(); }
};

TEST_F(FailpointTest, ListsPlacesThatNeverRan) {
  EXPECT_EQ(HitsOf("test.write"), 0u);
  EXPECT_EQ(HitsOf("test.edge"), 0u);
}

TEST_F(FailpointTest, UnarmedOnlyRuns) {
  EXPECT_TRUE(Write().ok());
  EXPECT_TRUE(Edge().ok());
  EXPECT_EQ(writes, 1);
  EXPECT_EQ(HitsOf("test.write"), 0u);
}

TEST_F(FailpointTest, FailsTheChosenHitOnceWithoutRunning) {
  ASSERT_TRUE(ArmFailpoints("test.write=error(resource_exhausted):2").ok());
  EXPECT_TRUE(Write().ok());
  const absl::Status status = Write();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("test.write"));
  EXPECT_EQ(writes, 1);
  EXPECT_TRUE(Write().ok());
  EXPECT_EQ(writes, 2);
}

TEST_F(FailpointTest, FailsAfterRunning) {
  ASSERT_TRUE(ArmFailpoints("test.write=error-after; test.edge=error").ok());
  EXPECT_EQ(Write().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(writes, 1);
  EXPECT_EQ(Edge().code(), absl::StatusCode::kInternal);
}

TEST_F(FailpointTest, CountsWithoutDisturbing) {
  ASSERT_TRUE(ArmFailpoints("*=count").ok());
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Write().ok());
  EXPECT_EQ(HitsOf("test.write"), 3u);
  EXPECT_EQ(HitsOf("test.edge"), 0u);
}

TEST_F(FailpointTest, DelaysAndGoesOn) {
  ASSERT_TRUE(ArmFailpoints("test.write=delay(1)").ok());
  EXPECT_TRUE(Write().ok());
  EXPECT_EQ(writes, 1);
}

TEST_F(FailpointTest, KillsTheProcess) {
  EXPECT_EXIT(
      {
        FEDGE_CHECK(ArmFailpoints("test.edge=crash").ok());
        Edge().IgnoreError();
      },
      ::testing::KilledBySignal(SIGKILL), "");
}

TEST_F(FailpointTest, NamesWhatIsWrong) {
  for (const char* const spec : {"test.write", "test.write=", "test.write=burn",
                                 "test.write=error(odd)", "test.write=crash(1)", "test.write=delay",
                                 "test.write=crash:0", "test.write=crash:x", "nowhere=crash"}) {
    const absl::Status status = ArmFailpoints(spec);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << spec;
    EXPECT_THAT(std::string(status.message()), HasSubstr(spec)) << spec;
  }
}

}  // namespace
}  // namespace fedge
