// Quantized matrix products against the machine's fp32 FMA peak, measured in the same run.
//
//   build/release/bin/matmul_bench --benchmark_repetitions=5
//
// Counter `of_peak` = share of the one-thread FMA peak (this binary's FmaPeak, AVX-512/AVX2 via
// Highway).
#include <benchmark/benchmark.h>

#include <chrono>
#include <vector>

#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/tensor/matmul.h"
#include "common/tensor/quantize.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/bench/matmul_bench.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// `rounds` x 16 independent fused multiply-adds on full vectors; returns the floating-point
// operations.
double SpinFma(int64_t rounds, float* sink) {
  const hn::ScalableTag<float> d;
  hn::Vec<decltype(d)> sum[16];
  for (auto& s : sum) s = hn::Zero(d);
  const auto a = hn::Set(d, 1.0000001f), b = hn::Set(d, 1e-9f);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) sum[j] = hn::MulAdd(sum[j], a, b);
  }
  auto total = hn::Zero(d);
  for (auto& s : sum) total = hn::Add(total, s);
  *sink = hn::GetLane(total);
  return 2.0 * 16 * static_cast<double>(hn::Lanes(d)) * static_cast<double>(rounds);
}

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedge {
namespace {

HWY_EXPORT(SpinFma);

// FLOP/s of one thread, best of 5.
double FmaPeak() {
  static const double peak = [] {
    double best = 0;
    float sink = 0;
    for (int i = 0; i < 5; ++i) {
      const auto start = std::chrono::steady_clock::now();
      const double flops = HWY_DYNAMIC_DISPATCH(SpinFma)(20'000'000, &sink);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      best = std::max(best, flops / seconds.count());
    }
    benchmark::DoNotOptimize(sink);
    return best;
  }();
  return peak;
}

enum class Direction { kForward, kBackward, kWeightGradient };

void Product(benchmark::State& state, DType type, Direction direction) {
  const int64_t t = state.range(0), rows = state.range(1), cols = state.range(2);
  Rng rng(1);
  std::vector<float> values(static_cast<size_t>(rows * cols)), x(static_cast<size_t>(t * cols)),
      y(static_cast<size_t>(t * rows)), dw;
  for (auto* v : {&values, &x, &y}) {
    for (float& f : *v) f = static_cast<float>(rng.Normal());
  }
  std::vector<uint8_t> bytes(static_cast<size_t>(rows * RowBytes(type, cols)));
  FEDGE_CHECK(Quantize(type, values, bytes.data()).ok());
  if (direction == Direction::kWeightGradient) dw.resize(values.size());
  const WeightMatrix w{bytes.data(), type, rows, cols};
  ThreadPool pool(1);
  const double peak = FmaPeak();
  for (auto _ : state) {
    switch (direction) {
      case Direction::kForward:
        MatMulForward(w, x.data(), t, 1, Accumulate::kNo, y.data(), pool);
        break;
      case Direction::kBackward:
        MatMulBackward(w, y.data(), t, 1, Accumulate::kNo, x.data(), pool);
        break;
      case Direction::kWeightGradient:
        MatMulWeightGradient(y.data(), x.data(), t, rows, cols, 1, Accumulate::kNo, dw.data(),
                             pool);
        break;
    }
    benchmark::ClobberMemory();
  }
  const double flops =
      2.0 * static_cast<double>(t * rows * cols) * static_cast<double>(state.iterations());
  state.counters["flop/s"] = benchmark::Counter(flops, benchmark::Counter::kIsRate);
  state.counters["of_peak"] = benchmark::Counter(flops / peak, benchmark::Counter::kIsRate);
}

void Shapes(benchmark::internal::Benchmark* b) {
  b->Args({512, 896, 896})->Args({512, 4864, 896})->Args({512, 896, 4864})->Args({512, 256, 256});
  b->Args({512, 688, 256})->Args({512, 16, 896});
  b->Unit(benchmark::kMillisecond);
}

BENCHMARK_CAPTURE(Product, q8_0_forward, DType::kQ8_0, Direction::kForward)->Apply(Shapes);
BENCHMARK_CAPTURE(Product, f32_forward, DType::kF32, Direction::kForward)->Apply(Shapes);
BENCHMARK_CAPTURE(Product, f32_backward, DType::kF32, Direction::kBackward)->Apply(Shapes);
BENCHMARK_CAPTURE(Product, f32_weight_gradient, DType::kF32, Direction::kWeightGradient)
    ->Apply(Shapes);

}  // namespace
}  // namespace fedge

BENCHMARK_MAIN();
#endif  // HWY_ONCE
