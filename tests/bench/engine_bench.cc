// The training engine against what the machine can do, both measured in this run.
//
//   engine_bench                     tables: peaks, products, LoRA overhead, demo model
//   engine_bench --summary           one JSON object
//   engine_bench --filter Q4_0       only products of that weight type, or only one of the other
//                                    tables: onednn, decode, lora, adapters, models, demo
//   engine_bench --shape 896x4864 --tokens 512 --threads 1
//                                    only products like that
//   engine_bench --filter demo --threads 1
//                                    only the demo model, without the peaks
//   engine_bench --target AVX2       kernels and peaks of that SIMD target, not the best one
//   engine_bench --repeat 20         pieces of each measurement, best of (default 9)
//
// Every number is the best of several pieces taken in turn with the peak it is divided by, so that
// other work on the machine disturbs both alike. With one thread, time is processor time.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/model/linear.h"
#include "common/tensor/matmul.h"
#include "common/tensor/quantize.h"
#include "tests/bench/demo_steps.h"
#include "tests/bench/machine_peaks.h"
#include "tests/bench/model_steps.h"
#include "tests/bench/onednn_reference.h"

namespace fedge {
namespace {

struct Options {
  bool summary = false;
  std::string filter;
  std::string shape;   // empty: all
  int64_t tokens = 0;  // 0: all
  int threads = 0;     // 0: all
  int repeat = 9;
  std::string model = "models/fedge-tiny/fedge-tiny-q8_0.gguf";
};

DemoOptions DemoOf(const Options& options) {
  return {options.model, options.threads, options.repeat,
          options.tokens == 0 ? 512 : options.tokens};
}

std::vector<float> RandomFloats(int64_t count, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(rng.Normal());
  return values;
}

// A weight of random blocks; the rows repeat, since some encoders are slow.
struct Weight {
  std::vector<uint8_t> bytes;
  WeightMatrix view;
};
Weight MakeWeight(DType type, int64_t rows, int64_t cols) {
  constexpr int64_t kDistinct = 8;
  const int64_t row_bytes = RowBytes(type, cols);
  Weight w;
  w.bytes.resize(static_cast<size_t>(rows * row_bytes));
  const std::vector<float> values = RandomFloats(kDistinct * cols, 1);
  FEDGE_CHECK(Quantize(type, values, w.bytes.data()).ok());
  for (int64_t r = kDistinct; r < rows; ++r) {
    std::memcpy(w.bytes.data() + r * row_bytes, w.bytes.data() + r % kDistinct * row_bytes,
                static_cast<size_t>(row_bytes));
  }
  w.view = {w.bytes.data(), type, rows, cols};
  return w;
}

struct Shape {
  int64_t rows, cols;  // of W
};
constexpr Shape kShapes[] = {{896, 896},   {4864, 896},  {896, 4864},
                             {2048, 2048}, {8192, 2048}, {2048, 8192}};
constexpr DType kTypes[] = {DType::kQ4_0, DType::kQ8_0, DType::kQ4_K, DType::kQ6_K};

// Best rates of something and of the peak, measured in turn.
struct Ratio {
  double rate = 0;
  double peak = 0;
  double of_peak() const { return peak == 0 ? 0 : rate / peak; }
};
Ratio Measure(ThreadPool& pool, Precision precision, double flops, int repeat,
              const std::function<void()>& work) {
  Ratio ratio;
  work();
  for (int i = 0; i < repeat; ++i) {
    ratio.peak = std::max(
        ratio.peak, precision == Precision::kBFloat16 ? Bf16PeakOnce(pool) : FmaPeakOnce(pool));
    ratio.rate = std::max(ratio.rate, flops / Seconds(pool.threads(), work));
  }
  return ratio;
}

// --- Products ----------------------------------------------------------------------------------

struct ProductRatios {
  Ratio forward, backward;
};

ProductRatios MeasureProduct(const Weight& w, int64_t t, Precision precision, int repeat,
                             ThreadPool& pool) {
  const Shape shape{w.view.rows, w.view.cols};
  std::vector<float> x = RandomFloats(t * shape.cols, 2), y = RandomFloats(t * shape.rows, 3);
  const double flops = 2.0 * static_cast<double>(t * shape.rows * shape.cols);
  ProductRatios ratios;
  ratios.forward = Measure(pool, precision, flops, repeat, [&] {
    MatMulForward(w.view, x.data(), t, 1, Accumulate::kNo, y.data(), pool, precision);
  });
  ratios.backward = Measure(pool, precision, flops, repeat, [&] {
    MatMulBackward(w.view, y.data(), t, 1, Accumulate::kNo, x.data(), pool, precision);
  });
  return ratios;
}

struct LeastRatios {
  double fp32 = 1, bf16 = 1;
};

void PrintProduct(DType type, const Shape& shape, int64_t t, Precision precision, int threads,
                  const ProductRatios& ratios) {
  std::printf("%-5s %5lld x %-5lld %5lld  %s  %d  %7.0f %5.1f%%  %7.0f %5.1f%%\n",
              std::string(DTypeName(type)).c_str(), static_cast<long long>(shape.rows),
              static_cast<long long>(shape.cols), static_cast<long long>(t), NameOf(precision),
              threads, ratios.forward.rate / 1e9, 100 * ratios.forward.of_peak(),
              ratios.backward.rate / 1e9, 100 * ratios.backward.of_peak());
  std::fflush(stdout);
}

// The whole grid, or for the summary its corners.
LeastRatios Products(const Options& options, bool print) {
  LeastRatios least;
  const std::vector<int64_t> tokens =
      print ? std::vector<int64_t>{256, 512, 1024} : std::vector<int64_t>{256};
  if (print) {
    std::printf(
        "\nW [rows x cols]  tokens  precision  threads  forward GFLOP/s, of peak  backward\n");
  }
  for (const DType type : kTypes) {
    if (!options.filter.empty() && options.filter != DTypeName(type)) continue;
    for (const Shape& shape : kShapes) {
      const std::string name = std::to_string(shape.rows) + "x" + std::to_string(shape.cols);
      if (!options.shape.empty() && options.shape != name) continue;
      if (shape.cols % BlockElements(type) != 0) continue;
      const Weight w = MakeWeight(type, shape.rows, shape.cols);
      for (const int threads : {1, 2}) {
        if (threads > ThreadPool::AvailableProcessors()) continue;
        if (options.threads != 0 && options.threads != threads) continue;
        ThreadPool pool(threads);
        for (const int64_t t : tokens) {
          if (options.tokens != 0 && options.tokens != t) continue;
          for (const Precision precision : Precisions()) {
            const ProductRatios ratios = MeasureProduct(w, t, precision, options.repeat, pool);
            if (print) PrintProduct(type, shape, t, precision, threads, ratios);
            double& worst = precision == Precision::kBFloat16 ? least.bf16 : least.fp32;
            worst = std::min({worst, ratios.forward.of_peak(), ratios.backward.of_peak()});
          }
        }
      }
    }
  }
  return least;
}

void OneDnnComparison(const Options& options) {
  constexpr int64_t kTokens = 512;
  if (!HasOneDnn()) return;
  std::printf("\noneDNN, dense packed weights, 1 thread, %lld tokens: GFLOP/s, of peak\n",
              static_cast<long long>(kTokens));
  ThreadPool pool(1);
  for (const Shape& shape : kShapes) {
    const std::vector<float> weight = RandomFloats(shape.rows * shape.cols, 1);
    const std::vector<float> x = RandomFloats(kTokens * shape.cols, 2);
    std::vector<float> y(static_cast<size_t>(kTokens * shape.rows));
    for (const Precision precision : Precisions()) {
      const auto product = OneDnnProduct(precision, weight.data(), x.data(), kTokens, shape.rows,
                                         shape.cols, y.data());
      const Ratio ratio =
          Measure(pool, precision, 2.0 * static_cast<double>(kTokens * shape.rows * shape.cols),
                  options.repeat, product);
      std::printf("      %5lld x %-5lld  %s  %7.0f %5.1f%%\n", static_cast<long long>(shape.rows),
                  static_cast<long long>(shape.cols), NameOf(precision), ratio.rate / 1e9,
                  100 * ratio.of_peak());
    }
  }
}

// --- Decoding ----------------------------------------------------------------------------------

// The product for one token is bound by reading the weight: bytes/s next to the memory's.
void Decoding(const Options& options) {
  std::printf("\none token, 8192 x 2048: weight GB/s, of the read bandwidth\n");
  const std::vector<float> x = RandomFloats(2048, 1);
  std::vector<float> y(8192);
  for (const DType type : kTypes) {
    // Several, so that none stays in a cache.
    std::vector<Weight> weights;
    for (int i = 0; i < 6; ++i) weights.push_back(MakeWeight(type, 8192, 2048));
    const double bytes = static_cast<double>(weights.size() * weights[0].bytes.size());
    for (const int threads : {1, 2}) {
      ThreadPool pool(threads);
      double rate = 0, peak = 0;
      for (int i = 0; i < options.repeat; ++i) {
        peak = std::max(peak, ReadBandwidthOnce(pool));
        rate = std::max(rate, bytes / Seconds(threads, [&] {
                                for (const Weight& w : weights) {
                                  MatMulForward(w.view, x.data(), 1, 1, Accumulate::kNo, y.data(),
                                                pool);
                                }
                              }));
      }
      std::printf("%-5s  %d  %6.1f %5.1f%%\n", std::string(DTypeName(type)).c_str(), threads,
                  rate / 1e9, 100 * rate / peak);
    }
  }
}

// --- LoRA branches -----------------------------------------------------------------------------

// Layers that read the same input, their branches and gradients.
class Group {
 public:
  Group(int64_t in, const std::vector<int64_t>& outs, int64_t rank, int64_t t, int64_t branches)
      : t_(t), x_(RandomFloats(t * in, 9)), dx_(x_.size()) {
    for (int64_t i = 1; i <= branches; ++i) ends_.push_back(i * t / branches);
    layers_.resize(outs.size());
    gradients_.resize(outs.size());
    for (size_t i = 0; i < outs.size(); ++i) AddLayer(i, in, outs[i], rank, branches);
  }

