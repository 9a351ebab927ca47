// robustness: the real server, killed and failed at every place that matters; README.md.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iomanip>
#include <iostream>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/env.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "common/config/config_file.h"
#include "tests/robustness/joining_devices.h"
#include "tests/robustness/operated_runs.h"
#include "tests/robustness/run_case.h"
#include "tests/robustness/sim_world.h"
#include "tests/robustness/toy_fleet.h"
#include "tests/server/temporary_dir.h"
#include "tests/testing/tiny_model.h"

namespace fedge::robustness {
namespace {

struct Flags {
  std::string fleet_config, journal, joining;
  bool operated = false;
  int port = 0;
  std::string server = absl::StrCat(FEDGE_BINARY_DIR, "/bin/fedge-server");
  std::string one_case;
  bool sample = false;
  bool failpoints = false;
  bool syscalls = false;
  bool keep = false;
  bool verbose = false;
  uint64_t seeds = 0;
  uint64_t first_seed = 1;
};

struct Tally {
  int64_t injected = 0;
  int64_t survived = 0;
};

// The six actions of the table's columns.
const std::vector<std::string>& Actions() {
  static const auto* const actions = new std::vector<std::string>{
      "crash", "crash-after", "error", "error-after", "error(resource_exhausted)", "delay(20)"};
  return *actions;
}

std::vector<uint64_t> Hits(uint64_t last) {
  const std::set<uint64_t> hits = {1, std::min<uint64_t>(2, last), last};
  return {hits.begin(), hits.end()};
}

uint64_t HitsOf(const CaseResult& result, const std::string& name) {
  const auto found = result.server_hits.find(name);
  return found == result.server_hits.end() ? 0 : found->second;
}

class Runner {
 public:
  Runner(const Flags& flags, const std::string& model)
      : flags_(flags), programs_{flags.server, "/proc/self/exe", model, flags.keep} {
    char self[4096] = {};
    FEDGE_CHECK(readlink("/proc/self/exe", self, sizeof(self) - 1) > 0);
    programs_.self = self;
  }

  int Run() {
    reference_ = RunCase(programs_, Case(), nullptr, Counting::kFailpoints);
    if (!reference_.problem.empty()) {
      std::cerr << "the run without faults fails: " << reference_.problem << "\n";
      return 1;
    }
    if (!flags_.one_case.empty()) {
      const absl::StatusOr<Case> fault = ParseCase(flags_.one_case);
      if (!fault.ok()) {
        std::cerr << fault.status().message() << "\n";
        return 2;
      }
      Try(*fault, "case", "one");
    } else {
      const bool all = !flags_.failpoints && !flags_.syscalls;
      if (all || flags_.failpoints) SweepFailpoints();
      if (all || flags_.syscalls) SweepSyscalls();
      PrintTable();
    }
    std::cout << "injected " << total_.injected << " survived " << total_.survived << " lost "
              << lost_ << " doubled " << doubled_ << "\n";
    return total_.injected > 0 && total_.injected == total_.survived && failures_ == 0 ? 0 : 1;
  }

 private:
  void Try(const Case& fault, const std::string& row, const std::string& column) {
    const absl::Time start = absl::Now();
    const CaseResult result = RunCase(programs_, fault, &reference_);
    if (flags_.verbose) {
      std::cout << fault.Text() << ": " << (result.injected ? "injected" : "not reached") << ", "
                << absl::ToInt64Milliseconds(absl::Now() - start) << " ms\n"
                << std::flush;
    }
    lost_ += result.lost;
    doubled_ += result.doubled;
    const bool survived = result.problem.empty();
    if (!survived) {
      ++failures_;
      std::cout << "FAILED " << fault.Text() << ": " << result.problem
                << "\n  again: " << programs_.self << " --case '" << fault.Text() << "'\n"
                << std::flush;
    }
    if (!result.injected) return;
    Tally& tally = table_[row][column];
    ++tally.injected;
    ++total_.injected;
    tally.survived += survived;
    total_.survived += survived;
  }

  void SweepPlace(const std::string& target, const std::string& name, uint64_t hits) {
    const std::string row = absl::StrCat(target, " ", name);
    rows_[row] = hits;
    if (flags_.sample) {  // another action for each place
      const std::string& action = Actions()[places_++ % Actions().size()];
      Try({target, absl::StrCat(name, "=", action, ":", (hits + 1) / 2)}, row, action);
      return;
    }
    for (const std::string& action : Actions()) {
      for (const uint64_t hit : Hits(hits)) {
        Try({target, absl::StrCat(name, "=", action, ":", hit)}, row, action);
      }
    }
  }

