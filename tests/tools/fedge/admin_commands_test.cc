// Operators' commands against a real server, through its socket.
#include <sys/stat.h>

#include <thread>

#include "absl/synchronization/notification.h"
#include "tests/tools/fedge/admin_fixture.h"
#include "tools/fedge/grpc_admin_link.h"

namespace fedge {
namespace {

using testing::FedgeRun;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class AdminCommandsTest : public testing::AdminTest {};

TEST_F(AdminCommandsTest, ARunsLifeThroughTheSocket) {
  const FedgeRun created = Admin({"run", "create", RunFile("second")});
  EXPECT_EQ(created.code, 0) << created.err;
  EXPECT_EQ(created.out,
            "created run 'second' running, version 0 of 3, round 1: waiting for nodes\n");
  EXPECT_THAT(Admin({"run", "create", RunFile("second")}).out, HasSubstr("was created before"));
  CheckIn("n1", "second");
  EXPECT_EQ(Admin({"run", "pause", "second"}).out,
            "run 'second' paused, version 0 of 3, round 1: 0 of 1 accepted, 1 pending\n");
  Start();  // paused runs stay so
  nlohmann::json runs = Json({"run", "list"})["runs"];
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0]["run_id"], "default");
  EXPECT_EQ(runs[1]["run_id"], "second");
  EXPECT_EQ(runs[1]["state"], "paused");
  EXPECT_EQ(runs[1]["base_model"], absl::StrCat(dir_, "/other/tiny.gguf"));
  EXPECT_EQ(Json({"run", "resume", "second"})["state"], "running");
  EXPECT_EQ(Json({"run", "stop", "second"})["state"], "stopped");
  EXPECT_EQ(Json({"run", "stop", "second"})["state"], "stopped");
  const FedgeRun resumed = Admin({"run", "resume", "second"});
  EXPECT_EQ(resumed.code, 4);
  EXPECT_TRUE(resumed.IsOneErrorLine()) << resumed.err;
  const FedgeRun watched = Admin({"run", "watch", "second"});
  EXPECT_EQ(watched.code, 0) << watched.err;
  EXPECT_EQ(watched.out, "run 'second' stopped, version 0 of 3\n");
}

TEST_F(AdminCommandsTest, TokensLetDevicesInUntilTheyAreRevoked) {
  const FedgeRun without = Admin({"token", "create"});
  EXPECT_EQ(without.code, 4);
  EXPECT_TRUE(without.IsOneErrorLine()) << without.err;  // a server with --insecure has none
  config_.set_insecure(false);
  Start();
  const nlohmann::json made = Json({"token", "create", "--expires", "30m", "--node", "pi-17"});
  const std::string token = made["token"];
  EXPECT_THAT(token, StartsWith("FEDGE1."));
  EXPECT_EQ(made["info"]["node_id"], "pi-17");
  const FedgeRun shown = Admin({"token", "create"});
  EXPECT_THAT(shown.out, StartsWith("FEDGE1."));
  EXPECT_THAT(shown.out, HasSubstr("\u2588"));  // the QR code
  EXPECT_THAT(shown.out, HasSubstr("for 1 device(s)"));
  EXPECT_EQ(Admin({"token", "create", "--no-qr"}).out.find("\u2588"), std::string::npos);
  EXPECT_THAT(Admin({"token", "list"}).out, HasSubstr("pi-17"));
  const std::string id = made["info"]["token_id"];
  EXPECT_EQ(Admin({"token", "revoke", id}).code, 0);
  EXPECT_THAT(Admin({"token", "list"}).out, HasSubstr("pi-17"));
  EXPECT_THAT(Admin({"token", "list"}).out, HasSubstr("revoked"));
  EXPECT_EQ(Admin({"token", "create", "--expires", "soon"}).code, 2);
}

TEST_F(AdminCommandsTest, AnAuthorityIsRotatedAndANodeRevoked) {
  config_.set_insecure(false);
  Start();
  EXPECT_THAT(Admin({"authority", "rotate"}).out, StartsWith("new authority "));
  const FedgeRun revoked = Admin({"nodes", "revoke", "pi-17"});
  EXPECT_EQ(revoked.code, 0) << revoked.err;
  EXPECT_THAT(revoked.out, HasSubstr("let in no more"));
  const FedgeRun again = Admin({"token", "create", "--node", "pi-17"});
  EXPECT_EQ(again.code, 4);
  EXPECT_THAT(again.err, HasSubstr("'pi-17' was revoked"));
  const FedgeRun nameless = Admin({"nodes", "revoke", ""});
  EXPECT_EQ(nameless.code, 2);
  EXPECT_TRUE(nameless.IsOneErrorLine()) << nameless.err;
}

