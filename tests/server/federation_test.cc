// Several runs and base models on one server.
#include "server/federation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/failpoint.h"
#include "tests/server/federation_test_rig.h"
#include "tests/server/temporary_dir.h"
#include "tests/server/upload_message.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using testing::TemporaryDir;

class FederationTest : public ::testing::Test {
 protected:
  FederationTest() {
    config_.set_base_model(testing::WriteTinyModel(dir_.File("models"), {}));
    testing::TinyModelOptions other;
    other.block_count = 1;
    other.seed = 2;
    testing::WriteTinyModel(dir_.File("models/other"), other);
    config_.set_state_dir(dir_.File("state"));
    *config_.mutable_run() = Config("first", 2).run();
    options_.clock = &clock_;
    options_.tick_interval = absl::ZeroDuration();
    options_.log = &log_;
    Open();
  }

  // A run of one node a round.
  static v1::RunFile Config(const std::string& id, uint32_t rounds) {
    v1::RunFile file;
    v1::RunConfig& run = *file.mutable_run();
    run.set_id(id);
    run.set_rounds(rounds);
    run.set_nodes_per_round(1);
    run.mutable_lora()->set_rank(2);
    run.mutable_training()->set_length(32);
    run.mutable_codec()->set_support("dense");
    return file;
  }
  void Open() {
    federation_.reset();
    auto federation = Federation::Open(config_, options_);
    ASSERT_TRUE(federation.ok()) << federation.status();
    federation_ = *std::move(federation);
  }
  absl::StatusOr<Federation::Created> Create(const v1::RunFile& file) {
    NewRun run;
    run.file = file;
    return federation_->CreateRun(run);
  }
  absl::StatusOr<v1::CheckInResponse> TryCheckIn(const std::string& node, const Digest& base,
                                                 const std::string& held = "") {
    v1::CheckInRequest request;
    request.set_node_id(node);
    request.set_base_model_sha256(base.Raw());
    request.mutable_held_adapter()->set_run_id(held);
    return federation_->CheckIn(request);
  }
  v1::CheckInResponse CheckIn(const std::string& node, const std::string& run) {
    auto response = TryCheckIn(node, federation_->Find(run)->plan().base_model);
    EXPECT_TRUE(response.ok()) << response.status();
    return *std::move(response);
  }
  v1::UploadReceipt Upload(const std::string& node, const v1::Assignment& task) {
    const v1::UploadRequest message =
        testing::MakeUploadMessage(federation_->Find(task.run_id())->plan(), task, node);
    auto receipt = federation_->OpenUpload()->OnMessage(message);
    EXPECT_TRUE(receipt.ok()) << receipt.status();
    return receipt->value_or(v1::UploadReceipt());
  }
  RunState StateOf(const std::string& run) { return federation_->FindRun(run)->entry.state; }

  TemporaryDir dir_;
  ManualClock clock_;
  EventLog log_{&clock_};
  v1::ServerConfig config_;
  FederationOptions options_;
  std::unique_ptr<Federation> federation_;
};

TEST_F(FederationTest, ANodeThatWaitsMeasuresWhatARunWouldPublish) {
  v1::RunFile second = Config("second", 3);
  second.mutable_run()->mutable_gate()->set_evaluation_nodes(1);
  ASSERT_TRUE(Create(second).ok());
  ASSERT_TRUE(federation_->PauseRun("first").ok());
  const v1::Assignment task = CheckIn("a", "second").assignment();
  ASSERT_EQ(task.run_id(), "second");
  EXPECT_EQ(Upload("a", task).verdict(), v1::UploadReceipt::ACCEPTED);
  EXPECT_EQ(federation_->Find("second")->version(), 0u);
  const v1::CheckInResponse asked = CheckIn("a", "second");
  ASSERT_TRUE(asked.has_evaluation()) << asked.ShortDebugString();
  EXPECT_EQ(asked.evaluation().assignment().run_id(), "second");
  EXPECT_EQ(asked.evaluation().candidate().version(), 1u);
  // Work for another run goes first.
  ASSERT_TRUE(federation_->ResumeRun("first").ok());
  EXPECT_EQ(CheckIn("a", "first").assignment().run_id(), "first");
}

