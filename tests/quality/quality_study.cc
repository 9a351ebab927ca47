// The study of quality for bytes: runs ways of compressing beside the uncompressed reference on the
// bundled model and appends a row for each to a CSV; rows that are there already are not run again.
//
//   quality_study --out docs/quality.csv                      all methods, seeds and data sets
//   quality_study --methods dense-fp32,topk-1-2 --seeds 1     only these
//   quality_study --methods try --yaml 'codec: {density: 0.02}'
//                                                             a method of one's own
//   quality_study --data long=packages.jsonl --run '{rounds: 60, training: {steps: 4, batch_size:
//   2}}'
//                                                             another schedule, for the reference
//                                                             too, under a name of its own
//   quality_study --out docs/quality.csv --report docs/quality.md
//                                                             tables and plots of what is in the
//                                                             CSV
//
// Data sets: "packages" (descriptions of Debian packages; each node a maintainer, non-IID), "sotu"
// (State of the Union addresses in equal parts; close to IID), or NAME=PATH of a JSONL or text.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "common/base/thread_pool.h"
#include "common/config/config_file.h"
#include "fedge/v1/config.pb.h"
#include "tests/quality/methods.h"
#include "tests/quality/study.h"
#include "tests/quality/study_report.h"
#include "tools/recipes/recipe.h"
#include "tools/simulate/simulation.h"

namespace fedge {
namespace {

struct Options {
  std::string out = "docs/quality.csv";
  std::string report;
  std::string curves = "build/quality";  // the curves of the runs, a file each
  std::string model = "models/fedge-tiny/fedge-tiny-q8_0.gguf";
  std::vector<std::string> methods, datasets = {"packages", "sotu"};
  std::vector<std::string> drawn = {"dense-fp32",           "dense-1bit-up",
                                    "top10-1bit-down0.5",   "top3-1bit-down0.25",
                                    "trellis0.25-down0.25", "trellis0.125-down0.25"};
  std::vector<uint64_t> seeds = {1, 2, 3};
  std::string run, yaml;  // changes to every run; to the methods named
  int64_t nodes = 20, eval_tokens = 8000;
  int workers = 0;
};

// The run that all methods change: every node takes part in each round, so that a version's bytes
// are a round's.
constexpr const char* kReference =
    "{rounds: 24, nodes_per_round: 20, lora: {rank: 8},"
    " training: {steps: 6, batch_size: 4, length: 64, learning_rate: 0.01,"
    "            final_learning_rate_fraction: 0.1},"
    " aggregation: {max_examples_per_node: 100}}";

absl::StatusOr<v1::RunConfig> ConfigOf(const StudyMethod& method, const std::string& of_all,
                                       uint64_t seed) {
  v1::RunConfig run, changes, schedule;
  RETURN_IF_ERROR(ParseConfig(kReference, "reference", run));
  if (!of_all.empty()) RETURN_IF_ERROR(ParseConfig(of_all, "--run", schedule));
  RETURN_IF_ERROR(ParseConfig(method.yaml, method.name, changes));
  run.MergeFrom(schedule);
  run.MergeFrom(changes);
  run.set_id("study");
  run.set_seed(seed);
  return run;
}

// Of "NAME=PATH" the name.
std::string NameOf(const std::string& dataset) { return dataset.substr(0, dataset.find('=')); }

absl::StatusOr<std::string> PathOf(const std::string& dataset) {
  const std::vector<std::string> parts = absl::StrSplit(dataset, absl::MaxSplits('=', 1));
  if (parts.size() == 2) return parts[1];
  const std::string recipe = dataset == "packages" ? "debian-packages" : dataset;
  return MaterializeRecipe(recipe, DefaultCacheDir(), *Env::Posix(), [](absl::string_view) {});
}

class Study {
 public:
  explicit Study(Options options) : options_(std::move(options)) {}

  absl::Status Run() {
    RETURN_IF_ERROR(ReadRows());
    for (const std::string& dataset : options_.datasets) {
      for (const uint64_t seed : options_.seeds) RETURN_IF_ERROR(RunSeed(dataset, seed));
    }
    return absl::OkStatus();
  }
  const std::vector<StudyRow>& rows() const { return rows_; }

