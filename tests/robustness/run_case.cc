#include "tests/robustness/run_case.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/env.h"
#include "common/base/status.h"
#include "server/sqlite_db.h"
#include "tests/robustness/child_process.h"
#include "tests/robustness/joining_devices.h"
#include "tests/robustness/operated_runs.h"
#include "tests/robustness/run_checks.h"
#include "tests/robustness/toy_fleet.h"
#include "tests/server/temporary_dir.h"

namespace fedge::robustness {
namespace {

constexpr absl::Duration kLimit = absl::Seconds(60);  // a run takes one; I10
constexpr absl::Duration kLook = absl::Milliseconds(3);
constexpr int kMaxStarts = 6;
// In the middle of a round: where a run that looks at recovery stops its first server.
constexpr char kStopInARound[] = "store.updates.commit=crash-after:4";

std::string FileText(const std::string& path) {
  return Env::Posix()->ReadFile(path).value_or(std::string());
}

std::map<std::string, uint64_t> ReadHits(const std::string& path) {
  std::map<std::string, uint64_t> hits;
  std::istringstream lines(FileText(path));
  std::string name;
  for (uint64_t count = 0; lines >> name >> count;) hits[name] = count;
  return hits;
}

// "1234 rename(...": the most calls of any one thread.
std::map<std::string, uint64_t> ReadTrace(const std::string& path) {
  std::map<std::pair<std::string, std::string>, uint64_t> calls;
  for (const absl::string_view line : absl::StrSplit(FileText(path), '\n')) {
    // Process ids are padded with spaces.
    const std::vector<absl::string_view> words =
        absl::StrSplit(line.substr(0, line.find('(')), ' ', absl::SkipEmpty());
    if (words.size() == 2) ++calls[{std::string(words[1]), std::string(words[0])}];
  }
  std::map<std::string, uint64_t> most;
  for (const auto& [key, count] : calls) most[key.first] = std::max(most[key.first], count);
  return most;
}

// One that was accepted and counts in the open round.
void DamageAnUpdate(const std::string& state_dir) {
  const auto damage = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::unique_ptr<SqliteDb> db,
                     SqliteDb::Open(JoinPath(state_dir, "fedge.db")));
    ASSIGN_OR_RETURN(SqliteStatement query,
                     db->Prepare("SELECT digest FROM updates WHERE stored=1 AND counted=(SELECT "
                                 "max(round) FROM rounds) LIMIT 1"));
    ASSIGN_OR_RETURN(const bool any, query.Step());
    if (!any) return absl::NotFoundError("no update was accepted");
    ASSIGN_OR_RETURN(const Digest digest, query.DigestAt(0));
    const std::string path = JoinPath(state_dir, absl::StrCat("blobs/", digest.Hex()));
    return Env::Posix()->WriteFileAtomic(path, "damaged");
  };
  const absl::Status status = damage();
  FEDGE_CHECK(status.ok(), status.message());
}

class Run {
 public:
  Run(const Programs& programs, const Case& fault, Counting counting)
      : programs_(programs), fault_(fault), counting_(counting) {
    config_ = ToyConfig(programs.model, Path("state"));
    // Candidates are measured; what is noise may well be worse.
    config_.set_holdout(Path("holdout.txt"));
    config_.mutable_run()->mutable_gate()->set_max_regression(100);
    FEDGE_CHECK(Env::Posix()->WriteFileAtomic(config_.holdout(), "a few words to measure").ok());
    if (is_operated()) AllowOperatedRuns(std::string(dir_.path()), config_);
    if (is_joining()) {
      config_.clear_insecure();
      config_.set_enroll_listen("127.0.0.1:0");
    }
    google::protobuf::util::JsonPrintOptions options;
    options.preserve_proto_field_names = true;
    std::string json;
    FEDGE_CHECK(google::protobuf::util::MessageToJsonString(config_, &json, options).ok());
    FEDGE_CHECK(Env::Posix()->WriteFileAtomic(Path("config.json"), json).ok());
  }

