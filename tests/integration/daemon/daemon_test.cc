// The whole daemon in a thread, over gRPC, against a whole server in the same process.
#include "client/daemon.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "client/control_socket.h"
#include "common/base/logging.h"
#include "fedge/v1/client.pb.h"
#include "server/federation_server.h"
#include "tests/server/temporary_dir.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

class DaemonTest : public ::testing::Test {
 protected:
  DaemonTest() {
    SetLogLevel(LogLevel::kOff);
    EXPECT_TRUE(Env::Posix()->CreateDirs(dir_.File("models")).ok());
    testing::WriteTinyModel(dir_.File("models"), {});
    v1::ServerConfig config;
    config.set_model_dir(dir_.File("models"));
    config.set_state_dir(dir_.File("server"));
    config.set_listen("127.0.0.1:0");
    config.set_insecure(true);
    config.set_retry_seconds(0.01);
    auto server = FederationServer::Start(config, {});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    std::ofstream notes(dir_.File("notes.jsonl"));
    for (int i = 0; i < 24; ++i)
      notes << "{\"text\": \"note " << i << " is " << i * 7919 << "\"}\n";
  }

  void CreateRun(const std::string& id) {
    NewRun run;
    run.file.set_base_model("tiny.gguf");
    run.file.mutable_run()->set_id(id);
    run.file.mutable_run()->set_rounds(1);
    run.file.mutable_run()->set_nodes_per_round(1);
    run.file.mutable_run()->set_min_nodes(1);
    run.file.mutable_run()->mutable_lora()->set_rank(2);
    run.file.mutable_run()->mutable_training()->set_length(32);
    run.file.mutable_run()->mutable_training()->set_steps(2);
    run.file.mutable_run()->mutable_training()->set_batch_size(2);
    const auto created = server_->federation().CreateRun(run);
    ASSERT_TRUE(created.ok()) << created.status();
  }

  ClientSettings Settings(bool stay) {
    v1::ClientConfig config;
    config.set_server(absl::StrCat("127.0.0.1:", server_->grpc().port()));
    config.set_insecure(true);
    config.set_node_id("alpha");
    config.set_data(dir_.File("notes.jsonl"));
    config.set_state_dir(dir_.File("state"));
    config.set_threads(1);
    config.set_stay(stay);
    config.mutable_policy()->set_max_load(1);
    config.mutable_policy()->set_max_temperature_celsius(150);
    config.mutable_policy()->set_min_battery_percent(0);
    config.mutable_policy()->set_min_free_disk("0");
    config.mutable_policy()->set_min_free_memory("0");
    return ResolveSettings(config).value();
  }

  absl::Status Run(bool stay) { return RunDaemon(Settings(stay), {}, *Env::Posix()); }
  std::string Ask(const std::string& command) {
    return AskDaemon(dir_.File("state"), command).value_or("");
  }
  // Ends the daemon's pauses until its status is so.
  void WakeUntil(const std::function<bool(const v1::ClientStatus&)>& reached) {
    for (v1::ClientStatus status; !reached(status);) {
      Ask("resume");
      status.ParseFromString(Ask("status"));
      std::this_thread::yield();
    }
  }

  testing::TemporaryDir dir_;
  std::unique_ptr<FederationServer> server_;
};

TEST_F(DaemonTest, IsThereBeforeTheFirstRunAndStaysForTheNext) {
  absl::Status ended;
  std::thread daemon([&] { ended = Run(/*stay=*/true); });
  WakeUntil([](const v1::ClientStatus& status) { return status.state() == "waiting"; });
  for (const std::string run : {"first", "second"}) {
    CreateRun(run);
    WakeUntil([&](const v1::ClientStatus& status) {
      return status.adapter().run_id() == run && status.adapter().version() == 1;
    });
    EXPECT_EQ(server_->federation().Find(run)->version(), 1u);
  }
  const absl::Status second = Run(/*stay=*/true);
  EXPECT_EQ(second.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(second.message()), HasSubstr("give this one another --state-dir"));
  EXPECT_EQ(Ask("leave"), "ok");
  daemon.join();
  EXPECT_TRUE(ended.ok()) << ended;
  // What it learned stays; it does not begin again by itself.
  EXPECT_TRUE(Env::Posix()->Exists(dir_.File("state/adapters/current/adapter.gguf")));
  EXPECT_FALSE(Env::Posix()->Exists(dir_.File("state/models")));
  EXPECT_EQ(Run(/*stay=*/true).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(DaemonTest, EndsWithTheRun) {
  CreateRun("only");
  const absl::Status ended = Run(/*stay=*/false);
  EXPECT_TRUE(ended.ok()) << ended;
  EXPECT_TRUE(Env::Posix()->Exists(dir_.File("state/adapters/current/peft")));
}

}  // namespace
}  // namespace fedge
