#include "tests/bench/model_steps.h"

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/env.h"
#include "common/base/process_memory.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/base/thread_pool.h"
#include "common/model/transformer.h"
#include "common/training/memory_plan.h"
#include "common/training/optimizer.h"
#include "tests/bench/machine_peaks.h"
#include "tools/prepare/random_model.h"

namespace fedge {
namespace {

constexpr int64_t kRows = 2;
constexpr int64_t kPeakPieces = 8;  // before each step: a step takes seconds, a piece a millisecond
constexpr const char* kLine = "model_steps %lf %lf %lf %lf %lf %lf %lf %lf\n";

double PeakOf(Precision precision, ThreadPool& pool) {
  double peak = 0;
  for (int64_t i = 0; i < kPeakPieces; ++i) {
    peak =
        std::max(peak, precision == Precision::kBFloat16 ? Bf16PeakOnce(pool) : FmaPeakOnce(pool));
  }
  return peak;
}

int64_t LayerParameters(const BaseModel& model) {
  int64_t sum = 0;
  for (const LayerWeights& layer : model.layers()) {
    for (const WeightMatrix& w : layer.linear) sum += w.rows * w.cols;
  }
  return sum;
}

Batch RandomBatch(const BaseModel& model) {
  Batch batch;
  batch.batch_size = kRows;
  batch.length = kStepTokens / kRows;
  Rng rng(3);
  for (int64_t i = 0; i < kStepTokens; ++i) {
    for (auto* tokens : {&batch.tokens, &batch.targets}) {
      tokens->push_back(
          static_cast<TokenId>(rng.Below(static_cast<uint64_t>(model.config().vocab_size))));
    }
  }
  return batch;
}

// Best rates of `work` over kStepTokens tokens and of the peak, taken in turn.
struct Rate {
  double tokens_per_s = 0, of_peak = 0;
};
template <typename Work>
Rate BestRate(double flop_per_token, Precision precision, int repeat, ThreadPool& pool,
              const Work& work) {
  double peak = 0, seconds = 1e9;
  for (int i = 0; i < repeat; ++i) {
    peak = std::max(peak, PeakOf(precision, pool));
    seconds = std::min(seconds, Seconds(pool.threads(), work));
  }
  const double rate = static_cast<double>(kStepTokens) / seconds;
  return {rate, rate * flop_per_token / peak};
}

struct TemporaryFile {
  TemporaryFile() {
    const char* const folder = getenv("TMPDIR");
    path = absl::StrCat(folder != nullptr ? folder : "/tmp", "/engine_bench.XXXXXX");
    const int fd = mkstemp(path.data());
    FEDGE_CHECK(fd >= 0, "no temporary file ", path);
    close(fd);
  }
  ~TemporaryFile() { unlink(path.c_str()); }
  std::string path;
};

absl::Status MakeModel(const std::string& shape, DType type, const std::string& path) {
  RandomModelOptions options;
  ASSIGN_OR_RETURN(options.outline, MakeNamedOutline({"", shape}));
  options.type = type;
  options.output_file = path;
  return MakeRandomModel(options, *Env::Posix()).status();
}

}  // namespace

int MeasureModelHere(const std::string& path, int threads, int repeat) {
  const absl::Time start = absl::Now();
  auto loaded = BaseModel::Load(path, *Env::Posix());
  FEDGE_CHECK(loaded.ok(), loaded.status().ToString());
  const BaseModel& model = **loaded;
  auto spec = model.MakeLoraSpec(LoraTargets());
  FEDGE_CHECK(spec.ok(), spec.status().ToString());
  const Precision precision = HasBFloat16Dot() ? Precision::kBFloat16 : Precision::kFloat32;

  MemoryRequest request;
  request.model = &model;
  request.adapter = &*spec;
  request.batch_size = kRows;
  request.length = kStepTokens / kRows;
  request.threads = threads;
  request.precision = precision;
  auto plan = PlanMemory(request);
  FEDGE_CHECK(plan.ok(), plan.status().ToString());

  LoraAdapter adapter(*spec);
  adapter.InitializeForTraining(1);
  std::vector<float> gradient(adapter.values().size());
  AdamW optimizer(static_cast<int64_t>(gradient.size()), AdamWOptions());
  ThreadPool pool(threads);
  auto transformer = std::make_unique<Transformer>(*loaded, &pool, plan->transformer);
  transformer->set_training_precision(precision);
  const Batch batch = RandomBatch(model);
  ModelSteps steps;
  steps.seconds_to_first_step = absl::ToDoubleSeconds(absl::Now() - start);
  steps.file_mb = static_cast<double>(plan->estimate.model_file) / 1e6;
  steps.estimated_mb = static_cast<double>(plan->estimate.total()) / 1e6;

  const double layers = static_cast<double>(LayerParameters(model));
  const double head = static_cast<double>(model.output().rows * model.output().cols);
  const auto step = [&] {
    std::fill(gradient.begin(), gradient.end(), 0.0f);
    transformer->LossAndGradient(batch, adapter, 1.0f / kStepTokens, absl::MakeSpan(gradient));
    optimizer.Step(gradient, 1e-4f, adapter.values());
  };
  const Rate trained = BestRate(6 * layers + 4 * head, precision, repeat, pool, step);
  steps.tokens_per_s = trained.tokens_per_s;
  steps.of_peak = trained.of_peak;
  steps.peak_rss_mb = static_cast<double>(PeakResidentBytes()) / 1e6;

  transformer = std::make_unique<Transformer>(*loaded, &pool);
  KvCache cache(model.config(), kStepTokens);
  const Rate prompt = BestRate(2 * layers, precision, repeat, pool, [&] {
    FEDGE_CHECK(cache.Truncate(0).ok());
    FEDGE_CHECK(transformer->Decode(batch.tokens, nullptr, cache, precision).ok());
  });
  steps.prompt_tokens_per_s = prompt.tokens_per_s;
  steps.prompt_of_peak = prompt.of_peak;
  std::printf(kLine, steps.seconds_to_first_step, steps.tokens_per_s, steps.of_peak,
              steps.prompt_tokens_per_s, steps.prompt_of_peak, steps.peak_rss_mb,
              steps.estimated_mb, steps.file_mb);
  return 0;
}

std::optional<ModelSteps> MeasureModel(const std::string& shape, DType type, int threads,
                                       int repeat) {
  const TemporaryFile file;
  if (const absl::Status made = MakeModel(shape, type, file.path); !made.ok()) {
    std::fprintf(stderr, "%s\n", made.ToString().c_str());
    return std::nullopt;
  }
  char self[4096];
  const ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
  FEDGE_CHECK(length > 0, "no /proc/self/exe");
  const std::string command = absl::StrCat(
      "'", absl::string_view(self, static_cast<size_t>(length)), "' --measure-model '", file.path,
      "' --threads ", threads, " --repeat ", repeat, " --target ", SimdTargetName());
  FILE* const child = popen(command.c_str(), "r");
  FEDGE_CHECK(child != nullptr, command);
  ModelSteps steps;
  const int fields = std::fscanf(child, kLine, &steps.seconds_to_first_step, &steps.tokens_per_s,
                                 &steps.of_peak, &steps.prompt_tokens_per_s, &steps.prompt_of_peak,
                                 &steps.peak_rss_mb, &steps.estimated_mb, &steps.file_mb);
  const int status = pclose(child);
  if (fields == 8 && status == 0) return steps;
  std::fprintf(stderr, "%s: exit status %d\n", command.c_str(), status);
  return std::nullopt;
}

}  // namespace fedge
