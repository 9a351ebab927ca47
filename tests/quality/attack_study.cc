// What attackers do to a run under each robust rule: held-out loss on the bundled model, with every
// attack of `fedge simulate --attack`, beside the run without attackers. Appends a row for each run
// to a CSV; rows that are there already are not run again; then prints the table of all.
//
//   attack_study --out docs/robustness.csv
//   attack_study --rules median,multi-krum --attacks alie --shares 0.4
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "common/config/config_file.h"
#include "fedge/v1/config.pb.h"
#include "tools/recipes/recipe.h"
#include "tools/simulate/simulation.h"

namespace fedge {
namespace {

struct Options {
  std::string out = "docs/robustness.csv";
  std::string scratch = "build/attacks";
  std::string model = "models/fedge-tiny/fedge-tiny-q8_0.gguf";
  std::vector<std::string> rules = {"mean-unbounded", "mean",       "median",
                                    "trimmed-mean",   "multi-krum", "geometric-median"};
  std::vector<std::string> attacks = {"nan",  "sign-flip",     "scale",     "noise",
                                      "alie", "inner-product", "label-flip"};
  std::vector<double> shares = {0.2, 0.4};
  double strength = 0;
  int workers = 1;
};

// Dense updates, which median and trimmed-mean need. Every node takes part in each round, so that
// the share of attackers is exact. Rules expect the worst: 40 %.
constexpr const char* kRun =
    "{id: attacks, seed: 1, rounds: 6, nodes_per_round: 15, lora: {rank: 4},"
    " training: {steps: 3, batch_size: 2, length: 64, learning_rate: 0.02},"
    " codec: {support: dense}, downlink: {encoding: fp16},"
    " aggregation: {max_examples_per_node: 100, robust_attackers: 0.4}}";

struct Row {
  std::string rule;
  std::string attack;
  double share = 0;
  double before = 0;
  double loss = 0;  // not a number: no version could be published
  int64_t rejected = 0;
};

std::string Line(const Row& row) {
  return absl::StrFormat("%s,%s,%g,%.4f,%.4f,%d", row.rule, row.attack, row.share, row.before,
                         row.loss, row.rejected);
}

class Study {
 public:
  explicit Study(Options options) : options_(std::move(options)) {}

  absl::Status Run() {
    RETURN_IF_ERROR(ReadRows());
    for (const std::string& rule : options_.rules) RETURN_IF_ERROR(Measure(rule, "none", 0));
    for (const double share : options_.shares) {
      for (const std::string& attack : options_.attacks) {
        for (const std::string& rule : options_.rules) {
          RETURN_IF_ERROR(Measure(rule, attack, share));
        }
      }
    }
    PrintTable();
    return absl::OkStatus();
  }

 private:
  const Row* Find(const std::string& rule, const std::string& attack, double share) const {
    for (const Row& row : rows_) {
      if (row.rule == rule && row.attack == attack && row.share == share) return &row;
    }
    return nullptr;
  }

  absl::Status ReadRows() {
    if (!Env::Posix()->Exists(options_.out)) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::string csv, Env::Posix()->ReadFile(options_.out, 1 << 20));
    for (const absl::string_view line : absl::StrSplit(csv, '\n', absl::SkipEmpty())) {
      const std::vector<std::string> fields = absl::StrSplit(line, ',');
      Row row;
      if (fields.size() != 6 || !absl::SimpleAtod(fields[2], &row.share)) continue;  // the header
      row.rule = fields[0];
      row.attack = fields[1];
      if (!absl::SimpleAtod(fields[3], &row.before) || !absl::SimpleAtod(fields[4], &row.loss) ||
          !absl::SimpleAtoi(fields[5], &row.rejected)) {
        return absl::InvalidArgumentError(absl::StrCat(options_.out, ": not a row: ", line));
      }
      rows_.push_back(row);
    }
    return absl::OkStatus();
  }