  // Plays the run to its end; what went wrong, or "".
  std::string Play() {
    const absl::Time end = absl::Now() + kLimit;
    StartServer();
    while (port_ == 0) {
      if (absl::Now() > end || starts_ > kMaxStarts) return "the server does not come up";
      if (!server_.IsRunning()) StartServer();
      port_ = PortInLog();
      absl::SleepFor(kLook);
    }
    StartFleet();
    while (fleet_.IsRunning() || fleet_.exit_code() != 0) {
      if (absl::Now() > end) return "stuck: the run does not end (I10)";
      if (!server_.IsRunning()) {
        if (starts_ > kMaxStarts) return "the server keeps dying";
        StartServer();
      }
      if (!fleet_.IsRunning() && fleet_.exit_code() != 0) {
        if (!fleet_.crashed()) return "the devices found something wrong: see fleet.log";
        StartFleet();
      }
      absl::SleepFor(kLook);
    }
    server_.Terminate();
    while (server_.IsRunning()) {
      if (absl::Now() > end) return "the server does not stop";
      absl::SleepFor(kLook);
    }
    server_was_killed_ |= server_.killed();
    return "";
  }

  bool Injected() const {
    if (fault_.target == "syscall") return server_was_killed_;
    const std::string log = fault_.target == "fleet" ? "fleet.log" : "server.log";
    const std::string name = fault_.fault.substr(0, fault_.fault.find('='));
    return absl::StrContains(FileText(Path(log)), absl::StrCat("failpoint ", name, ": "));
  }

  void Count(CaseResult& result) const {
    result.server_hits = ReadHits(Path("server.hits"));
    result.fleet_hits = ReadHits(Path("fleet.hits"));
    if (counting_ != Counting::kSyscalls) return;
    // The tracer writes what it holds when the server is gone.
    for (size_t size = 0; size == 0 || size != FileText(Path("trace")).size();) {
      size = FileText(Path("trace")).size();
      absl::SleepFor(absl::Milliseconds(100));
    }
    result.syscalls = ReadTrace(Path("trace"));
  }

  std::string Path(absl::string_view name) const { return dir_.File(name); }
  bool Plays(absl::string_view target, Counting counting) const {
    return fault_.target == target || counting_ == counting;
  }
  bool is_damaged() const { return Plays("damaged", Counting::kDamaged); }
  bool is_operated() const { return Plays("operated", Counting::kOperated); }
  bool is_joining() const { return Plays("joining", Counting::kJoining); }
  std::string Tail() const {
    const std::string log = FileText(Path("server.log")) + FileText(Path("fleet.log"));
    return log.substr(log.size() - std::min<size_t>(log.size(), 3000));
  }

 private:
  void StartServer() {
    server_was_killed_ |= server_.killed();
    ++starts_;
    std::vector<std::string> command = {programs_.server, "--config", Path("config.json")};
    if (port_ != 0) {
      command.push_back("--listen");
      command.push_back(absl::StrCat("127.0.0.1:", port_));
    }
    std::vector<std::string> environment = {"FEDGE_FAILPOINTS="};
    const bool recovers = Plays("recovery", Counting::kRecovery) || is_damaged();
    if (starts_ == 2 && is_damaged()) DamageAnUpdate(Path("state"));
    if (starts_ == 1) {
      if (recovers) environment = {absl::StrCat("FEDGE_FAILPOINTS=", kStopInARound)};
      if (fault_.target == "server" || is_operated() || is_joining()) {
        environment = {"FEDGE_FAILPOINTS=" + fault_.fault};
      }
      if (fault_.target == "syscall" || counting_ == Counting::kSyscalls) Trace(command);
    } else if (starts_ == 2 && (fault_.target == "recovery" || fault_.target == "damaged")) {
      environment = {"FEDGE_FAILPOINTS=" + fault_.fault};
    }
    if (counting_ == Counting::kFailpoints || counting_ == Counting::kOperated ||
        counting_ == Counting::kJoining || (recovers && starts_ == 2 && fault_.target.empty())) {
      environment = {"FEDGE_FAILPOINTS=*=count", "FEDGE_FAILPOINT_HITS=" + Path("server.hits")};
    }
    server_.Start(command, environment, Path("server.log"));
  }

