// fedge models, against a real server whose devices are played here.
#include "common/base/digest.h"
#include "server/sqlite_db.h"
#include "tests/server/upload_message.h"
#include "tests/tools/fedge/admin_fixture.h"

namespace fedge {
namespace {

using testing::FedgeRun;
using ::testing::HasSubstr;

class ModelCommandsTest : public testing::AdminTest {
 protected:
  void SetUp() override {
    config_.mutable_run()->mutable_codec()->set_support("dense");
    AdminTest::SetUp();
    for (int round = 1; round <= 2; ++round) PlayRound();
  }
  void PlayRound() {
    FederationCore& core = *server_->federation().configured();
    for (const char* node : {"n1", "n2"}) CheckIn(node, "default");
    for (const char* node : {"n1", "n2"}) {
      v1::CheckInRequest request;
      request.set_node_id(node);
      request.set_base_model_sha256(core.plan().base_model.Raw());
      const v1::Assignment task = server_->federation().CheckIn(request)->assignment();
      const v1::UploadRequest message = testing::MakeUploadMessage(core.plan(), task, node);
      ASSERT_TRUE(server_->federation().OpenUpload()->OnMessage(message).ok());
    }
  }
  // Behind the server's back.
  void Tamper(const std::string& sql) {
    server_.reset();
    const auto db = SqliteDb::Open(absl::StrCat(state_.path(), "/fedge.db")).value();
    ASSERT_TRUE(db->Execute("DROP TRIGGER IF EXISTS audit_stays;"
                            "DROP TRIGGER IF EXISTS audit_is_kept")
                    .ok());
    ASSERT_TRUE(db->Execute(sql).ok());
  }
};

TEST_F(ModelCommandsTest, ShowsVersionsAndWhatTheyAreMadeOf) {
  const nlohmann::json versions = Json({"models", "list"})["versions"];
  ASSERT_EQ(versions.size(), 3u);
  EXPECT_EQ(versions[2]["served"], true);
  EXPECT_EQ(versions[1]["is_signed"], true);
  EXPECT_EQ(versions[2]["manifest"]["parent_sha256"], versions[1]["manifest_sha256"]);
  EXPECT_THAT(Admin({"models", "list"}).out, HasSubstr("round 2, 2 updates"));
  const nlohmann::json shown = Json({"models", "show"});
  EXPECT_EQ(shown["version"], 2);
  ASSERT_EQ(shown["contributions"].size(), 2u);
  EXPECT_EQ(shown["contributions"][0]["node_id"], "n1");
  EXPECT_THAT(Admin({"models", "show", "1"}).out, HasSubstr(", signed\n"));
  EXPECT_EQ(Admin({"models", "show", "7"}).code, 3);
  EXPECT_EQ(Admin({"models", "show", "--run", "none"}).code, 3);
}

TEST_F(ModelCommandsTest, ComparesTwoVersions) {
  const nlohmann::json modules = Json({"models", "diff", "0", "2"})["modules"];
  ASSERT_FALSE(modules.empty());
  EXPECT_GT(modules[0]["b"], 0);
  EXPECT_GT(modules[0]["product"], 0);
  const nlohmann::json same = Json({"models", "diff", "2", "2"});
  ASSERT_FALSE(same["modules"].empty());
  for (const nlohmann::json& module : same["modules"]) {
    EXPECT_EQ(module["product"], 0);
  }
  EXPECT_THAT(Admin({"models", "diff", "0", "1"}).out, HasSubstr("OF THE PRODUCT"));
}

TEST_F(ModelCommandsTest, RollsBackToTheBit) {
  const nlohmann::json before = Json({"models", "show", "1"});
  const nlohmann::json after = Json({"models", "rollback", "1"});
  EXPECT_EQ(after["version"], 3);
  EXPECT_EQ(after["origin"], 1);
  EXPECT_EQ(after["manifest"]["values_sha256"], before["manifest"]["values_sha256"]);
  EXPECT_THAT(Admin({"models", "list"}).out, HasSubstr("version 1 again"));
  EXPECT_EQ(Admin({"models", "rollback", "3"}).code, 4);  // it is served
  EXPECT_EQ(Admin({"models", "rollback", "9"}).code, 3);
  PlayRound();
  EXPECT_EQ(Json({"models", "show"})["version"], 4);
  const FedgeRun promoted = Admin({"models", "promote"});
  EXPECT_EQ(promoted.code, 4);
  EXPECT_THAT(promoted.err, HasSubstr("no candidate waits"));
}

TEST_F(ModelCommandsTest, OverTheNetworkTheCertificateSaysWhoDecided) {
  config_.set_insecure(false);
  config_.set_admin_tcp_listen("127.0.0.1:0");
  Start();
  const std::string alice = absl::StrCat(dir_, "/alice.pem");
  ASSERT_EQ(Admin({"operator", "certify", "alice", "--out", alice}).code, 0);
  const std::string address = absl::StrCat("127.0.0.1:", server_->admin_tcp_port());
  const auto as_alice = [&](std::vector<std::string> command) {
    command.insert(command.end(), {"--identity", alice, "--server", address});
    const FedgeRun done = Run(command);
    EXPECT_EQ(done.code, 0) << done.err;
  };
  as_alice({"models", "rollback", "1"});
  as_alice({"run", "pause", "default"});
  as_alice({"run", "stop", "default"});
  std::vector<std::string> hers;
  const nlohmann::json log = Json({"models", "audit"});
  for (const nlohmann::json& record : log["records"]) {
    if (record["actor"] == "alice") hers.push_back(record["action"]);
  }
  EXPECT_THAT(hers, ::testing::ElementsAre("rollback", "pause", "stop"));
}

TEST_F(ModelCommandsTest, ExportsWhatDevicesHold) {
  const std::string out = absl::StrCat(dir_, "/out");
  const FedgeRun exported = Admin({"models", "export", "1", "--out", out, "--model", model_});
  EXPECT_EQ(exported.code, 0) << exported.err;
  EXPECT_TRUE(env_.Exists(absl::StrCat(out, "/adapter.gguf")));
  EXPECT_TRUE(env_.Exists(absl::StrCat(out, "/peft/adapter_model.safetensors")));
  const FedgeRun other =
      Admin({"models", "export", "--out", out, "--model", absl::StrCat(dir_, "/other/tiny.gguf")});
  EXPECT_EQ(other.code, 4);
  EXPECT_TRUE(other.IsOneErrorLine()) << other.err;
}

TEST_F(ModelCommandsTest, TheAuditLogHoldsUntilSomebodyChangesIt) {
  ASSERT_EQ(Admin({"run", "pause", "default"}).code, 0);
  const nlohmann::json log = Json({"models", "audit"});
  EXPECT_EQ(log["verified"], true);
  std::vector<std::string> actions;
  for (const nlohmann::json& record : log["records"]) actions.push_back(record["action"]);
  EXPECT_THAT(actions,
              ::testing::ElementsAre("signing-key", "start", "publish", "publish", "pause"));
  const FedgeRun good = Admin({"models", "audit", "--verify"});
  EXPECT_EQ(good.code, 0) << good.err;
  EXPECT_THAT(good.out, HasSubstr("5 records, each follows the one before; 3 versions"));

  Tamper("UPDATE audit SET actor='nobody' WHERE number=3");
  Start();
  const FedgeRun changed = Admin({"models", "audit", "--verify"});
  EXPECT_EQ(changed.code, 2);
  EXPECT_THAT(changed.err, HasSubstr("audit log: record 3: was changed"));
  EXPECT_EQ(Json({"models", "audit"})["verified"], false);
}

TEST_F(ModelCommandsTest, TheAuditLogIsNotCutOffUnseen) {
  Tamper("DELETE FROM audit WHERE number>3");
  Start();
  const FedgeRun cut = Admin({"models", "audit", "--verify"});
  EXPECT_EQ(cut.code, 2);
  EXPECT_THAT(cut.err, HasSubstr("audit log: version 2 of run 'default'"));
}

}  // namespace
}  // namespace fedge