  void Bind(bool lora, Precision precision) {
    for (size_t i = 0; i < layers_.size(); ++i) {
      layers_[i].rank = lora ? rank_ : 0;
      layers_[i].precision = precision;
    }
  }
  void Forward(ThreadPool& pool) {
    std::vector<LinearForwardCall> calls;
    for (size_t i = 0; i < layers_.size(); ++i) {
      calls.push_back({&layers_[i], u_[i].data(), y_[i].data()});
    }
    LinearForward(calls, x_.data(), {t_, ends_}, pool);
  }
  void Backward(ThreadPool& pool) {
    std::vector<LinearBackwardCall> calls;
    for (size_t i = 0; i < layers_.size(); ++i) {
      calls.push_back({&layers_[i], &gradients_[i], u_[i].data(), y_[i].data()});
    }
    LinearBackward(calls, x_.data(), {t_, ends_}, Accumulate::kNo, dx_.data(), pool);
  }

 private:
  void AddLayer(size_t i, int64_t in, int64_t out, int64_t rank, int64_t branches) {
    rank_ = rank;
    weights_.push_back(MakeWeight(DType::kQ4_0, out, in));
    u_.emplace_back(static_cast<size_t>(t_ * rank));
    y_.push_back(RandomFloats(t_ * out, 4));
    layers_[i].weight = weights_.back().view;
    layers_[i].scale = 2;
    for (int64_t b = 0; b < branches; ++b) {
      const float* const a = Keep(rank * in);
      const float* const bt = Keep(rank * out);
      layers_[i].lora.push_back({a, bt});
      float* const da = Keep(rank * in);
      float* const db = Keep(rank * out);
      gradients_[i].lora.push_back({da, db});
    }
  }
  float* Keep(int64_t count) {
    factors_.push_back(std::make_unique<std::vector<float>>(RandomFloats(count, 5)));
    return factors_.back()->data();
  }