TEST_F(FederationTest, TheRecordSaysWhoWantedARun) {
  NewRun run;
  run.file = Config("second", 1);
  run.actor = "alice";
  ASSERT_TRUE(federation_->CreateRun(run).ok());
  ASSERT_TRUE(federation_->PauseRun("second", "bob").ok());
  std::vector<std::string> actors;
  for (const char* action : {"start", "pause"}) {
    const std::vector<AuditRecord> records = federation_->store().ListAuditOf(action).value();
    for (const AuditRecord& record : records) {
      actors.push_back(absl::StrCat(record.entry.run_id, " ", record.entry.actor));
    }
  }
  EXPECT_THAT(actors, ::testing::ElementsAre("first server", "second alice", "second bob"));
}

TEST_F(FederationTest, SignsTheVersionsOfAllRunsWithOneKey) {
  ASSERT_TRUE(Create(Config("second", 1)).ok());
  const std::string key = federation_->signing_key().public_key();
  for (const char* run : {"first", "second"}) {
    ASSERT_TRUE(federation_->PauseRun(run == std::string("first") ? "second" : "first").ok());
    ASSERT_TRUE(federation_->ResumeRun(run).ok());
    const v1::Assignment task = CheckIn(run, run).assignment();
    EXPECT_EQ(task.run_id(), run);
    EXPECT_EQ(task.adapter().manifest().public_key(), key);
  }
  Open();
  EXPECT_EQ(federation_->signing_key().public_key(), key);
}

TEST_F(FederationTest, ServesTwoBaseModelsSideBySide) {
  v1::RunFile second = Config("second", 1);
  second.set_base_model("other/tiny.gguf");
  ASSERT_TRUE(Create(second).ok());
  ASSERT_NE(federation_->Find("first")->plan().base_model,
            federation_->Find("second")->plan().base_model);
  const v1::Assignment a = CheckIn("a", "first").assignment();
  const v1::Assignment b = CheckIn("b", "second").assignment();
  EXPECT_EQ(a.run_id(), "first");
  EXPECT_EQ(b.run_id(), "second");
  EXPECT_NE(a.lora().modules_size(), b.lora().modules_size());
  EXPECT_EQ(Upload("b", b).verdict(), v1::UploadReceipt::ACCEPTED);
  EXPECT_TRUE(CheckIn("b", "second").has_finished());
  EXPECT_EQ(StateOf("second"), RunState::kFinished);
  EXPECT_EQ(StateOf("first"), RunState::kRunning);
  EXPECT_EQ(Upload("a", a).verdict(), v1::UploadReceipt::ACCEPTED);
  EXPECT_EQ(federation_->Find("first")->version(), 1u);
}

TEST_F(FederationTest, ADeviceWithoutAModelIsOfferedThatOfARunThatGoesOn) {
  v1::CheckInRequest check_in;
  check_in.set_node_id("a");
  v1::RunFile second = Config("second", 1);
  second.set_base_model("other/tiny.gguf");
  ASSERT_TRUE(Create(second).ok());
  for (const std::string run : {"first", "second", "second"}) {  // the last one: all are over
    const Digest base = federation_->Find(run)->plan().base_model;
    const auto answer = federation_->CheckIn(check_in);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->base_model().content().sha256(), base.Raw());
    v1::DownloadRequest download;
    download.set_node_id("a");
    download.set_sha256(base.Raw());
    const auto file = federation_->OpenBaseModel(download);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(Sha256Of(*file), base);
    (void)federation_->StopRun(run);
  }
}

TEST_F(FederationTest, OneModelIsLoadedOnceForItsRuns) {
  ASSERT_TRUE(Create(Config("second", 1)).ok());
  EXPECT_EQ(federation_->model("first"), federation_->model("second"));
}

TEST_F(FederationTest, ANodeOfTwoRunsGetsTheTaskThatIsDueFirst) {
  v1::RunFile hurry = Config("hurry", 3);
  hurry.mutable_run()->set_round_deadline_seconds(30);
  ASSERT_TRUE(Create(hurry).ok());
  const v1::Assignment first = CheckIn("a", "first").assignment();
  EXPECT_EQ(first.run_id(), "hurry");
  EXPECT_EQ(CheckIn("a", "first").assignment().run_id(), "hurry");  // the same one again
  ASSERT_TRUE(federation_->PauseRun("hurry").ok());
  EXPECT_EQ(CheckIn("a", "first").assignment().run_id(), "first");
  EXPECT_EQ(Upload("a", first).verdict(), v1::UploadReceipt::ACCEPTED);  // was on the way
}

