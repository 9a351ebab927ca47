// bin/client_kills: kills and fails the real fedge-client at every place, and checks that no
// finished work is lost, nothing counts twice and no text of the data gets out.
#include <cstdio>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/robustness/client_case.h"
#include "tests/server/temporary_dir.h"
#include "tests/testing/tiny_model.h"

namespace fedge::robustness {
namespace {

struct Tally {
  int injected = 0;
  int survived = 0;
};

const char* const kActions[] = {"crash", "crash-after", "error", "error(resource_exhausted)"};

// The first, a middle and the last time a place is reached.
std::vector<uint64_t> HitsToTry(uint64_t hits, bool sample) {
  if (sample || hits == 1) return {(hits + 1) / 2};
  if (hits == 2) return {1, 2};
  return {1, (hits + 1) / 2, hits};
}

class Sweep {
 public:
  // Of `parts` equal parts the one with index `part`.
  Sweep(ClientPrograms programs, bool sample, int part, int parts)
      : programs_(std::move(programs)), sample_(sample), part_(part), parts_(parts) {}

  int Run() {
    reference_ = RunClientCase(programs_, "", nullptr);
    if (!reference_.problem.empty()) {
      std::cerr << "without faults: " << reference_.problem << "\n";
      return 1;
    }
    int places = 0;
    for (const auto& [place, hits] : reference_.hits) {
      if (hits == 0) continue;
      ++places;
      for (const char* const action : kActions) {
        if (sample_ && !absl::StartsWith(action, "crash")) continue;
        for (const uint64_t hit : HitsToTry(hits, sample_)) {
          Try(place, action, absl::StrCat(place, "=", action, ":", hit));
        }
      }
    }
    Print();
    std::printf("%d places, injected %d survived %d lost %d doubled %d unknown %d\n", places,
                total_.injected, total_.survived, lost_, doubled_, unknown_);
    return places > 0 && total_.survived == total_.injected ? 0 : 1;
  }

 private:
  void Try(const std::string& place, const std::string& action, const std::string& fault) {
    if (cases_++ % parts_ != part_) return;
    const ClientResult result = RunClientCase(programs_, fault, &reference_);
    unknown_ += result.checked ? 0 : 1;
    lost_ += result.lost;
    doubled_ += result.doubled;
    Tally& tally = table_[place][action];
    for (Tally* const sum : {&tally, &total_}) {
      sum->injected += result.injected ? 1 : 0;
      sum->survived += result.injected && result.problem.empty() ? 1 : 0;
    }
    if (result.problem.empty()) return;
    std::cerr << "FAILED --case '" << fault << "': " << result.problem << "\n";
    if (!result.injected) ++total_.injected;  // it must count against the sum
  }

  void Print() const {
    std::printf("%-24s", "place");
    for (const char* const action : kActions) std::printf(" %26s", action);
    std::printf("\n");
    for (const auto& [place, actions] : table_) {
      std::printf("%-24s", place.c_str());
      for (const char* const action : kActions) {
        const auto found = actions.find(action);
        std::printf(" %26s", found == actions.end()
                                 ? "-"
                                 : absl::StrFormat("%d of %d", found->second.survived,
                                                   found->second.injected)
                                       .c_str());
      }
      std::printf("\n");
    }
  }

  const ClientPrograms programs_;
  const bool sample_;
  const int part_, parts_;
  int cases_ = 0;
  ClientResult reference_;
  std::map<std::string, std::map<std::string, Tally>> table_;
  Tally total_;
  int lost_ = 0;
  int doubled_ = 0;
  int unknown_ = 0;  // cases that ended before it could be told
};

int Main(int argc, char** argv) {
  CLI::App app{"Kills and fails the real fedge-client at every place"};
  std::string one;
  bool sample = false;
  app.add_flag("--sample", sample, "One kill before and one after each place only");
  int part = 1, parts = 1;
  app.add_option("--part", part, "Only every Nth case (--parts N), from this one on: 1 to N")
      ->check(CLI::PositiveNumber);
  app.add_option("--parts", parts, "Of how many")->check(CLI::PositiveNumber);
  app.add_option("--case", one, "One fault, as a failure prints it");
  std::string bin = absl::StrCat(FEDGE_BINARY_DIR, "/bin");
  app.add_option("--programs", bin, "Folder of fedge-client and fedge-server (the build's)");
  CLI11_PARSE(app, argc, argv);
  const testing::TemporaryDir dir;
  ClientPrograms programs{bin + "/fedge-client", bin + "/fedge-server",
                          testing::WriteTinyModel(dir.path(), {})};
  if (one.empty()) return Sweep(std::move(programs), sample, part - 1, parts).Run();
  const ClientResult reference = RunClientCase(programs, "", nullptr);
  const ClientResult result = RunClientCase(programs, one, &reference);
  std::printf("injected: %d, starts: %d, tasks: %d (without it %d)\n%s\n", result.injected,
              result.starts, result.tasks, reference.tasks, result.problem.c_str());
  return result.problem.empty() ? 0 : 1;
}

}  // namespace
}  // namespace fedge::robustness

int main(int argc, char** argv) { return fedge::robustness::Main(argc, argv); }
