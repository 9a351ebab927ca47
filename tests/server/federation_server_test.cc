// The whole server from a configuration, over a model file.
#include "server/federation_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "common/codec/update_codec.h"
#include "tests/server/federation_test_rig.h"
#include "tests/server/temporary_dir.h"
#include "tests/server/upload_message.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using ::testing::Contains;
using testing::EventRecorder;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using testing::TemporaryDir;

class FederationServerTest : public ::testing::Test {
 protected:
  FederationServerTest() {
    config_.set_base_model(testing::WriteTinyModel(dir_.path(), {}));
    config_.set_state_dir(dir_.File("state"));
    config_.set_listen("127.0.0.1:0");
    config_.mutable_run()->set_rounds(1);
    config_.mutable_run()->set_nodes_per_round(1);
    config_.mutable_run()->mutable_lora()->set_rank(2);
    config_.mutable_run()->mutable_training()->set_length(32);
    options_.events = {&events_};
  }

  absl::Status StartStatus() { return FederationServer::Start(config_, options_).status(); }

  TemporaryDir dir_;
  v1::ServerConfig config_;
  EventRecorder events_;
  FederationServerOptions options_;
};

TEST_F(FederationServerTest, RunsARoundAndMeasuresTheHoldout) {
  ASSERT_TRUE(
      Env::Posix()->WriteFileAtomic(dir_.File("holdout.txt"), "the cat sat on the mat\n").ok());
  config_.set_holdout(dir_.File("holdout.txt"));
  auto server = FederationServer::Start(config_, options_);
  ASSERT_TRUE(server.ok()) << server.status();
  (*server)->holdout()->WaitUntilIdle();
  FederationCore& core = (*server)->core();
  v1::CheckInRequest check_in;
  check_in.set_node_id("n");
  check_in.set_base_model_sha256((*server)->model().sha256().Raw());
  const auto response = core.CheckIn(check_in);
  ASSERT_TRUE(response->has_assignment());
  const v1::UploadRequest message =
      testing::MakeUploadMessage(core.plan(), response->assignment(), "n");
  FederationCore::Upload upload = core.StartUpload();
  EXPECT_EQ((*upload.OnMessage(message))->verdict(), v1::UploadReceipt::ACCEPTED);
  (*server)->holdout()->WaitUntilIdle();
  EXPECT_TRUE(core.finished());
  EXPECT_EQ(core.nodes_to_tell(), 1u);
  EXPECT_TRUE(core.CheckIn(check_in)->has_finished());
  EXPECT_EQ(core.nodes_to_tell(), 0u);
  EXPECT_EQ(core.CheckIn(check_in)->finished().lora().modules_size(),
            static_cast<int>(core.plan().lora.modules().size()));
  EXPECT_THAT(events_.lines, Contains(StartsWith("evaluate v0 ")));
  EXPECT_THAT(events_.lines, Contains(StartsWith("evaluate v1 ")));
  (*server)->Shutdown(absl::ZeroDuration());
}

