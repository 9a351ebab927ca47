#include "common/base/logging.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace fedge {
namespace {

TEST(LoggingTest, WritesOneLineAFactFromTheLevelOn) {
  ::testing::internal::CaptureStderr();
  SetLogLevel(LogLevel::kWarning);
  LogInfo("dropped ", 1);
  LogWarning("round ", 3, ": {} is not a pattern %s");
  LogError("last");
  SetLogLevel(LogLevel::kOff);
  LogError("dropped too");
  SetLogLevel(LogLevel::kInfo);
  const std::string written = ::testing::internal::GetCapturedStderr();
  const std::string stamp = "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z ";
  EXPECT_THAT(written, ::testing::MatchesRegex(stamp + "W round 3: \\{\\} is not a pattern %s\n" +
                                               stamp + "E last\n"));
}

}  // namespace
}  // namespace fedge