TEST_F(FederationTest, TwoRunsOfOneBaseBothComeToTheirEnd) {
  ASSERT_TRUE(Create(Config("second", 2)).ok());
  for (int i = 0; i < 4; ++i) {
    const v1::CheckInResponse response = CheckIn("a", "first");
    ASSERT_TRUE(response.has_assignment()) << response.DebugString();
    EXPECT_EQ(Upload("a", response.assignment()).verdict(), v1::UploadReceipt::ACCEPTED);
    clock_.Advance(absl::Seconds(10));
  }
  EXPECT_TRUE(federation_->finished());
  EXPECT_EQ(federation_->nodes_to_tell(), 2u);  // the node, in each run
  const Digest base = federation_->Find("first")->plan().base_model;
  EXPECT_EQ(TryCheckIn("a", base, "first")->finished().adapter().run_id(), "first");
  EXPECT_EQ(TryCheckIn("a", base, "second")->finished().adapter().run_id(), "second");
  EXPECT_EQ(TryCheckIn("a", base)->finished().adapter().run_id(), "second");  // the newest
  EXPECT_EQ(federation_->nodes_to_tell(), 0u);
}

TEST_F(FederationTest, ANodeIsNotSentHomeWhileARunOfItsBaseGoesOn) {
  ASSERT_TRUE(Create(Config("second", 1)).ok());
  ASSERT_TRUE(federation_->StopRun("first").ok());
  EXPECT_EQ(CheckIn("a", "first").assignment().run_id(), "second");
  ASSERT_TRUE(federation_->PauseRun("second").ok());
  EXPECT_EQ(CheckIn("a", "first").retry().reason(), "the run is paused");
  ASSERT_TRUE(federation_->StopRun("second").ok());
  EXPECT_TRUE(CheckIn("a", "first").has_finished());
}