  void CheckReference(const CaseResult& result) {
    if (result.problem.empty()) return;
    ++failures_;
    std::cout << "FAILED a run without faults: " << result.problem << "\n" << std::flush;
  }

  void SweepFailpoints() {
    const CaseResult recovery = RunCase(programs_, Case(), &reference_, Counting::kRecovery);
    const CaseResult damaged = RunCase(programs_, Case(), &reference_, Counting::kDamaged);
    CheckReference(damaged);
    const CaseResult operated = RunCase(programs_, Case(), &reference_, Counting::kOperated);
    CheckReference(recovery);
    CheckReference(operated);
    const CaseResult joining = RunCase(programs_, Case(), nullptr, Counting::kJoining);
    CheckReference(joining);
    for (const auto& [name, hits] : reference_.server_hits) {
      if (hits > 0) {
        SweepPlace("server", name, hits);
      } else if (HitsOf(recovery, name) > 0) {
        SweepPlace("recovery", name, HitsOf(recovery, name));
      } else if (HitsOf(damaged, name) > 0) {
        SweepPlace("damaged", name, HitsOf(damaged, name));
      } else if (HitsOf(operated, name) > 0) {
        SweepPlace("operated", name, HitsOf(operated, name));
      } else if (HitsOf(joining, name) > 0) {
        SweepPlace("joining", name, HitsOf(joining, name));
      } else {
        unreached_.push_back(absl::StrCat("server ", name));
      }
    }
    for (const auto& [name, hits] : reference_.fleet_hits) {
      // The fleet's program holds the server's places too.
      const bool of_device = name.rfind("toy.", 0) == 0 || name.rfind("client.", 0) == 0;
      if (of_device && hits > 0) SweepPlace("fleet", name, hits);
      if (of_device && hits == 0) unreached_.push_back(absl::StrCat("fleet ", name));
    }
  }

  void SweepSyscalls() {
    if (std::system("strace -D -qq -o /dev/null true 2>/dev/null") != 0) {
      std::cout << "syscall sweep skipped: strace is not installed or may not trace here\n";
      return;
    }
    const int64_t injected_before = total_.injected;
    const CaseResult counted = RunCase(programs_, Case(), &reference_, Counting::kSyscalls);
    for (const std::string& call : TracedCalls()) {
      const auto found = counted.syscalls.find(call);
      if (found == counted.syscalls.end()) continue;
      const std::string row = absl::StrCat("syscall ", call);
      rows_[row] = found->second;
      std::vector<uint64_t> hits = {(found->second + 1) / 2};
      if (!flags_.sample) {
        hits.clear();
        for (uint64_t hit = 1; hit <= found->second; ++hit) hits.push_back(hit);
      }
      for (const uint64_t hit : hits) {
        Try({"syscall", absl::StrCat(call, ":", hit)}, row, "crash");
      }
    }
    if (total_.injected > injected_before) return;
    ++failures_;  // a sweep of nothing proves nothing
    std::cout << "FAILED syscall sweep: strace runs here, but no call of the server was reached\n";
  }

  void PrintTable() const {
    std::cout << std::left << std::setw(36) << "survived / injected" << std::setw(7) << "hits";
    for (const std::string& action : Actions()) {
      std::cout << std::setw(13) << (action == "error(resource_exhausted)" ? "disk full" : action);
    }
    std::cout << "\n";
    for (const auto& [row, hits] : rows_) {
      std::cout << std::setw(36) << row << std::setw(7) << hits;
      const auto cells = table_.find(row);
      for (const std::string& action : Actions()) {
        std::string cell = "-";
        if (cells != table_.end() && cells->second.count(action) > 0) {
          const Tally& tally = cells->second.at(action);
          cell = absl::StrCat(tally.survived, " / ", tally.injected);
        }
        std::cout << std::setw(13) << cell;
      }
      std::cout << "\n";
    }
    for (const std::string& place : unreached_) std::cout << "not reached: " << place << "\n";
  }