  // As a grandchild, the tracer leaves the server our child.
  void Trace(std::vector<std::string>& command) const {
    std::vector<std::string> traced = {"strace", "-D", "-f", "-qq", "-o", Path("trace")};
    if (fault_.target == "syscall") {
      const std::vector<std::string> parts = absl::StrSplit(fault_.fault, ':');
      traced.insert(traced.end(),
                    {"-e", "trace=" + parts[0], "-e",
                     absl::StrCat("inject=", parts[0], ":signal=KILL:when=", parts[1])});
    } else {
      traced.insert(traced.end(), {"-e", "trace=" + absl::StrJoin(TracedCalls(), ",")});
    }
    command.insert(command.begin(), traced.begin(), traced.end());
  }

  void StartFleet() {
    std::vector<std::string> environment = {"FEDGE_FAILPOINTS="};
    if (++fleets_ == 1 && fault_.target == "fleet") {
      environment = {"FEDGE_FAILPOINTS=" + fault_.fault};
    }
    if (counting_ == Counting::kFailpoints) {
      environment = {"FEDGE_FAILPOINTS=*=count", "FEDGE_FAILPOINT_HITS=" + Path("fleet.hits")};
    }
    std::vector<std::string> command = {programs_.self, "--fleet",           Path("config.json"),
                                        "--port",       absl::StrCat(port_), "--journal",
                                        Path("journal")};
    if (is_operated()) command.push_back("--operated");
    if (is_joining()) {
      command.push_back("--joining");
      command.push_back(Path("server.log"));
    }
    fleet_.Start(command, environment, Path("fleet.log"));
  }

  int PortInLog() const {
    const std::string log = FileText(Path("server.log"));
    const size_t at = log.find("listening on 127.0.0.1:");
    if (at == std::string::npos || log.find('\n', at) == std::string::npos) return 0;
    return std::atoi(log.c_str() + at + sizeof("listening on 127.0.0.1:") - 1);
  }

  const Programs& programs_;
  const Case& fault_;
  const Counting counting_;
  testing::TemporaryDir dir_;
  v1::ServerConfig config_;
  ChildProcess server_, fleet_;
  int starts_ = 0;
  int fleets_ = 0;
  int port_ = 0;
  bool server_was_killed_ = false;
};

}  // namespace

const std::vector<std::string>& TracedCalls() {
  static const std::vector<std::string>* const calls = new std::vector<std::string>{
      "openat", "write", "pwrite64", "ftruncate", "fdatasync", "fsync", "rename", "unlink"};
  return *calls;
}

absl::StatusOr<Case> ParseCase(absl::string_view text) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(text, absl::MaxSplits(':', 1));
  const bool known = parts.first == "server" || parts.first == "recovery" ||
                     parts.first == "damaged" || parts.first == "operated" ||
                     parts.first == "joining" || parts.first == "fleet" || parts.first == "syscall";
  if (known && !parts.second.empty()) return Case{parts.first, parts.second};
  return absl::InvalidArgumentError(
      absl::StrCat("case '", text,
                   "': is not server:, recovery:, damaged:, operated:, joining:, fleet: or "
                   "syscall: and a fault"));
}

CaseResult RunCase(const Programs& programs, const Case& fault, const CaseResult* reference,
                   Counting counting) {
  CaseResult result;
  Run run(programs, fault, counting);
  result.problem = run.Play();
  result.injected = run.Injected();
  run.Count(result);
  if (result.problem.empty() && run.is_joining()) {
    CheckJoinedDevices(run.Path("state"), run.Path("journal"), result);
  } else if (result.problem.empty()) {
    CheckRun(run.Path("state"), run.Path("journal"), reference, result);
    if (run.is_operated()) CheckOperatedRuns(run.Path("state"), run.Path("journal"), result);
  }
  if (!result.problem.empty()) absl::StrAppend(&result.problem, "\n", run.Tail());
  if (!result.problem.empty() && programs.keep) {
    // Beside the run's own folder: a rename does not leave its disk.
    const std::string kept =
        absl::StrCat(DirName(DirName(run.Path("state"))), "/fedge-robustness-kept-", getpid());
    const absl::Status moved = Env::Posix()->Rename(run.Path("state"), kept);
    absl::StrAppend(&result.problem, "\nstate: ", moved.ok() ? kept : moved.message());
  }
  return result;
}

}  // namespace fedge::robustness
