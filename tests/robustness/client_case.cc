#include "tests/robustness/client_case.h"

#include <google/protobuf/util/json_util.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <set>
#include <sstream>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/kept_message.h"
#include "common/base/digest.h"
#include "common/base/env.h"
#include "common/base/status.h"
#include "fedge/v1/client.pb.h"
#include "fedge/v1/config.pb.h"
#include "server/sqlite_db.h"
#include "tests/robustness/child_process.h"
#include "tests/server/temporary_dir.h"

namespace fedge::robustness {
namespace {

constexpr absl::Duration kLimit = absl::Seconds(90);
constexpr absl::Duration kLook = absl::Milliseconds(5);
constexpr int kMaxStarts = 5;  // more: a crash loop
// In every record of the device's data, and nowhere else.
constexpr char kMarker[] = "xyzzy-secret";

std::string FileText(const std::string& path) {
  return Env::Posix()->ReadFile(path).value_or(std::string());
}

int CountOf(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++count;
  return count;
}

void WriteJson(const google::protobuf::Message& message, const std::string& path) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  FEDGE_CHECK(google::protobuf::util::MessageToJsonString(message, &json, options).ok());
  FEDGE_CHECK(Env::Posix()->WriteFileAtomic(path, json).ok());
}

class Run {
 public:
  Run(const ClientPrograms& programs, const std::string& fault)
      : programs_(programs), fault_(fault) {
    FEDGE_CHECK(Env::Posix()->CreateDirs(dir_.File("data")).ok());
    std::string lines;
    for (int i = 0; i < 24; ++i) {
      absl::StrAppend(&lines, "{\"text\": \"", kMarker, " number ", i, " is ", i * 7919, "\"}\n");
    }
    FEDGE_CHECK(Env::Posix()->WriteFileAtomic(dir_.File("data/notes.jsonl"), lines).ok());
    v1::ServerConfig server;
    server.set_base_model(programs.model);
    server.set_state_dir(dir_.File("server"));
    server.set_listen("127.0.0.1:0");
    server.set_retry_seconds(0.01);
    server.set_insecure(true);
    v1::RunConfig& run = *server.mutable_run();
    run.mutable_lora()->set_rank(2);
    run.mutable_training()->set_length(32);
    run.set_rounds(kClientRounds);
    run.set_nodes_per_round(1);
    run.set_min_nodes(1);
    run.mutable_training()->set_steps(3);
    run.mutable_training()->set_batch_size(2);
    WriteJson(server, dir_.File("server.json"));
  }

  std::string Play() {
    const absl::Time end = absl::Now() + kLimit;
    server_.Start({programs_.server, "--config", dir_.File("server.json")}, {"FEDGE_FAILPOINTS="},
                  dir_.File("server.log"));
    while (Port() == 0) {
      if (absl::Now() > end || !server_.IsRunning()) return "the server does not come up";
      absl::SleepFor(kLook);
    }
    WriteClientConfig();
    StartClient();
    while (client_.IsRunning() || client_.exit_code() != 0 || client_.killed()) {
      if (absl::Now() > end) return "stuck: the device does not come to the run's end";
      if (!server_.IsRunning()) return "the server died";
      if (!client_.IsRunning()) {
        NoteFinished();
        if (starts_ >= kMaxStarts) return "a crash loop";
        StartClient();
      }
      absl::SleepFor(kLook);
    }
    server_.Terminate();
    server_.Wait();
    return "";
  }

  // What must hold after the run.
  std::string Check() {
    const std::string log = FileText(dir_.File("client.log"));
    if (CountOf(log, "the run is finished") == 0) return "the device did not hear of the end";
    if (FileText(dir_.File("state/adapters/current/adapter.gguf")).empty()) {
      return "there is no adapter.gguf at the stable path";
    }
    const absl::Status counted = CheckCounted();
    if (!counted.ok()) return std::string(counted.message());
    const std::string leftover = Leftover();
    if (!leftover.empty()) return leftover;
    return LeakedData();
  }

  bool Injected() const {
    return absl::StrContains(FileText(dir_.File("client.log")),
                             absl::StrCat("failpoint ", Place(), ": reached"));
  }
  std::string Place() const { return fault_.substr(0, fault_.find('=')); }
  int starts() const { return starts_; }
  bool checked() const { return checked_; }
  int lost() const { return lost_; }
  int doubled() const { return doubled_; }
  int Tasks() const { return CountOf(FileText(dir_.File("client.log")), ": a task of "); }
  std::string Adapter() const {
    return Sha256Of(FileText(dir_.File("state/adapters/current/adapter.gguf"))).Hex();
  }
  std::map<std::string, uint64_t> Hits() const {
    std::map<std::string, uint64_t> hits;
    std::istringstream lines(FileText(dir_.File("hits")));
    std::string name;
    for (uint64_t count = 0; lines >> name >> count;) hits[name] = count;
    return hits;
  }
  std::string Tail() const {
    const std::string log = FileText(dir_.File("client.log"));
    return log.substr(log.size() - std::min<size_t>(log.size(), 3000));
  }

 private:
  int Port() const {
    const std::string log = FileText(dir_.File("server.log"));
    const std::string prefix = "listening on 127.0.0.1:";
    const size_t at = log.find(prefix);
    if (at == std::string::npos || log.find('\n', at) == std::string::npos) return 0;
    return std::atoi(log.c_str() + at + prefix.size());
  }

