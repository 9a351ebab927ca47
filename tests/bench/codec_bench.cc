// Encoding and decoding updates: bytes of fp32 values a second against memcpy of the same values in
// the same run, and bits a parameter. 2.2 and 8.8 million parameters are rank 4 and 16 on all
// linear layers of a 0.5 B model.
//
//   build/release/bin/codec_bench --benchmark_repetitions=5 --benchmark_report_aggregates_only
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/codec/error_feedback.h"
#include "common/codec/update_codec.h"
#include "server/aggregator.h"
#include "tests/testing/update_samples.h"

namespace fedge {
namespace {

using testing::FlatLayout;
using testing::FlatSpec;
using testing::RandomDelta;
using testing::SampleHeader;

const std::vector<float>& Delta(int64_t size) {
  static auto* const deltas = new std::map<int64_t, std::vector<float>>;
  std::vector<float>& delta = (*deltas)[size];
  if (delta.empty()) delta = RandomDelta(static_cast<size_t>(size), 1);
  return delta;
}

// Arguments: parameters, density in 1/1000 (0: dense fp16), bits.
EncodeOptions OptionsOf(const benchmark::State& state) {
  if (state.range(1) == 0) return {.support = UpdateSupport::kDense, .value_bits = 16};
  return {.support = UpdateSupport::kTopK,
          .density = static_cast<double>(state.range(1)) / 1000,
          .value_bits = static_cast<int>(state.range(2))};
}

// Seconds one memcpy of `size` floats takes: the best of nine.
double MemcpySeconds(int64_t size) {
  const std::vector<float>& from = Delta(size);
  std::vector<float> to(from.size());
  double best = 1e9;
  for (int i = 0; i < 9; ++i) {
    const auto start = std::chrono::steady_clock::now();
    std::memcpy(to.data(), from.data(), from.size() * sizeof(float));
    benchmark::ClobberMemory();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::min(best, elapsed.count());
  }
  return best;
}

using SteadyTime = std::chrono::steady_clock::time_point;

void Report(benchmark::State& state, size_t encoded_bytes, SteadyTime start) {
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  const auto size = state.range(0);
  state.SetItemsProcessed(state.iterations() * size);
  state.SetBytesProcessed(state.iterations() * size * static_cast<int64_t>(sizeof(float)));
  state.counters["bits/param"] =
      8.0 * static_cast<double>(encoded_bytes) / static_cast<double>(size);
  // Time of one iteration in memcpys of the same fp32 values.
  state.counters["memcpys"] =
      elapsed.count() / static_cast<double>(state.iterations()) / MemcpySeconds(size);
}

void BM_Encode(benchmark::State& state) {
  const std::vector<float>& delta = Delta(state.range(0));
  const UpdateHeader header = SampleHeader();
  size_t bytes = 0;
  const SteadyTime start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    const auto encoded =
        EncodeUpdate(delta, FlatLayout(delta.size()), header, OptionsOf(state), {});
    FEDGE_CHECK(encoded.ok());
    bytes = encoded->size();
  }
  Report(state, bytes, start);
}

void BM_EncodeWithErrorFeedback(benchmark::State& state) {
  const std::vector<float>& delta = Delta(state.range(0));
  const UpdateHeader header = SampleHeader();
  ErrorFeedback feedback(header.layout_hash, header.base_model, delta.size());
  size_t bytes = 0;
  const SteadyTime start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    const auto encoded =
        feedback.Prepare(delta, FlatLayout(delta.size()), header, OptionsOf(state));
    FEDGE_CHECK(encoded.ok());
    feedback.Commit();
    bytes = encoded->size();
  }
  Report(state, bytes, start);
}

void BM_Decode(benchmark::State& state) {
  const std::vector<float>& delta = Delta(state.range(0));
  const UpdateHeader header = SampleHeader();
  const auto encoded = EncodeUpdate(delta, FlatLayout(delta.size()), header, OptionsOf(state), {});
  FEDGE_CHECK(encoded.ok());
  const SteadyTime start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    const auto decoded = DecodeUpdate(*encoded, header.layout_hash, FlatLayout(delta.size()));
    FEDGE_CHECK(decoded.ok());
    benchmark::DoNotOptimize(decoded->values.data());
  }
  Report(state, encoded->size(), start);
}

// One node's share of a round on the server after decoding.
void BM_Accumulate(benchmark::State& state) {
  const std::vector<float>& delta = Delta(state.range(0));
  const LoraSpec spec = FlatSpec(delta.size());
  const SliceLayout layout = SliceLayout::Whole(spec);
  UpdateAggregator aggregator(spec);
  const SteadyTime start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    if (!aggregator.Accumulate({.layout = &layout, .values = delta}, 100).ok()) {
      aggregator = UpdateAggregator(spec);
    }
  }
  Report(state, 0, start);
}

void Shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"params", "permille", "bits"})->Unit(benchmark::kMillisecond);
  for (const int64_t size : {2'200'000, 8'800'000}) {
    bench->Args({size, 0, 16});
    bench->Args({size, 10, 2});
    bench->Args({size, 50, 4});
    bench->Args({size, 200, 8});
  }
}

BENCHMARK(BM_Encode)->Apply(Shapes);
BENCHMARK(BM_EncodeWithErrorFeedback)->Apply(Shapes);
BENCHMARK(BM_Decode)->Apply(Shapes);
BENCHMARK(BM_Accumulate)->Arg(2'200'000)->Arg(8'800'000)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace fedge

BENCHMARK_MAIN();