TEST_F(AdminCommandsTest, OperatorsWithCertificatesComeOverTheNetwork) {
  config_.set_admin_tcp_listen("127.0.0.1:0");
  EXPECT_EQ(FederationServer::Start(config_, {}).status().code(),
            absl::StatusCode::kInvalidArgument);  // not with --insecure
  config_.set_insecure(false);
  Start();
  const std::string address = absl::StrCat("127.0.0.1:", server_->admin_tcp_port());
  const auto over_tcp = [&](std::vector<std::string> arguments, const std::string& identity) {
    arguments.insert(arguments.end(), {"--server", address});
    if (!identity.empty()) arguments.insert(arguments.end(), {"--identity", identity});
    return Run(arguments);
  };
  const std::string alice = absl::StrCat(dir_, "/alice.pem"), bob = absl::StrCat(dir_, "/bob.pem");
  const FedgeRun certified = Admin({"operator", "certify", "alice", "--out", alice});
  EXPECT_EQ(certified.code, 0) << certified.err;
  EXPECT_THAT(certified.out, HasSubstr("who may look and change for 90 days"));
  struct stat info {};
  ASSERT_EQ(stat(alice.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_EQ(Admin({"operator", "certify", "alice", "--out", alice}).code, 4);  // kept
  ASSERT_EQ(Admin({"operator", "certify", "bob", "--read-only", "--out", bob}).code, 0);

  EXPECT_EQ(over_tcp({"run", "pause", "default"}, alice).code, 0);
  const FedgeRun looked = over_tcp({"run", "show", "default", "--format", "json"}, bob);
  EXPECT_EQ(looked.Json()["run"]["state"], "paused") << looked.err;
  const FedgeRun denied = over_tcp({"run", "resume", "default"}, bob);
  EXPECT_NE(denied.code, 0);
  EXPECT_THAT(denied.err, HasSubstr("not allowed for admin-read 'bob'"));
  EXPECT_EQ(Json({"run", "show", "default"})["run"]["state"], "paused");

  const FedgeRun nobody = over_tcp({"run", "list"}, "");
  EXPECT_EQ(nobody.code, 2);
  EXPECT_TRUE(nobody.IsOneErrorLine()) << nobody.err;
  EXPECT_THAT(nobody.err, HasSubstr("--identity"));
  const FedgeRun damaged = over_tcp({"run", "list"}, Write("damaged.pem", "nothing"));
  EXPECT_NE(damaged.code, 0);
  EXPECT_TRUE(damaged.IsOneErrorLine()) << damaged.err;
  // Of another federation.
  testing::TemporaryDir elsewhere;
  config_.set_state_dir(elsewhere.path());
  auto other = FederationServer::Start(config_, {});
  ASSERT_TRUE(other.ok()) << other.status();
  const FedgeRun foreign = Run({"run", "list", "--identity", alice, "--server",
                                absl::StrCat("127.0.0.1:", (*other)->admin_tcp_port())});
  EXPECT_NE(foreign.code, 0);
  EXPECT_TRUE(foreign.IsOneErrorLine()) << foreign.err;
}

TEST_F(AdminCommandsTest, AnOperatorIsRevokedWithOpenCalls) {
  config_.set_admin_tcp_listen("127.0.0.1:0");
  config_.set_insecure(false);
  Start();
  const std::string alice = absl::StrCat(dir_, "/alice.pem"), bob = absl::StrCat(dir_, "/bob.pem");
  ASSERT_EQ(Admin({"operator", "certify", "alice", "--out", alice}).code, 0);
  ASSERT_EQ(Admin({"operator", "certify", "bob", "--read-only", "--out", bob}).code, 0);
  const std::string address = absl::StrCat("127.0.0.1:", server_->admin_tcp_port());
  auto watching = AdminLink::Connect({.address = address, .identity = alice});
  ASSERT_TRUE(watching.ok()) << watching.status();
  absl::Notification seen;
  absl::Status ended;
  std::thread watch([&] {
    v1::RunRef run;
    run.set_run_id("default");
    ended = (*watching)->RunWatch(run,
                                  [&](const v1::RunInfo&) {
                                    if (!seen.HasBeenNotified()) seen.Notify();
                                    return true;
                                  },
                                  {});
  });
  seen.WaitForNotification();
  const FedgeRun revoked = Admin({"operator", "revoke", "alice"});
  watch.join();  // ended by the server: nothing is told to a run that stands still
  EXPECT_EQ(revoked.code, 0) << revoked.err;
  EXPECT_EQ(ended.code(), absl::StatusCode::kUnauthenticated) << ended;
  const auto as = [&](const std::string& identity) {
    return Run({"run", "list", "--server", address, "--identity", identity});
  };
  EXPECT_NE(as(alice).code, 0);
  EXPECT_TRUE(as(alice).IsOneErrorLine()) << as(alice).err;
  EXPECT_EQ(as(bob).code, 0) << as(bob).err;
  const FedgeRun again = Admin({"operator", "certify", "alice", "--out", alice + "2"});
  EXPECT_EQ(again.code, 4);
  EXPECT_THAT(again.err, HasSubstr("operator 'alice' was revoked; choose another name"));
  const nlohmann::json listed = Json({"operator", "list"});
  ASSERT_EQ(listed["operators"].size(), 2u);
  EXPECT_EQ(listed["operators"][0]["name"], "alice");
  EXPECT_EQ(listed["operators"][0]["revoked"], true);
  EXPECT_EQ(listed["operators"][1]["revoked"], false);
  EXPECT_THAT(Admin({"operator", "list"}).out, HasSubstr("look and change"));
  Start();  // and it lasts
  EXPECT_EQ(Json({"operator", "list"})["operators"][0]["revoked"], true);
}

TEST_F(AdminCommandsTest, ClonesWithChanges) {
  ASSERT_EQ(Admin({"run", "create", RunFile("second")}).code, 0);
  const std::string changes = Write("changes.yaml", "run: {rounds: 9, lora: {init: zero-b}}\n");
  const nlohmann::json clone = Json(
      {"run", "clone", "second", "--id", "third", "--config", changes, "--from-version", "latest"});
  EXPECT_EQ(clone["run"]["parent_run"], "second");
  EXPECT_EQ(clone["run"]["parent_version"], 0);
  EXPECT_EQ(clone["run"]["rounds"], 9);
  const nlohmann::json shown = Json({"run", "show", "third"});
  EXPECT_EQ(shown["file"]["run"]["id"], "third");
  EXPECT_EQ(shown["file"]["run"]["lora"]["rank"], 2);
  EXPECT_EQ(shown["file"]["run"]["nodes_per_round"], 1);
  EXPECT_EQ(shown["versions"].size(), 1u);
  EXPECT_THAT(Admin({"run", "show", "third"}).out,
              HasSubstr("cloned from run 'second', version 0"));
  // The run of the server's own configuration can be cloned, too.
  EXPECT_EQ(Admin({"run", "clone", "default", "--id", "fourth"}).code, 0);
  const FedgeRun bad =
      Admin({"run", "clone", "second", "--id", "x", "--config",
             Write("bad.yaml", "run:\n  lora:\n    rank: 3\n"), "--from-version", "0"});
  EXPECT_EQ(bad.code, 4);
  EXPECT_THAT(bad.err, HasSubstr("bad.yaml:2:3: run.lora: version 0 of run 'second'"));
}

TEST_F(AdminCommandsTest, BadRunFilesNameTheLineAndStoreNothing) {
  const auto error = [&](const std::string& yaml) {
    const FedgeRun run = Admin({"run", "create", Write("run.yaml", yaml)});
    EXPECT_EQ(run.code, 2) << run.err;
    EXPECT_TRUE(run.IsOneErrorLine()) << run.err;
    return run.err;
  };
  EXPECT_THAT(error("run:\n  id: a\n  ronds: 3\n"), HasSubstr("run.yaml:3:3: run: unknown field"));
  EXPECT_THAT(error("run:\n  id: a\n  rounds: many\n"), HasSubstr("run.yaml:3:11: run.rounds: "));
  EXPECT_THAT(error("run:\n  id: a\n\n  rounds: 0\n"),
              HasSubstr("run.yaml:4:3: run.rounds: 0 is below 1"));
  EXPECT_THAT(error("run:\n  id: a\n  codec:\n    support: dense\n    link: wifi\n"),
              HasSubstr("run.yaml:3:3: run.codec: a budget needs"));
  EXPECT_THAT(error("run:\n  id: a\n  training:\n    length: 4096\n"),
              HasSubstr("run.yaml:4:5: run.training.length: 4096 is above the base model's"));
  EXPECT_THAT(error("base_model: ../x\nrun: {id: a}\n"), HasSubstr("run.yaml:1:1: base_model: "));
  EXPECT_THAT(error("run:\n  rounds: 3\n"), HasSubstr("run.yaml:1:1: run.id: is required"));
  EXPECT_EQ(Admin({"run", "create", absl::StrCat(dir_, "/none.yaml")}).code, 3);
  EXPECT_EQ(Json({"run", "list"})["runs"].size(), 1u);
}

TEST_F(AdminCommandsTest, DryRunsCreateNothing) {
  EXPECT_EQ(Admin({"run", "create", "--dry-run", RunFile("second")}).out,
            "run 'second' can be created\n");
  EXPECT_EQ(Json({"run", "list"})["runs"].size(), 1u);
  server_.reset();
  const FedgeRun alone = Admin({"run", "create", "--dry-run", RunFile("second")});
  EXPECT_EQ(alone.code, 0);
  EXPECT_THAT(alone.err, StartsWith("note: no server at "));
  EXPECT_EQ(
      Admin({"run", "create", "--dry-run", Write("bad.yaml", "run: {id: a, rounds: 0}\n")}).code,
      2);
}

TEST_F(AdminCommandsTest, ShowsNodesAndEvents) {
  CheckIn("n1", "default");
  CheckIn("n2", "default");
  const nlohmann::json nodes = Json({"nodes"});
  ASSERT_EQ(nodes["nodes"].size(), 2u);
  EXPECT_EQ(nodes["total"], 2);
  EXPECT_EQ(nodes["nodes"][0]["node_id"], "n1");
  EXPECT_EQ(nodes["nodes"][0]["device"]["tokens_per_second"], 12.5);
  EXPECT_THAT(Admin({"nodes", "--limit", "1"}).out,
              HasSubstr("1 of 2 nodes; the next with --after 'n1'"));
  EXPECT_EQ(Json({"nodes", "--after", "n1"})["nodes"].size(), 1u);
  EXPECT_EQ(Json({"nodes", "show", "n2"})["node"]["node_id"], "n2");
  EXPECT_EQ(Admin({"nodes", "show", "n3"}).code, 3);
  EXPECT_THAT(Admin({"logs"}).out, HasSubstr("round 1: started on version 0 with 2 nodes"));
  EXPECT_THAT(Admin({"logs", "--format", "json", "--last", "1"}).Json()["kind"], "round-started");
  EXPECT_EQ(Admin({"logs", "--run", "other"}).out, "");
}

TEST_F(AdminCommandsTest, TheSocketIsTheUsersOwnAndGoesWithTheServer) {
  const std::string path = absl::StrCat(state_.path(), "/admin.sock");
  struct stat info {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_TRUE(S_ISSOCK(info.st_mode));
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  server_.reset();
  EXPECT_FALSE(env_.Exists(path));
  const FedgeRun away = Admin({"run", "list"});
  EXPECT_EQ(away.code, 6);
  EXPECT_TRUE(away.IsOneErrorLine()) << away.err;
  EXPECT_THAT(away.err, HasSubstr("start fedge-server"));
  // What a server that was killed left behind does not hinder the next one.
  ASSERT_TRUE(env_.WriteFileAtomic(path, "").ok());
  config_.set_admin_listen("off");
  Start();
  EXPECT_EQ(server_->admin_address(), "");
  EXPECT_EQ(Admin({"run", "list"}).code, 6);
}

TEST_F(AdminCommandsTest, HelpHasExamples) {
  for (const std::vector<std::string>& command : {std::vector<std::string>{"run", "create"},
                                                  {"run", "clone"},
                                                  {"run", "watch"},
                                                  {"run", "pause"},
                                                  {"run", "stop"},
                                                  {"run", "list"},
                                                  {"nodes"},
                                                  {"nodes", "show"},
                                                  {"logs"},
                                                  {"models", "list"},
                                                  {"models", "show"},
                                                  {"models", "diff"},
                                                  {"models", "promote"},
                                                  {"models", "rollback"},
                                                  {"models", "export"},
                                                  {"models", "audit"}}) {
    std::vector<std::string> arguments = command;
    arguments.push_back("--help");
    const FedgeRun help = Run(arguments);
    EXPECT_EQ(help.code, 0);
    EXPECT_THAT(help.out, HasSubstr("Example:\n  fedge ")) << command.back();
    EXPECT_THAT(help.out, HasSubstr("--format")) << command.back();
  }
}

}  // namespace
}  // namespace fedge