  void WriteClientConfig() {
    v1::ClientConfig config;
    config.set_server(absl::StrCat("127.0.0.1:", Port()));
    config.set_insecure(true);
    config.set_data(dir_.File("data"));
    config.set_node_id("device");
    config.set_state_dir(dir_.File("state"));
    config.set_threads(1);
    config.set_checkpoint_seconds(0);
    config.set_on_new_adapter("echo hook $FEDGE_ADAPTER_VERSION");
    v1::PolicyConfig& policy = *config.mutable_policy();
    policy.set_max_load(1);
    policy.set_max_temperature_celsius(150);
    policy.set_min_battery_percent(0);
    policy.set_min_free_disk("0");
    policy.set_min_free_memory("0");
    policy.set_allow_metered(true);
    WriteJson(config, dir_.File("client.json"));
  }

  void StartClient() {
    std::vector<std::string> environment = {"FEDGE_FAILPOINTS="};
    if (fault_.empty()) {
      environment = {"FEDGE_FAILPOINTS=*=count", "FEDGE_FAILPOINT_HITS=" + dir_.File("hits")};
    } else if (starts_ == 0) {
      environment = {"FEDGE_FAILPOINTS=" + fault_};
    }
    ++starts_;
    client_.Start({programs_.client, "run", "--config", dir_.File("client.json")}, environment,
                  dir_.File("client.log"));
  }

  // The update that waits for its receipt when a process has ended.
  void NoteFinished() {
    v1::OutboxEntry entry;
    const std::string kept = FileText(dir_.File("state/nodes/device.outbox"));
    if (!kept.empty() && UnsealMessage(kept, "outbox", entry).ok()) {
      finished_.insert(Sha256Of(entry.update()).Hex());
    }
  }

  // Each version is made of another update, and what was finished is among them. There may be more
  // updates than versions: one that was late counts with the next.
  absl::Status CheckCounted() {
    ASSIGN_OR_RETURN(const std::unique_ptr<SqliteDb> db,
                     SqliteDb::Open(dir_.File("server/fedge.db")));
    ASSIGN_OR_RETURN(SqliteStatement query, db->Prepare("SELECT digest FROM contributions"));
    std::set<std::string> counted;
    int updates = 0;
    for (;; ++updates) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) break;
      ASSIGN_OR_RETURN(const Digest digest, query.DigestAt(0));
      if (!counted.insert(digest.Hex()).second) ++doubled_;
    }
    for (const std::string& update : finished_) lost_ += counted.count(update) == 0 ? 1 : 0;
    checked_ = true;
    if (lost_ > 0) return absl::InternalError("an update that was finished is in no version");
    if (doubled_ == 0 && updates >= kClientRounds) return absl::OkStatus();
    return absl::InternalError(absl::StrCat(updates, " updates count in ", kClientRounds,
                                            " versions, ", doubled_, " of them again"));
  }

  // Nothing that waits, and nothing half-written, is left after the end.
  std::string Leftover() const {
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(dir_.File("state").c_str())) {
      const std::string path = entry.path().string();
      for (const char* const part : {".tmp-", ".unfinished", ".outbox", ".training", ".part"}) {
        if (absl::StrContains(path, part)) return absl::StrCat("left behind: ", path);
      }
    }
    return "";
  }

  // The device's text in whatever left its data folder: logs, state, what the server was sent.
  std::string LeakedData() const {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_.path().c_str())) {
      const std::string path = entry.path().string();
      if (!entry.is_regular_file() || absl::StrContains(path, "/data/")) continue;
      if (absl::StrContains(FileText(path), kMarker)) {
        return absl::StrCat("text of the data is in ", path);
      }
    }
    return "";
  }

  const ClientPrograms& programs_;
  const std::string fault_;
  testing::TemporaryDir dir_;
  ChildProcess server_, client_;
  int starts_ = 0;
  std::set<std::string> finished_;  // digests
  bool checked_ = false;
  int lost_ = 0;
  int doubled_ = 0;
};

}  // namespace

ClientResult RunClientCase(const ClientPrograms& programs, const std::string& fault,
                           const ClientResult* reference) {
  ClientResult result;
  Run run(programs, fault);
  result.problem = run.Play();
  if (result.problem.empty()) result.problem = run.Check();
  result.injected = run.Injected();
  result.starts = run.starts();
  result.tasks = run.Tasks();
  result.checked = run.checked();
  result.lost = run.lost();
  result.doubled = run.doubled();
  result.adapter = run.Adapter();
  result.hits = run.Hits();
  const bool killed = absl::StrContains(fault, "=crash");
  if (result.problem.empty() && killed && reference != nullptr) {
    // A task more at the most: the one that was under way, if it was not finished yet.
    if (result.adapter != reference->adapter) {
      result.problem = "the final adapter is another one than without the kill";
    } else if (result.tasks > reference->tasks + 1) {
      result.problem =
          absl::StrCat(result.tasks, " tasks were begun, without the kill ", reference->tasks);
    }
  }
  if (!result.problem.empty()) absl::StrAppend(&result.problem, "\n", run.Tail());
  return result;
}

}  // namespace fedge::robustness