TEST_F(FederationServerTest, NamesAndGivesTheBaseModelToDevicesWithoutOne) {
  const std::string model = Env::Posix()->ReadFile(config_.base_model()).value();
  v1::CheckInRequest check_in;
  check_in.set_node_id("n");
  v1::DownloadRequest download;
  download.set_node_id("n");
  download.set_sha256(Sha256Of(model).Raw());
  for (const bool served : {true, false}) {
    config_.set_serve_base_model(served);
    auto server = FederationServer::Start(config_, options_);
    ASSERT_TRUE(server.ok()) << server.status();
    Federation& federation = (*server)->federation();
    const auto answer = federation.CheckIn(check_in);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->base_model().content().sha256(), download.sha256());
    EXPECT_EQ(answer->base_model().content().size_bytes(), model.size());
    EXPECT_EQ(answer->base_model().served(), served);
    download.set_offset(model.size());
    const auto content = federation.OpenBaseModel(download);
    EXPECT_EQ(content.status().code(),
              served ? absl::StatusCode::kOk : absl::StatusCode::kNotFound);
    if (served) {
      EXPECT_TRUE(*content == model);
    }
    download.set_offset(model.size() + 1);
    EXPECT_EQ(federation.OpenBaseModel(download).status().code(),
              served ? absl::StatusCode::kOutOfRange : absl::StatusCode::kNotFound);
  }
  check_in.set_base_model_sha256("short");
  auto server = FederationServer::Start(config_, options_);
  EXPECT_EQ((*server)->federation().CheckIn(check_in).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(FederationServerTest, ContinuesWhereItStopped) {
  { ASSERT_TRUE(StartStatus().ok()); }
  ASSERT_TRUE(StartStatus().ok());
  config_.mutable_run()->mutable_lora()->set_rank(3);
  EXPECT_EQ(StartStatus().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(FederationServerTest, StartsFromTheQuantizationErrorOnce) {
  testing::TinyModelOptions quantized;
  quantized.dtype = DType::kQ4_0;
  const std::string full = config_.base_model();
  config_.set_base_model(testing::WriteTinyModel(dir_.File("quantized"), quantized));
  config_.mutable_run()->mutable_lora()->set_init("loftq");
  EXPECT_THAT(std::string(StartStatus().message()), StartsWith("run.lora.init: "));
  config_.mutable_run()->mutable_lora()->set_init_from(full);
  {
    auto server = FederationServer::Start(config_, options_);
    ASSERT_TRUE(server.ok()) << server.status();
  }
  ASSERT_TRUE(Env::Posix()->Remove(full).ok());
  EXPECT_TRUE(StartStatus().ok());  // version 0 is in the store
  config_.set_state_dir(dir_.File("other"));
  EXPECT_EQ(StartStatus().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(StartStatus().message()), HasSubstr(full));
}

TEST_F(FederationServerTest, NamesWhatIsWrongWithAConfiguration) {
  const auto message = [&] { return std::string(StartStatus().message()); };
  v1::ServerConfig good = config_;
  config_.clear_base_model();
  EXPECT_THAT(message(), StartsWith("base_model: is required"));
  config_.set_base_model(dir_.File("missing.gguf"));
  EXPECT_EQ(StartStatus().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(message(), StartsWith(dir_.File("missing.gguf")));
  config_ = good;
  config_.mutable_run()->mutable_training()->set_length(4096);
  EXPECT_EQ(message(), "run.training.length: 4096 is above the base model's context of 128");
  config_ = good;
  config_.mutable_run()->mutable_lora()->add_target_modules("nose");
  EXPECT_THAT(message(), HasSubstr("nose"));
  config_ = good;
  config_.mutable_run()->mutable_lora()->set_layers("1-7");
  EXPECT_EQ(message(), "run.lora: LoRA target layers 1 to 7: the model has layers 0 to 1");
  config_ = good;
  config_.set_listen("nowhere");
  EXPECT_THAT(message(), StartsWith("listen: \"nowhere\" is not host:port"));
  EXPECT_EQ(CheckServerConfig(config_, *Env::Posix()).code(), absl::StatusCode::kInvalidArgument);
  config_ = good;
  config_.set_holdout(dir_.File("nothing"));
  EXPECT_EQ(StartStatus().code(), absl::StatusCode::kNotFound);
  // None of these left anything behind.
  EXPECT_FALSE(Env::Posix()->Exists(dir_.File("state")));
  EXPECT_TRUE(CheckServerConfig(good, *Env::Posix()).ok());
  EXPECT_FALSE(Env::Posix()->Exists(dir_.File("state")));
}

TEST_F(FederationServerTest, NamesAStateFolderItCannotUse) {
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(dir_.File("state"), "a file").ok());
  EXPECT_THAT(std::string(StartStatus().message()), StartsWith(dir_.File("state")));
}

TEST_F(FederationServerTest, RefusesAHoldoutWithoutText) {
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(dir_.File("holdout.txt"), "\n").ok());
  config_.set_holdout(dir_.File("holdout.txt"));
  const absl::Status status = StartStatus();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), StartsWith(dir_.File("holdout.txt")));
}

}  // namespace
}  // namespace fedge