  // Those of the methods and seeds that have been run.
  absl::StatusOr<std::vector<ComparedCurve>> Curves(const std::string& dataset) const {
    std::vector<ComparedCurve> curves;
    for (const std::string& name : options_.methods) {
      for (const uint64_t seed : options_.seeds) {
        const std::string reference = CurvePath(kReferenceMethod, dataset, seed);
        const std::string path = CurvePath(name, dataset, seed);
        if (!Env::Posix()->Exists(path) || !Env::Posix()->Exists(reference)) continue;
        ComparedCurve& compared = curves.emplace_back();
        compared.method = name;
        compared.family = FindMethod(name).family;
        ASSIGN_OR_RETURN(compared.curve, ReadCurve(path));
        ASSIGN_OR_RETURN(compared.reference, ReadCurve(reference));
      }
    }
    return curves;
  }

 private:
  static absl::StatusOr<LossCurve> ReadCurve(const std::string& path) {
    ASSIGN_OR_RETURN(const std::string csv, Env::Posix()->ReadFile(path, 1 << 20));
    return ParseCurve(csv);
  }
  std::string CurvePath(const std::string& method, const std::string& dataset,
                        uint64_t seed) const {
    return JoinPath(options_.curves, absl::StrCat(NameOf(dataset), "-", method, "-", seed, ".csv"));
  }

  absl::Status ReadRows() {
    if (!Env::Posix()->Exists(options_.out)) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::string csv, Env::Posix()->ReadFile(options_.out, 1 << 26));
    ASSIGN_OR_RETURN(rows_, ParseStudy(csv));
    return absl::OkStatus();
  }
  absl::Status Append(const StudyRow& row) {
    rows_.push_back(row);
    std::string csv = absl::StrCat(kStudyHeader, "\n");
    for (const StudyRow& each : rows_) absl::StrAppend(&csv, CsvLine(each), "\n");
    return Env::Posix()->WriteFileAtomic(options_.out, csv);
  }
  bool Done(const std::string& method, const std::string& dataset, uint64_t seed) const {
    for (const StudyRow& row : rows_) {
      if (row.method == method && row.dataset == NameOf(dataset) && row.seed == seed &&
          row.nodes == options_.nodes) {
        return true;
      }
    }
    return false;
  }

  absl::Status RunSeed(const std::string& dataset, uint64_t seed) {
    ASSIGN_OR_RETURN(const LossCurve reference,
                     CurveFor(FindMethod(kReferenceMethod), dataset, seed));
    for (const std::string& name : options_.methods) {
      if (Done(name, dataset, seed)) continue;
      StudyMethod method = FindMethod(name);
      if (!options_.yaml.empty()) method.yaml = options_.yaml;
      ASSIGN_OR_RETURN(const LossCurve curve, CurveFor(method, dataset, seed));
      StudyRow row = Compare(curve, reference);
      row.method = name;
      row.seed = seed;
      row.dataset = NameOf(dataset);
      row.nodes = options_.nodes;
      std::printf("%s\n", DescribeRow(row, Compare(reference, reference)).c_str());
      std::fflush(stdout);
      RETURN_IF_ERROR(Append(row));
    }
    return absl::OkStatus();
  }

  // From the file of an earlier run where there is one.
  absl::StatusOr<LossCurve> CurveFor(const StudyMethod& method, const std::string& dataset,
                                     uint64_t seed) {
    const std::string path = CurvePath(method.name, dataset, seed);
    if (options_.yaml.empty() && Env::Posix()->Exists(path)) return ReadCurve(path);
    SimulationOptions simulation;
    simulation.model = options_.model;
    ASSIGN_OR_RETURN(simulation.data.path, PathOf(dataset));
    simulation.data.nodes = options_.nodes;
    simulation.data.sample = true;
    simulation.data.min_records = 10;
    ASSIGN_OR_RETURN(simulation.run, ConfigOf(method, options_.run, seed));
    simulation.workers =
        options_.workers > 0 ? options_.workers : ThreadPool::AvailableProcessors();
    simulation.centralized = false;
    simulation.label_questions = 0;
    simulation.eval_tokens = options_.eval_tokens;
    simulation.device_eval_tokens = 0;
    simulation.out_dir = JoinPath(options_.curves, "run");
    SimulationEnvironment environment;
    environment.env = Env::Posix();
    environment.wall = Clock::Real();
    ASSIGN_OR_RETURN(const RunReport report, RunSimulation(simulation, environment));
    const LossCurve curve =
        CurveOf(report, method.name == kReferenceMethod ? report.adapter_parameters : 0);
    RETURN_IF_ERROR(Env::Posix()->WriteFileAtomic(path, CurveCsv(curve)));
    return curve;
  }