  const Flags& flags_;
  Programs programs_;
  CaseResult reference_;
  std::map<std::string, uint64_t> rows_;  // with how often the place was reached
  std::map<std::string, std::map<std::string, Tally>> table_;
  std::vector<std::string> unreached_;
  Tally total_;
  int64_t lost_ = 0;
  int64_t doubled_ = 0;
  int64_t failures_ = 0;
  size_t places_ = 0;
};

int SimulateSeeds(const Flags& flags) {
  SimResult sum;
  int64_t failures = 0;
  const absl::Time start = absl::Now();
  for (uint64_t seed = flags.first_seed; seed < flags.first_seed + flags.seeds; ++seed) {
    const SimResult result = Simulate(seed);
    if (!result.problem.empty()) {
      ++failures;
      std::cout << "FAILED seed " << seed << ": " << result.problem
                << "\n  again: robustness --seeds 1 --seed " << seed << "\n"
                << std::flush;
      if (failures == 10) break;
    }
    sum.versions += result.versions;
    sum.abandoned += result.abandoned;
    sum.refused += result.refused;
    sum.rollbacks += result.rollbacks;
    sum.restarts += result.restarts;
    sum.writes += result.writes;
    sum.accepted += result.accepted;
    sum.damaged += result.damaged;
    sum.folded += result.folded;
    sum.virtual_seconds += result.virtual_seconds;
  }
  std::cout << "seeds " << flags.seeds << " failed " << failures << ": " << sum.restarts
            << " restarts, " << sum.writes << " writes, " << sum.accepted << " receipts, "
            << sum.versions << " versions, " << sum.abandoned << " rounds abandoned, "
            << sum.refused << " refused, " << sum.rollbacks << " rollbacks, " << sum.damaged
            << " updates damaged, " << sum.folded << " late updates folded in, " << std::fixed
            << std::setprecision(1) << sum.virtual_seconds / 3600 << " hours in "
            << absl::ToDoubleSeconds(absl::Now() - start) << " s\n";
  // Quiet runs would prove nothing.
  const bool stormy =
      flags.seeds < 100 || (sum.restarts > flags.seeds && sum.abandoned > 0 && sum.damaged > 0 &&
                            sum.folded > flags.seeds / 4 && sum.versions > flags.seeds);
  return failures == 0 && stormy ? 0 : 1;
}

int Fleet(const Flags& flags) {
  absl::Status status = ArmFailpointsFromEnvironment();
  v1::ServerConfig config;
  if (status.ok()) status = LoadConfigFile(flags.fleet_config, *Env::Posix(), config);
  if (status.ok() && !flags.joining.empty()) {
    status = PlayJoiningDevices(config, flags.joining, flags.journal);
    if (!status.ok()) std::cerr << "devices: " << status.message() << "\n";
    return status.ok() ? 0 : 1;
  }
  absl::Status operated;
  std::thread other;
  if (status.ok() && flags.operated) {
    other = std::thread([&] { operated = PlayOperatedRuns(config, flags.port, flags.journal); });
  }
  if (status.ok()) status = RunToyFleet(config, flags.port, flags.journal);
  if (other.joinable()) other.join();
  if (status.ok()) status = operated;
  if (status.ok()) status = SaveFailpointHits();
  if (!status.ok()) std::cerr << "fleet: " << status.message() << "\n";
  return status.ok() ? 0 : 1;
}

int Main(int argc, char** argv) {
  CLI::App app{"Kills and fails the real server at every place and checks that nothing is lost"};
  Flags flags;
  app.add_flag("--sample", flags.sample, "One fault a place instead of all");
  app.add_flag("--failpoints", flags.failpoints, "Only the failpoints");
  app.add_flag("--syscalls", flags.syscalls, "Only the system calls");
  app.add_option("--case", flags.one_case, "One fault, as a failure printed it");
  app.add_option("--seeds", flags.seeds, "Instead: so many simulated runs, in one thread");
  app.add_option("--seed", flags.first_seed, "The first of them");
  app.add_option("--server", flags.server, "The program to test");
  app.add_flag("--keep", flags.keep, "Keep the state folder of a run that failed, in /tmp");
  app.add_flag("--verbose", flags.verbose, "A line for each run");
  app.add_option("--fleet", flags.fleet_config, "(itself) be the devices of this configuration");
  app.add_option("--port", flags.port, "(itself) of the server");
  app.add_flag("--operated", flags.operated, "(itself) be an operator and other devices, too");
  app.add_option("--joining", flags.joining, "(itself) be devices that join; the server's log");
  app.add_option("--journal", flags.journal, "(itself) where the devices write");
  CLI11_PARSE(app, argc, argv);
  signal(SIGPIPE, SIG_IGN);
  if (!flags.fleet_config.empty()) return Fleet(flags);
  if (flags.seeds > 0) return SimulateSeeds(flags);
  const testing::TemporaryDir dir;
  return Runner(flags, testing::WriteTinyModel(dir.path(), {})).Run();
}

}  // namespace
}  // namespace fedge::robustness

int main(int argc, char** argv) { return fedge::robustness::Main(argc, argv); }
