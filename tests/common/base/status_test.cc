#include "common/base/status.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>

namespace fedge {
namespace {

TEST(AnnotateTest, PutsTheContextFirstAndKeepsTheCode) {
  const absl::Status status = Annotate(absl::NotFoundError("no such file"), "a.gguf");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "a.gguf: no such file");
  EXPECT_TRUE(Annotate(absl::OkStatus(), "a.gguf").ok());
}

TEST(ExitCodeTest, IsStable) {
  const std::map<absl::StatusCode, int> expected = {
      {absl::StatusCode::kOk, 0},
      {absl::StatusCode::kCancelled, 1},
      {absl::StatusCode::kUnknown, 1},
      {absl::StatusCode::kInvalidArgument, 2},
      {absl::StatusCode::kDeadlineExceeded, 6},
      {absl::StatusCode::kNotFound, 3},
      {absl::StatusCode::kAlreadyExists, 4},
      {absl::StatusCode::kPermissionDenied, 5},
      {absl::StatusCode::kResourceExhausted, 5},
      {absl::StatusCode::kFailedPrecondition, 4},
      {absl::StatusCode::kAborted, 4},
      {absl::StatusCode::kOutOfRange, 2},
      {absl::StatusCode::kUnimplemented, 2},
      {absl::StatusCode::kInternal, 1},
      {absl::StatusCode::kUnavailable, 6},
      {absl::StatusCode::kDataLoss, 2},
      {absl::StatusCode::kUnauthenticated, 5},
  };
  for (const auto& [code, exit_code] : expected) {
    EXPECT_EQ(ExitCode(absl::Status(code, "x")), exit_code) << absl::StatusCodeToString(code);
  }
}

absl::StatusOr<std::unique_ptr<int>> Make(bool good) {
  if (!good) return absl::AbortedError("bad");
  return std::make_unique<int>(5);
}

absl::Status UseMacros(bool good_status, bool good_value, int* seen) {
  RETURN_IF_ERROR(good_status ? absl::OkStatus() : absl::CancelledError("stop"));
  ASSIGN_OR_RETURN(const std::unique_ptr<int> value, Make(good_value));
  *seen = *value;
  return absl::OkStatus();
}

TEST(StatusMacrosTest, PassErrorsOnAndMoveValues) {
  int seen = 0;
  EXPECT_EQ(UseMacros(false, true, &seen), absl::CancelledError("stop"));
  EXPECT_EQ(UseMacros(true, false, &seen), absl::AbortedError("bad"));
  EXPECT_EQ(seen, 0);
  EXPECT_TRUE(UseMacros(true, true, &seen).ok());
  EXPECT_EQ(seen, 5);
}

TEST(CheckDeathTest, NamesConditionPlaceAndDetails) {
  const int n = 3;
  FEDGE_CHECK(n == 3, "never evaluated");
  EXPECT_DEATH(FEDGE_CHECK(n > 5, "n is ", n), "status_test.cc:.*check failed: n > 5: n is 3");
  EXPECT_DEATH(FEDGE_CHECK(n > 5), "check failed: n > 5");
}

}  // namespace
}  // namespace fedge