  Options options_;
  std::vector<StudyRow> rows_;
};

absl::Status WriteReport(const Options& options, const Study& study) {
  Env& env = *Env::Posix();
  ASSIGN_OR_RETURN(const std::string page, env.ReadFile(options.report, 1 << 24));
  ASSIGN_OR_RETURN(const std::string whole, ReplaceStudy(page, StudyTables(study.rows())));
  RETURN_IF_ERROR(env.WriteFileAtomic(options.report, whole));
  const auto write = [&](absl::string_view plot, absl::string_view of, const std::string& svg) {
    return env.WriteFileAtomic(
        JoinPath(DirName(options.report), absl::StrCat("quality-", plot, "-", of, ".svg")), svg);
  };
  for (const std::string& dataset : options.datasets) {
    ASSIGN_OR_RETURN(const std::vector<ComparedCurve> curves, study.Curves(dataset));
    std::vector<ComparedCurve> drawn;
    for (const ComparedCurve& curve : curves) {
      const auto& names = options.drawn;
      if (std::find(names.begin(), names.end(), curve.method) != names.end()) {
        drawn.push_back(curve);
      }
    }
    const std::string of = absl::StrCat(NameOf(dataset), "-", options.nodes);
    RETURN_IF_ERROR(write("curves", of, CurvesSvg("improvement against bytes", drawn)));
    RETURN_IF_ERROR(
        write("frontier-up", of, FrontierSvg("gap against bytes sent", curves, CountedBytes::kUp)));
    RETURN_IF_ERROR(
        write("frontier-both", of,
              FrontierSvg("gap against bytes sent and received", curves, CountedBytes::kBoth)));
  }
  return absl::OkStatus();
}

absl::Status RunProgram(Options options) {
  if (options.methods.empty()) {
    for (const StudyMethod& method : StudyMethods()) options.methods.push_back(method.name);
  }
  for (const std::string& name : options.methods) {
    const bool known = std::any_of(StudyMethods().begin(), StudyMethods().end(),
                                   [&](const StudyMethod& method) { return method.name == name; });
    if (!known && options.yaml.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--methods: '", name,
                       "' is none of tests/quality/methods.cc; say what it is with --yaml"));
    }
  }
  RETURN_IF_ERROR(Env::Posix()->CreateDirs(options.curves));
  Study study(options);
  RETURN_IF_ERROR(study.Run());
  return options.report.empty() ? absl::OkStatus() : WriteReport(options, study);
}

}  // namespace
}  // namespace fedge

int main(int argc, char** argv) {
  fedge::Options options;
  CLI::App app("What compression costs in quality: held-out loss against bytes, method by method");
  app.footer(
      "Example:\n  quality_study --methods dense-fp32,top3-1bit-up --data packages --seeds 1");
  const auto text = [&](const char* name, std::string& value, const char* help) {
    app.add_option(name, value, help)->capture_default_str();
  };
  const auto list = [&](const char* name, auto& value, const char* help) {
    app.add_option(name, value, help)->delimiter(',')->capture_default_str();
  };
  text("--out", options.out, "CSV, appended to");
  text("--report", options.report, "Markdown whose tables and plots are made anew");
  text("--curves", options.curves, "Folder of the runs' curves; what is there is not run again");
  text("--model", options.model, "GGUF");
  list("--methods", options.methods,
       "Those of tests/quality/methods.cc (default: all), or new names");
  list("--drawn", options.drawn, "Of the methods, those whose curves the report draws");
  list("--data", options.datasets, "packages, sotu or NAME=PATH");
  list("--seeds", options.seeds, "Of the runs");
  text("--run", options.run, "Changes to every run, the reference too: YAML of a run's fields");
  text("--yaml", options.yaml, "Changes to the methods named: YAML of a run's fields");
  app.add_option("--nodes", options.nodes, "Of each run")->capture_default_str();
  app.add_option("--eval-tokens", options.eval_tokens, "Held-out tokens after each round")
      ->capture_default_str();
  app.add_option("--workers", options.workers, "Nodes trained at a time (0: all cores)")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  fedge::SetLogLevel(fedge::LogLevel::kOff);
  const absl::Status status = fedge::RunProgram(std::move(options));
  if (!status.ok()) {
    std::fprintf(stderr, "quality_study: %s\n", std::string(status.message()).c_str());
  }
  return status.ok() ? 0 : 1;
}
