#include "server/grpc_probe.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "server/grpc_server.h"
#include "tests/server/federation_test_rig.h"

namespace fedge {
namespace {

using testing::FederationRig;

TEST(ProbeHealthTest, IsUnavailableWhereNothingListens) {
  const absl::Status status = ProbeHealth("127.0.0.1:1", absl::Seconds(2));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("127.0.0.1:1"), std::string::npos);
}

TEST(ProbeHealthTest, IsOkWhereAServerServes) {
  FederationRig rig;
  const auto server = GrpcServer::Start(*rig.core, {.listen = "127.0.0.1:0"});
  ASSERT_TRUE(server.ok()) << server.status();
  const absl::Status status =
      ProbeHealth(absl::StrCat("127.0.0.1:", (*server)->port()), absl::Seconds(10));
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace fedge