TEST_F(FederationTest, RunsComeBackAsTheyWere) {
  v1::RunFile second = Config("second", 5);
  second.set_base_model("other/tiny.gguf");
  ASSERT_TRUE(Create(second).ok());
  ASSERT_TRUE(Create(Config("third", 5)).ok());
  ASSERT_TRUE(Create(Config("fourth", 5)).ok());
  const v1::Assignment task = CheckIn("b", "second").assignment();
  ASSERT_TRUE(federation_->PauseRun("second").ok());
  ASSERT_TRUE(federation_->StopRun("third").ok());
  Open();
  EXPECT_EQ(StateOf("first"), RunState::kRunning);
  EXPECT_EQ(StateOf("second"), RunState::kPaused);
  EXPECT_EQ(StateOf("third"), RunState::kStopped);
  EXPECT_EQ(StateOf("fourth"), RunState::kRunning);
  EXPECT_EQ(federation_->Find("third"), nullptr);  // over for long
  EXPECT_EQ(Upload("b", task).verdict(), v1::UploadReceipt::ACCEPTED);
  EXPECT_EQ(federation_->Find("second")->version(), 1u);
  ASSERT_TRUE(federation_->ResumeRun("second").ok());
  EXPECT_EQ(CheckIn("b", "second").assignment().round(), 2u);
  EXPECT_EQ(federation_->ResumeRun("third").status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(FederationTest, AnUpdateOfARunThatIsOverForLongIsLate) {
  ASSERT_TRUE(Create(Config("second", 5)).ok());
  const RunPlan plan = federation_->Find("second")->plan();
  ASSERT_TRUE(federation_->StopRun("second").ok());
  Open();
  ASSERT_EQ(federation_->Find("second"), nullptr);
  v1::QueryUploadRequest query;
  query.mutable_id()->set_run_id("second");
  EXPECT_EQ(federation_->QueryUpload(query)->receipt().verdict(), v1::UploadReceipt::LATE);
  query.mutable_id()->set_run_id("never");
  EXPECT_EQ(federation_->QueryUpload(query).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(FederationTest, ABaseWhoseRunsAreOverStillSaysSo) {
  v1::RunFile second = Config("second", 1);
  second.set_base_model("other/tiny.gguf");
  ASSERT_TRUE(Create(second).ok());
  const Digest base = federation_->Find("second")->plan().base_model;
  ASSERT_TRUE(federation_->StopRun("second").ok());
  Open();
  EXPECT_EQ(TryCheckIn("b", base)->finished().adapter().run_id(), "second");
}

TEST_F(FederationTest, CreatingTwiceIsCreatingOnce) {
  const auto first = Create(Config("second", 3));
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_FALSE(first->existed);
  EXPECT_TRUE(Create(Config("second", 3))->existed);
  const auto other = Create(Config("second", 4));
  EXPECT_EQ(other.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(other.status().message()), StartsWith("run.id: run 'second' exists"));
  Open();
  EXPECT_TRUE(Create(Config("second", 3))->existed);
  EXPECT_EQ(Create(Config("first", 3)).status().code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(FederationTest, ValidatesBeforeAnythingIsStored) {
  NewRun run;
  run.file = Config("second", 3);
  run.validate_only = true;
  ASSERT_TRUE(federation_->CreateRun(run).ok());
  EXPECT_EQ(federation_->ListRuns()->size(), 1u);
  const auto error = [&] { return std::string(Create(run.file).status().message()); };
  run.file.mutable_run()->clear_id();
  EXPECT_THAT(error(), StartsWith("run.id: is required"));
  run.file = Config("second", 0);
  EXPECT_THAT(error(), StartsWith("run.rounds: 0 is below 1"));
  run.file = Config("second", 1);
  run.file.set_base_model("../state/fedge.db");
  EXPECT_THAT(error(), HasSubstr("is not a file in"));
  run.file.set_base_model("/etc/passwd");
  EXPECT_THAT(error(), HasSubstr("is not a file in"));
  run.file.set_base_model("missing.gguf");
  EXPECT_EQ(Create(run.file).status().code(), absl::StatusCode::kNotFound);
  run.file.set_base_model(std::string(64, 'a'));
  EXPECT_THAT(error(), StartsWith("base_model: no run of this server trains aaaa"));
  run.file = Config("second", 1);
  run.file.mutable_run()->mutable_training()->set_length(4096);
  EXPECT_THAT(error(), StartsWith("run.training.length: 4096 is above"));
  run.file = Config("second", 1);
  run.file.mutable_run()->mutable_admission()->set_max_open_streams(3);
  EXPECT_THAT(error(), StartsWith("run.admission: a node's quota"));
  EXPECT_EQ(federation_->ListRuns()->size(), 1u);
}

TEST_F(FederationTest, TakesABaseByItsHash) {
  v1::RunFile second = Config("second", 1);
  second.set_base_model(federation_->Find("first")->plan().base_model.Hex());
  ASSERT_TRUE(Create(second).ok());
  EXPECT_EQ(federation_->Find("second")->plan().base_model,
            federation_->Find("first")->plan().base_model);
}

TEST_F(FederationTest, AClonedRunBeginsWhereItsParentWas) {
  const v1::Assignment task = CheckIn("a", "first").assignment();
  Upload("a", task);
  NewRun clone;
  clone.file = Config("clone", 4);
  clone.parent_run = "first";
  clone.parent_version = 1;
  ASSERT_TRUE(federation_->CreateRun(clone).ok());
  const LoraAdapter parent = federation_->Find("first")->adapter();
  const LoraAdapter child = federation_->Find("clone")->adapter();
  EXPECT_EQ(federation_->Find("clone")->version(), 0u);
  EXPECT_THAT(child.values(), ::testing::ElementsAreArray(parent.values()));
  Open();
  EXPECT_THAT(federation_->Find("clone")->adapter().values(),
              ::testing::ElementsAreArray(parent.values()));
  const RunRecord record = federation_->FindRun("clone")->entry.record;
  EXPECT_EQ(record.parent_run, "first");
  EXPECT_EQ(record.parent_version, 1u);

  clone.file = Config("fresh", 4);
  clone.parent_version.reset();
  ASSERT_TRUE(federation_->CreateRun(clone).ok());
  clone.file = Config("bad", 4);
  clone.parent_version = 7;
  EXPECT_EQ(federation_->CreateRun(clone).status().message(),
            "run 'first' has no version 7; its newest is 1");
  clone.parent_version = 1;
  clone.file.mutable_run()->mutable_lora()->set_rank(3);
  EXPECT_EQ(federation_->CreateRun(clone).status().code(), absl::StatusCode::kFailedPrecondition);
  clone.parent_run = "nobody";
  EXPECT_EQ(federation_->CreateRun(clone).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(FederationTest, ACrashWhileCreatingLeavesARunOrNone) {
  for (const std::string place :
       {"federation.run.begins", "store.run.commit", "store.version.blob", "store.publish.commit",
        "core.version.stored", "federation.run.stored"}) {
    ASSERT_TRUE(ArmFailpoints(place + "=error").ok());
    EXPECT_FALSE(Create(Config("second", 3)).ok()) << place;
    ASSERT_TRUE(ArmFailpoints("").ok());
    Open();  // what the next process finds
    const bool there = federation_->FindRun("second").ok();
    EXPECT_EQ(there, place == "core.version.stored" || place == "federation.run.stored") << place;
    const auto again = Create(Config("second", 3));
    ASSERT_TRUE(again.ok()) << place << ": " << again.status();
    EXPECT_EQ(again->existed, there) << place;
    EXPECT_TRUE(CheckIn("a", "second").has_assignment());
    // Another folder for the next place.
    config_.set_state_dir(dir_.File(place));
    Open();
  }
}

TEST_F(FederationTest, AModelThatIsGoneIsAProblemOfItsRunAlone) {
  v1::RunFile second = Config("second", 1);
  second.set_base_model("other/tiny.gguf");
  ASSERT_TRUE(Create(second).ok());
  const std::string path = dir_.File("models/other/tiny.gguf");
  const std::string bytes = *Env::Posix()->ReadFile(path, 1 << 30);
  federation_.reset();
  ASSERT_TRUE(Env::Posix()->Remove(path).ok());
  Open();
  EXPECT_TRUE(CheckIn("a", "first").has_assignment());
  EXPECT_THAT(federation_->FindRun("second")->problem, HasSubstr(path));
  v1::QueryUploadRequest query;  // a device keeps its update
  query.mutable_id()->set_run_id("second");
  EXPECT_EQ(federation_->QueryUpload(query).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(federation_->ResumeRun("second").status().code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(path, bytes).ok());
  ASSERT_TRUE(federation_->ResumeRun("second").ok());
  EXPECT_EQ(federation_->FindRun("second")->problem, "");
  EXPECT_TRUE(CheckIn("b", "second").has_assignment());
}

TEST_F(FederationTest, ARunTheConfigurationNoLongerNamesRests) {
  config_.mutable_run()->set_id("renamed");
  Open();
  EXPECT_EQ(CheckIn("a", "renamed").assignment().run_id(), "renamed");
  EXPECT_THAT(federation_->FindRun("first")->problem, HasSubstr("fedge run resume first"));
  ASSERT_TRUE(federation_->ResumeRun("first").ok());
  EXPECT_NE(federation_->Find("first"), nullptr);
  Open();  // it is an operator's run now
  EXPECT_NE(federation_->Find("first"), nullptr);
}

TEST_F(FederationTest, NamesTheBasesItHasToADeviceWithAnother) {
  const auto response = TryCheckIn("a", Sha256Of("another"));
  EXPECT_EQ(response.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(response.status().message()), HasSubstr("run 'first' trains "));
}

TEST_F(FederationTest, AServerWithoutARunOfItsOwnWaitsForOperators) {
  config_.clear_base_model();
  config_.clear_run();
  config_.set_model_dir(dir_.File("models"));
  config_.set_state_dir(dir_.File("empty"));
  Open();
  EXPECT_FALSE(federation_->finished());
  EXPECT_TRUE(TryCheckIn("a", Sha256Of("x"))->has_retry());
  v1::CheckInRequest without_model;
  without_model.set_node_id("a");
  EXPECT_TRUE(federation_->CheckIn(without_model)->has_retry());
  v1::RunFile second = Config("second", 1);
  EXPECT_THAT(std::string(Create(second).status().message()),
              StartsWith("base_model: is required"));
  second.set_base_model("other/tiny.gguf");
  ASSERT_TRUE(Create(second).ok());
  EXPECT_TRUE(CheckIn("a", "second").has_assignment());
}

TEST_F(FederationTest, ANodesQuotaHoldsForAllRuns) {
  config_.mutable_run()->mutable_admission()->set_max_requests_per_minute(2);
  Open();
  ASSERT_TRUE(Create(Config("second", 1)).ok());
  const Digest base = federation_->Find("first")->plan().base_model;
  EXPECT_TRUE(TryCheckIn("a", base).ok());
  EXPECT_TRUE(TryCheckIn("a", base).ok());
  EXPECT_EQ(TryCheckIn("a", base).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(FederationTest, TellsOperatorsWhatHappened) {
  ASSERT_TRUE(Create(Config("second", 1)).ok());
  ASSERT_TRUE(federation_->PauseRun("second").ok());
  ASSERT_TRUE(federation_->PauseRun("second").ok());  // no news
  ASSERT_TRUE(federation_->ResumeRun("second").ok());
  v1::LogsRequest of_run;
  of_run.set_run_id("second");
  std::vector<std::string> kinds;
  for (const v1::Event& event : log_.Newest(of_run, 10)) kinds.push_back(event.kind());
  EXPECT_THAT(kinds, ElementsAre("created", "paused", "resumed"));
}

}  // namespace
}  // namespace fedge