  int64_t t_, rank_ = 0;
  std::vector<float> x_, dx_;
  std::vector<int64_t> ends_;
  std::vector<Weight> weights_;
  std::vector<std::vector<float>> u_, y_;
  std::vector<std::unique_ptr<std::vector<float>>> factors_;
  std::vector<Linear> layers_;
  std::vector<LinearGradient> gradients_;
};

void PrintOverhead(const char* name, Group& group, int threads, int repeat) {
  ThreadPool pool(threads);
  for (const Precision precision : Precisions()) {
    double best[2][2] = {{1e9, 1e9}, {1e9, 1e9}};  // [with LoRA][backward]
    for (int i = 0; i <= repeat; ++i) {
      for (const bool lora : {false, true}) {
        group.Bind(lora, precision);
        double* const seconds = best[lora ? 1 : 0];
        seconds[0] = std::min(seconds[0], Seconds(threads, [&] { group.Forward(pool); }));
        seconds[1] = std::min(seconds[1], Seconds(threads, [&] { group.Backward(pool); }));
      }
    }
    std::printf("%-34s %s  %d  %8.3f +%5.1f%%   %8.3f +%5.1f%%\n", name, NameOf(precision), threads,
                1e3 * best[0][0], 100 * (best[1][0] / best[0][0] - 1), 1e3 * best[0][1],
                100 * (best[1][1] / best[0][1] - 1));
    std::fflush(stdout);
  }
}

void LoraOverhead(const Options& options) {
  std::printf(
      "\nLoRA as an addition to the frozen product, 512 tokens, Q4_0:\n"
      "group                              precision threads  forward ms, LoRA  backward\n");
  struct Case {
    const char* name;
    int64_t in;
    std::vector<int64_t> outs;
    int64_t rank, branches;
  };
  const Case cases[] = {{"896 -> 896+128+128 rank 16", 896, {896, 128, 128}, 16, 1},
                        {"896 -> 4864+4864 rank 16", 896, {4864, 4864}, 16, 1},
                        {"4864 -> 896 rank 16", 4864, {896}, 16, 1},
                        {"192 -> 192+64+64 rank 8", 192, {192, 64, 64}, 8, 1},
                        {"192 -> 512+512 rank 8", 192, {512, 512}, 8, 1},
                        {"896 -> 4864+4864 rank 16, 8 adapters", 896, {4864, 4864}, 16, 8}};
  for (const Case& c : cases) {
    if (!options.shape.empty() && options.shape != c.name) continue;
    Group group(c.in, c.outs, c.rank, 512, c.branches);
    for (const int threads : {1, 2}) {
      if (options.threads != 0 && options.threads != threads) continue;
      if (threads <= ThreadPool::AvailableProcessors()) {
        PrintOverhead(c.name, group, threads, options.repeat);
      }
    }
  }
}

// --- Output ------------------------------------------------------------------------------------

using Fields = std::vector<std::pair<std::string, double>>;

void AddPeaks(Fields& fields) {
  ThreadPool pool(std::min(2, ThreadPool::AvailableProcessors()));
  double fma = 0, bf16 = 0, bandwidth = 0;
  for (int i = 0; i < 30; ++i) {
    fma = std::max(fma, FmaPeakOnce(pool));
    bf16 = std::max(bf16, Bf16PeakOnce(pool));
    if (i % 5 == 0) bandwidth = std::max(bandwidth, ReadBandwidthOnce(pool));
  }
  fields.emplace_back("fma_peak_gflops", fma / 1e9);
  fields.emplace_back("bf16_peak_gflops", bf16 / 1e9);
  fields.emplace_back("read_bandwidth_gb_per_s", bandwidth / 1e9);
}

void AddProducts(const Options& options, Fields& fields) {
  const LeastRatios least = Products(options, false);
  fields.emplace_back("gemm_fp32_ratio_min", least.fp32);
  fields.emplace_back("gemm_bf16_ratio_min", HasBFloat16Dot() ? least.bf16 : 0);
}

// Models of real sizes: a step takes seconds, and a few show the best.
constexpr int kModelRepeat = 3;

void AddModels(Fields& fields) {
  const int threads = std::min(2, ThreadPool::AvailableProcessors());
  const ModelSteps small =
      MeasureModel("0.5b", DType::kQ4_0, threads, kModelRepeat).value_or(ModelSteps());
  fields.emplace_back("step_05b_tokens_per_s", small.tokens_per_s);
  fields.emplace_back("step_05b_ratio", small.of_peak);
  fields.emplace_back("step_05b_peak_rss_mb", small.peak_rss_mb);
  const ModelSteps large =
      MeasureModel("1b", DType::kQ4_0, threads, kModelRepeat).value_or(ModelSteps());
  fields.emplace_back("step_1b_tokens_per_s", large.tokens_per_s);
  fields.emplace_back("step_1b_ratio", large.of_peak);
  fields.emplace_back("step_1b_peak_rss_mb", large.peak_rss_mb);
  fields.emplace_back("prefill_1b_q4_0_tokens_per_s", large.prompt_tokens_per_s);
  fields.emplace_back("prefill_1b_q4_0_ratio", large.prompt_of_peak);
}

void ModelTable() {
  std::printf(
      "\nmodel, %lld tokens a step, rank 16: start s, trained tokens/s, of peak, prompt tokens/s, "
      "of peak, MB estimated, peak, of them the file\n",
      static_cast<long long>(kStepTokens));
  for (const char* shape : {"0.5b", "1b"}) {
    for (const DType type : {DType::kQ4_0, DType::kQ8_0, DType::kQ4_K}) {
      for (const int threads : {1, 2}) {
        const auto steps = MeasureModel(shape, type, threads, kModelRepeat);
        if (!steps) continue;
        std::printf("%-4s %-4s  %d  %5.2f  %7.1f %5.1f%%  %7.1f %5.1f%%  %6.0f %6.0f %6.0f\n",
                    shape, std::string(DTypeName(type)).c_str(), threads,
                    steps->seconds_to_first_step, steps->tokens_per_s, 100 * steps->of_peak,
                    steps->prompt_tokens_per_s, 100 * steps->prompt_of_peak, steps->estimated_mb,
                    steps->peak_rss_mb, steps->file_mb);
        std::fflush(stdout);
      }
    }
  }
}

void AddDemo(const Options& options, Fields& fields) {
  fields.emplace_back("demo_tokens_per_s",
                      DemoTokensPerSecond(DemoOf(options), Precisions().back(), 2));
}

void PrintSummary(const Options& options) {
  Fields fields;
  AddPeaks(fields);
  AddProducts(options, fields);
  AddModels(fields);
  AddDemo(options, fields);
  std::printf("{");
  for (size_t i = 0; i < fields.size(); ++i) {
    std::printf("%s\"%s\": %.4g", i == 0 ? "" : ", ", fields[i].first.c_str(), fields[i].second);
  }
  std::printf("}\n");
}

void PrintTables(const Options& options) {
  const bool all = options.filter.empty();
  Fields fields;
  if (options.filter != "demo") AddPeaks(fields);
  std::printf("%s", SimdTargetName().c_str());
  for (const auto& [name, value] : fields) std::printf("  %s %.1f", name.c_str(), value);
  std::printf("\n");
  const bool products = options.filter != "lora" && options.filter != "demo" &&
                        options.filter != "onednn" && options.filter != "decode" &&
                        options.filter != "models" && options.filter != "adapters";
  if (products) {
    const LeastRatios least = Products(options, true);
    std::printf("least: fp32 %.3f, bf16 %.3f\n", least.fp32, least.bf16);
  }
  if (all || options.filter == "onednn") OneDnnComparison(options);
  if (all || options.filter == "decode") Decoding(options);
  if (all || options.filter == "lora") LoraOverhead(options);
  if (all || options.filter == "adapters") PrintSharedPasses(DemoOf(options));
  if (all || options.filter == "models") ModelTable();
  if (all || options.filter == "demo") {
    for (const Precision precision : Precisions()) {
      for (const int threads : {1, 2}) {
        if (options.threads != 0 && options.threads != threads) continue;
        std::printf("demo model, %s, %d thread(s): %.0f tokens/s\n", NameOf(precision), threads,
                    DemoTokensPerSecond(DemoOf(options), precision, threads));
      }
    }
  }
}

}  // namespace
}  // namespace fedge

