// Encoding and decoding of what devices download, and a study of the quantizer on real versions:
//   downlink_bench                          Google Benchmark
//   downlink_bench MODEL RANK DIR           DIR/<version>.f32 (fp32 values of an adapter of that
//                                           rank on all linear layers): how far devices are from
//                                           the master at equal bytes, for several settings
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/base/env.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/model/base_model.h"
#include "server/downlink.h"
#include "tests/testing/adapter_samples.h"

namespace fedge {
namespace {

std::vector<int32_t> Units(const LoraSpec& spec, const benchmark::State& state) {
  return testing::RandomUnits(spec, static_cast<double>(state.range(0)) / 1000,
                              static_cast<double>(state.range(1)), 10, 1);
}

void Count(benchmark::State& state, const LoraSpec& spec, size_t bytes) {
  state.SetItemsProcessed(state.iterations() * spec.num_parameters());
  state.counters["bits/param"] =
      8.0 * static_cast<double>(bytes) / static_cast<double>(spec.num_parameters());
}

void BM_EncodeDelta(benchmark::State& state) {
  const LoraSpec spec = testing::SampleSpec(16384, 16);  // 1,572,864 parameters
  const std::vector<int32_t> units = Units(spec, state);
  size_t bytes = 0;
  for (auto _ : state) bytes = EncodeAdapterDelta(spec, AdapterHeader(), units).size();
  Count(state, spec, bytes);
}

void BM_AddDelta(benchmark::State& state) {
  const LoraSpec spec = testing::SampleSpec(16384, 16);
  const std::string bytes = EncodeAdapterDelta(spec, AdapterHeader(), Units(spec, state));
  std::vector<int32_t> units(static_cast<size_t>(spec.num_parameters()));
  for (auto _ : state) {
    FEDGE_CHECK(AddAdapterDelta(spec, Digest(), bytes, absl::MakeSpan(units)).ok());
  }
  Count(state, spec, bytes.size());
}

void Shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"permille", "deviation"})->Unit(benchmark::kMillisecond);
  bench->Args({5, 1})->Args({30, 1})->Args({300, 2})->Args({1000, 20});
}
BENCHMARK(BM_EncodeDelta)->Apply(Shapes);
BENCHMARK(BM_AddDelta)->Apply(Shapes);

std::vector<std::vector<float>> ReadMasters(const std::string& dir) {
  std::vector<std::vector<float>> masters;
  for (int version = 0;; ++version) {
    const auto bytes = Env::Posix()->ReadFile(JoinPath(dir, absl::StrCat(version, ".f32")));
    if (!bytes.ok()) return masters;
    std::vector<float>& master = masters.emplace_back(bytes->size() / sizeof(float));
    std::memcpy(master.data(), bytes->data(), master.size() * sizeof(float));
  }
}

struct Outcome {
  double bits = 0;           // a parameter and version
  double factor_error = 0;   // ||theta - w|| / ||theta - theta_0||, mean over the versions
  double product_error = 0;  // the same of all B A
  std::string ways;          // to the last version, from some before
};

// Sum over the modules of ||B A - B' A'||^2.
double ProductDistance(const LoraAdapter& x, const LoraAdapter& y) {
  double sum = 0;
  const std::vector<LoraModule>& modules = x.spec().modules();
  for (size_t m = 0; m < modules.size(); ++m) {
    const auto index = static_cast<int64_t>(m);
    const auto in = static_cast<size_t>(modules[m].in_features);
    const auto out = static_cast<size_t>(modules[m].out_features);
    std::vector<float> row(in);
    for (size_t o = 0; o < out; ++o) {
      std::fill(row.begin(), row.end(), 0.0f);
      for (size_t r = 0; r < static_cast<size_t>(modules[m].rank); ++r) {
        const float xb = x.b(index)[r * out + o];
        const float yb = y.b(index)[r * out + o];
        for (size_t i = 0; i < in; ++i) {
          row[i] += xb * x.a(index)[r * in + i] - yb * y.a(index)[r * in + i];
        }
      }
      for (const float value : row) sum += static_cast<double>(value) * value;
    }
  }
  return sum;
}

double Distance(const LoraAdapter& x, const LoraAdapter& y) {
  double sum = 0;
  for (size_t i = 0; i < x.values().size(); ++i) {
    sum += std::pow(x.values()[i] - y.values()[i], 2);
  }
  return sum;
}