  absl::Status Measure(const std::string& rule, const std::string& attack, double share) {
    if (Find(rule, attack, share) != nullptr) return absl::OkStatus();
    SimulationOptions simulation;
    simulation.model = options_.model;
    ASSIGN_OR_RETURN(simulation.data.path,
                     MaterializeRecipe("debian-packages", DefaultCacheDir(), *Env::Posix(),
                                       [](absl::string_view) {}));
    simulation.data.nodes = 15;
    simulation.data.sample = true;
    simulation.data.min_records = 10;
    RETURN_IF_ERROR(ParseConfig(kRun, "run", simulation.run));
    if (rule == "mean-unbounded") {
      simulation.run.mutable_admission()->set_norm_bound("off");
    } else if (rule != "mean") {
      simulation.run.mutable_aggregation()->set_robust(rule);
    }
    ASSIGN_OR_RETURN(simulation.attack.kind, ParseAttackKind(attack));
    simulation.attack.attackers = share;
    simulation.attack.strength = options_.strength;
    simulation.workers = options_.workers;
    simulation.centralized = false;
    simulation.label_questions = 0;
    simulation.eval_tokens = 2000;
    simulation.eval_tokens_per_node = 1;
    simulation.out_dir = options_.scratch;
    SimulationEnvironment environment;
    environment.env = Env::Posix();
    environment.wall = Clock::Real();
    const absl::StatusOr<RunReport> report = RunSimulation(simulation, environment);
    Row row{rule, attack, share, 0, std::nan(""), 0};
    if (report.ok()) {
      row.before = report->before.validation_loss;
      row.loss = report->after.validation_loss;
      for (const RoundRecord& round : report->rounds) row.rejected += round.rejected;
    } else if (!absl::IsAborted(report.status())) {
      return report.status();
    }
    rows_.push_back(row);
    std::printf("%s\n", Line(row).c_str());
    std::fflush(stdout);
    std::string csv = "rule,attack,attackers,loss before,loss after,rejected updates\n";
    for (const Row& each : rows_) absl::StrAppend(&csv, Line(each), "\n");
    return Env::Posix()->WriteFileAtomic(options_.out, csv);
  }

  void PrintTable() const {
    std::string text = "\n| attack | attackers |";
    std::string rule_line = "|---|---|";
    for (const std::string& rule : options_.rules) {
      absl::StrAppend(&text, " ", rule, " |");
      absl::StrAppend(&rule_line, "---|");
    }
    absl::StrAppend(&text, "\n", rule_line, "\n");
    const auto add = [&](const std::string& attack, double share) {
      absl::StrAppendFormat(&text, "| %s | %.0f %% |", attack, 100 * share);
      for (const std::string& rule : options_.rules) {
        const Row* const row = Find(rule, attack, share);
        const Row* const clean = Find("mean", "none", 0);
        if (row == nullptr) {
          absl::StrAppend(&text, " |");
        } else if (std::isnan(row->loss)) {
          absl::StrAppend(&text, " no version |");
        } else if (clean == nullptr) {
          absl::StrAppendFormat(&text, " %.3f |", row->loss);
        } else {
          absl::StrAppendFormat(&text, " %.3f (%+.1f %%) |", row->loss,
                                100 * (row->loss / clean->loss - 1));
        }
      }
      absl::StrAppend(&text, "\n");
    };
    add("none", 0);
    for (const std::string& attack : options_.attacks) {
      for (const double share : options_.shares) add(attack, share);
    }
    std::printf("%s", text.c_str());
  }

  const Options options_;
  std::vector<Row> rows_;
};

}  // namespace
}  // namespace fedge

int main(int argc, char** argv) {
  fedge::Options options;
  CLI::App app("Held-out loss under attack, for each robust rule");
  app.add_option("--out", options.out, "CSV, appended to")->capture_default_str();
  app.add_option("--scratch", options.scratch, "Folder of the runs")->capture_default_str();
  app.add_option("--model", options.model, "GGUF")->capture_default_str();
  app.add_option("--rules", options.rules, "mean-unbounded, mean or a robust rule")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--attacks", options.attacks, fedge::AttackNames())
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--shares", options.shares, "Of attackers")->delimiter(',')->capture_default_str();
  app.add_option("--strength", options.strength, "Of the attack; 0: each one's own")
      ->capture_default_str();
  app.add_option("--workers", options.workers, "Nodes trained at a time")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  fedge::SetLogLevel(fedge::LogLevel::kError);
  const absl::Status status = fedge::Study(options).Run();
  if (!status.ok()) {
    std::fprintf(stderr, "attack_study: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}
