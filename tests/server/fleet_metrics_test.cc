#include "server/fleet_metrics.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/federation_server.h"
#include "tests/server/temporary_dir.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::TemporaryDir;

// The answer to "GET /metrics" of 127.0.0.1:`port`, header included.
std::string Scrape(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
    EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
    char buffer[4096];
    for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) answer.append(buffer, n);
  }
  close(fd);
  return answer;
}

class FleetMetricsTest : public ::testing::Test {
 protected:
  FleetMetricsTest() {
    config_.set_base_model(testing::WriteTinyModel(dir_.path(), {}));
    config_.set_listen("127.0.0.1:0");
    config_.set_insecure(true);
    config_.set_metrics_listen("127.0.0.1:0");
    config_.set_state_dir(dir_.File("state"));
    config_.mutable_run()->set_id("fleet-a");
    config_.mutable_run()->set_rounds(7);
    config_.mutable_run()->set_nodes_per_round(2);
    config_.mutable_run()->set_min_nodes(2);
    config_.mutable_run()->mutable_lora()->set_rank(2);
    config_.mutable_run()->mutable_training()->set_length(32);
  }

  static void CheckIn(FederationServer& server, const std::string& node) {
    v1::CheckInRequest check_in;
    check_in.set_node_id(node);
    check_in.set_base_model_sha256(server.model().sha256().Raw());
    EXPECT_TRUE(server.federation().CheckIn(check_in).ok());
  }

  TemporaryDir dir_;
  v1::ServerConfig config_;
};

TEST_F(FleetMetricsTest, ShowsRunsRoundsAndEvents) {
  auto server = FederationServer::Start(config_, {});
  ASSERT_TRUE(server.ok()) << server.status();
  ASSERT_GT((*server)->metrics_port(), 0);
  const std::string before = Scrape((*server)->metrics_port());
  EXPECT_THAT(before, HasSubstr("200 OK"));
  EXPECT_THAT(before, HasSubstr("fedge_healthy 1"));
  EXPECT_THAT(before, HasSubstr("fedge_run_state{run=\"fleet-a\",state=\"running\"} 1"));
  EXPECT_THAT(before, HasSubstr("fedge_run_rounds{run=\"fleet-a\"} 7"));
  EXPECT_THAT(before, HasSubstr("fedge_run_known_nodes{run=\"fleet-a\"} 0"));
  EXPECT_THAT(before, HasSubstr("fedge_state_free_bytes "));
  EXPECT_THAT(before, HasSubstr("fedge_events_total{run=\"fleet-a\",kind=\"refused\"} 0"));
  EXPECT_THAT(before, Not(HasSubstr("fedge_round_nodes")));
  CheckIn(**server, "node-a");
  CheckIn(**server, "node-b");
  const std::string after = Scrape((*server)->metrics_port());
  EXPECT_THAT(after, HasSubstr("fedge_run_known_nodes{run=\"fleet-a\"} 2"));
  EXPECT_THAT(after, HasSubstr("fedge_round_nodes{run=\"fleet-a\",outcome=\"pending\"}"));
  EXPECT_THAT(after, HasSubstr("fedge_events_total{run=\"fleet-a\",kind=\"round-started\"} 1"));
  const int port = (*server)->metrics_port();
  (*server)->Shutdown(absl::ZeroDuration());
  EXPECT_EQ(Scrape(port), "");
}

TEST_F(FleetMetricsTest, SaysWhereItCannotListen) {
  auto first = FederationServer::Start(config_, {});
  ASSERT_TRUE(first.ok()) << first.status();
  config_.set_state_dir(dir_.File("other"));
  config_.set_metrics_listen(absl::StrCat("127.0.0.1:", (*first)->metrics_port()));
  const absl::Status taken = FederationServer::Start(config_, {}).status();
  EXPECT_EQ(taken.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(taken.message()),
              HasSubstr("metrics_listen: cannot listen on 127.0.0.1"));
  config_.set_metrics_listen("everywhere");
  EXPECT_EQ(FederationServer::Start(config_, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fedge
