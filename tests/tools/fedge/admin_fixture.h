// Operators' commands against a real server, through its socket.
#ifndef FEDGE_TESTS_TOOLS_FEDGE_ADMIN_FIXTURE_H_
#define FEDGE_TESTS_TOOLS_FEDGE_ADMIN_FIXTURE_H_

#include <memory>
#include <string>
#include <vector>

#include "server/federation_server.h"
#include "tests/server/temporary_dir.h"
#include "tests/tools/fedge/fedge_fixture.h"

namespace fedge::testing {

class AdminTest : public FedgeTest {
 protected:
  void SetUp() override {
    FedgeTest::SetUp();
    TinyModelOptions other;
    other.block_count = 1;
    other.seed = 2;
    WriteTinyModel(absl::StrCat(dir_, "/other"), other);
    config_.set_base_model(model_);
    config_.set_state_dir(state_.path());  // a short path: it holds a socket
    config_.set_listen("127.0.0.1:0");
    config_.set_insecure(true);
    config_.mutable_run()->set_nodes_per_round(2);
    config_.mutable_run()->mutable_lora()->set_rank(2);
    config_.mutable_run()->mutable_training()->set_length(32);
    Start();
  }
  void Start() {
    server_.reset();
    auto server = FederationServer::Start(config_, {});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  FedgeRun Admin(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(),
                     {"--server", absl::StrCat("unix:", state_.path(), "/admin.sock")});
    return Run(arguments);
  }
  nlohmann::json Json(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--format", "json"});
    const FedgeRun run = Admin(arguments);
    EXPECT_EQ(run.code, 0) << run.err;
    return run.Json();
  }
  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = absl::StrCat(dir_, "/", name);
    EXPECT_TRUE(env_.WriteFileAtomic(path, text).ok());
    return path;
  }
  std::string RunFile(const std::string& id) {
    return Write(id + ".yaml", absl::StrCat("base_model: other/tiny.gguf\n"
                                            "run:\n"
                                            "  id: ",
                                            id,
                                            "\n"
                                            "  rounds: 3\n"
                                            "  nodes_per_round: 1\n"
                                            "  lora: {rank: 2}\n"
                                            "  training: {length: 32}\n"));
  }
  void CheckIn(const std::string& node, const std::string& run) {
    v1::CheckInRequest request;
    request.set_node_id(node);
    request.set_base_model_sha256(server_->federation().Find(run)->plan().base_model.Raw());
    request.mutable_device()->set_tokens_per_second(12.5);
    ASSERT_TRUE(server_->federation().CheckIn(request).ok());
  }

  TemporaryDir state_;
  v1::ServerConfig config_;
  std::unique_ptr<FederationServer> server_;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TOOLS_FEDGE_ADMIN_FIXTURE_H_
