#include "server/grpc_probe.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/server/federation_test_rig.h"

namespace fedge {
namespace {

TEST(ProbeHealthTest, IsUnavailableWhereNothingListens) {
  const absl::Status status = ProbeHealth("127.0.0.1:1", absl::Seconds(2));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("127.0.0.1:1"), std::string::npos);
}

}  // namespace
}  // namespace fedge