Outcome Play(const LoraSpec& spec, const std::vector<std::vector<float>>& masters,
             const DownlinkPlan& how) {
  RunPlan plan;
  plan.lora = spec;
  plan.downlink = how;
  LoraAdapter master(spec);
  const auto set = [&](const std::vector<float>& values) {
    std::copy(values.begin(), values.end(), master.values().begin());
  };
  set(masters[0]);
  const LoraAdapter first = master;
  Downlink downlink(plan);
  downlink.Serve(*downlink.Start(master));
  Outcome outcome;
  std::vector<uint32_t> crcs = {AdapterCrc(downlink.served().values())};
  std::vector<uint64_t> sizes = {0};
  for (size_t version = 1; version < masters.size(); ++version) {
    set(masters[version]);
    auto next = downlink.Next(master, version);
    FEDGE_CHECK(next.ok());
    sizes.push_back(next->content->size());
    outcome.bits += 8.0 * static_cast<double>(sizes.back());
    downlink.Serve(*std::move(next));
    const LoraAdapter held = downlink.served();
    crcs.push_back(AdapterCrc(held.values()));
    outcome.factor_error += std::sqrt(Distance(master, held) / Distance(master, first));
    outcome.product_error +=
        std::sqrt(ProductDistance(master, held) / ProductDistance(master, first));
  }
  const uint64_t last = masters.size() - 1;
  v1::HeldAdapter held;
  held.set_run_id(plan.run_id);
  held.set_start_crc32c(crcs[0]);
  for (const uint64_t missed : {uint64_t{1}, uint64_t{2}, uint64_t{4}, uint64_t{8}, last}) {
    if (missed > last) continue;
    held.set_version(last - missed);
    held.set_values_crc32c(crcs[last - missed]);
    uint64_t chain = 0;
    for (uint64_t v = last - missed + 1; v <= last; ++v) chain += sizes[v];
    uint64_t sent = 0;
    const auto offer = downlink.Offer(last, held);
    for (const v1::ContentRef& ref : offer->deltas()) sent += ref.size_bytes();
    absl::StrAppend(&outcome.ways, " ", missed, ": ", chain, " > ", sent);
  }
  const auto versions = static_cast<double>(masters.size() - 1);
  outcome.bits /= versions * static_cast<double>(spec.num_parameters());
  outcome.factor_error /= versions;
  outcome.product_error /= versions;
  return outcome;
}

LoraSpec SpecOf(const std::string& model, int64_t rank) {
  const auto base = BaseModel::Load(model, *Env::Posix());
  FEDGE_CHECK(base.ok(), base.status().message());
  LoraTargets targets;
  targets.modules = {"all"};
  targets.rank = rank;
  targets.alpha = 2 * static_cast<float>(rank);
  const auto spec = (*base)->MakeLoraSpec(targets);
  FEDGE_CHECK(spec.ok(), spec.status().message());
  return *spec;
}

void Study(const LoraSpec& spec, const std::string& dir) {
  const std::vector<std::vector<float>> masters = ReadMasters(dir);
  FEDGE_CHECK(masters.size() > 1, "no versions");
  std::printf("%zu versions of %zu values\n%-34s %8s %8s %8s\n", masters.size(), masters[0].size(),
              "setting", "bits", "factors", "product");
  const auto row = [&](const std::string& name, const DownlinkPlan& plan) {
    const Outcome outcome = Play(spec, masters, plan);
    std::printf("%-34s %8.4f %8.4f %8.4f  %s\n", name.c_str(), outcome.bits, outcome.factor_error,
                outcome.product_error, outcome.ways.c_str());
  };
  for (const bool plain : {true, false}) {
    for (const double bits : {0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0}) {
      DownlinkPlan plan;
      plan.bits_per_parameter = bits;
      plan.plain = plain;
      row(absl::StrCat(plain ? "plain" : "weighed", ", budget ", bits), plan);
    }
  }
  for (const double density : {0.01, 0.03, 0.1, 0.3}) {
    for (const int levels : {1, 2, 4, 16}) {
      DownlinkPlan plan;
      plan.density = density;
      plan.levels = levels;
      plan.plain = true;
      row(absl::StrCat("plain, density ", density, ", levels ", levels), plan);
    }
  }
}

}  // namespace
}  // namespace fedge

int main(int argc, char** argv) {
  if (argc == 4 && argv[1][0] != '-') {
    fedge::Study(fedge::SpecOf(argv[1], std::atoi(argv[2])), argv[3]);
    return 0;
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