int main(int argc, char** argv) {
  setenv("OMP_NUM_THREADS", "1", 0);  // oneDNN's
  fedge::Options options;
  std::string measured_model;  // see tests/bench/model_steps.h
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--summary") {
      options.summary = true;
    } else if (flag == "--filter" && i + 1 < argc) {
      options.filter = argv[++i];
    } else if (flag == "--shape" && i + 1 < argc) {
      options.shape = argv[++i];
    } else if (flag == "--tokens" && i + 1 < argc) {
      options.tokens = std::atoi(argv[++i]);
    } else if (flag == "--threads" && i + 1 < argc) {
      options.threads = std::atoi(argv[++i]);
    } else if (flag == "--repeat" && i + 1 < argc) {
      options.repeat = std::atoi(argv[++i]);
    } else if (flag == "--target" && i + 1 < argc) {
      if (!fedge::UseSimdTarget(argv[++i])) {
        std::fprintf(stderr, "engine_bench: this machine has no target %s\n", argv[i]);
        return 2;
      }
    } else if (flag == "--measure-model" && i + 1 < argc) {
      measured_model = argv[++i];
    } else if (flag == "--model" && i + 1 < argc) {
      options.model = argv[++i];
    } else {
      std::fprintf(stderr, "engine_bench: unknown option %s\n", argv[i]);
      return 2;
    }
  }
  if (!measured_model.empty()) {
    return fedge::MeasureModelHere(measured_model, std::max(1, options.threads), options.repeat);
  }
  options.summary ? fedge::PrintSummary(options) : fedge::PrintTables(options);
  return 0;
}
