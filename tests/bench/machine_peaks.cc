#include "tests/bench/machine_peaks.h"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "absl/strings/match.h"
#include "common/tensor/matmul.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/bench/machine_peaks.cc"
#include <hwy/foreach_target.h>  // must come before highway.h

#include "common/tensor/vector-inl.h"

FEDGE_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {

// As many sums as hide the latency, and no more than there are registers.
constexpr int kSums = HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON ? 24 : 12;

double SpinFma(int64_t rounds, float* sink) {
  const D d;
  V sum[kSums];
  for (V& s : sum) s = hn::Zero(d);
  const V a = hn::Set(d, 1.0000001f), b = hn::Set(d, 1e-9f);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kSums; ++j) sum[j] = hn::MulAdd(sum[j], a, b);
  }
  V total = hn::Zero(d);
  for (const V& s : sum) total = hn::Add(total, s);
  *sink = hn::GetLane(total);
  return 2.0 * kSums * static_cast<double>(LaneCount()) * static_cast<double>(rounds);
}

double SpinBf16(int64_t rounds, float* sink) {
#if FEDGE_BF16_TARGET
  __m512 sum[kSums];
  for (__m512& s : sum) s = _mm512_setzero_ps();
  __m512i bits = _mm512_set1_epi16(0x3f80);
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+v"(bits));  // else the compiler may fold equal sums
#pragma GCC unroll 24
    for (int j = 0; j < kSums; ++j) {
      sum[j] = _mm512_dpbf16_ps(sum[j], (__m512bh)bits, (__m512bh)bits);
    }
  }
  __m512 total = _mm512_setzero_ps();
  for (const __m512& s : sum) total = _mm512_add_ps(total, s);
  *sink = _mm512_cvtss_f32(total);
  return 4.0 * kSums * 16 * static_cast<double>(rounds);
#else
  (void)rounds;
  *sink = 0;
  return 0;
#endif
}

float ReadAll(const float* p, int64_t n) {
  const D d;
  const int64_t lanes = LaneCount();
  V sum[8];
  for (V& s : sum) s = hn::Zero(d);
  for (int64_t i = 0; i + 8 * lanes <= n; i += 8 * lanes) {
    for (int j = 0; j < 8; ++j) sum[j] = hn::Add(sum[j], hn::LoadU(d, p + i + j * lanes));
  }
  V total = hn::Zero(d);
  for (const V& s : sum) total = hn::Add(total, s);
  return hn::GetLane(total);
}

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedge {
namespace {

HWY_EXPORT(SpinFma);
HWY_EXPORT(SpinBf16);
HWY_EXPORT(ReadAll);

std::atomic<float> g_sink{0};  // results that nobody needs but the compiler must compute

double Now(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double RateOnce(ThreadPool& pool, const std::function<double()>& spin) {
  std::vector<double> done(static_cast<size_t>(pool.threads()));
  const double seconds = Seconds(pool.threads(), [&] {
    pool.ParallelFor(pool.threads(), [&](int64_t i) { done[static_cast<size_t>(i)] = spin(); });
  });
  double total = 0;
  for (const double d : done) total += d;
  return total / seconds;
}

}  // namespace

bool UseSimdTarget(absl::string_view name) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    if (!absl::EqualsIgnoreCase(name, hwy::TargetName(target))) continue;
    hwy::SetSupportedTargetsForTest(target);
    return true;
  }
  return false;
}

double Seconds(int threads, const std::function<void()>& work) {
  const clockid_t clock = threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
  const double start = Now(clock);
  work();
  return Now(clock) - start;
}

double FmaPeakOnce(ThreadPool& pool) {
  return RateOnce(pool, [] {
    float sink = 0;
    const double flops = HWY_DYNAMIC_DISPATCH(SpinFma)(300'000, &sink);
    g_sink = sink;
    return flops;
  });
}

double Bf16PeakOnce(ThreadPool& pool) {
  if (!HasBFloat16Dot()) return 0;
  return RateOnce(pool, [] {
    float sink = 0;
    const double flops = HWY_DYNAMIC_DISPATCH(SpinBf16)(300'000, &sink);
    g_sink = sink;
    return flops;
  });
}

double ReadBandwidthOnce(ThreadPool& pool) {
  static const std::vector<float> memory(size_t{1} << 26, 1.0f);
  const int64_t part = static_cast<int64_t>(memory.size()) / pool.threads();
  const double seconds = Seconds(pool.threads(), [&] {
    pool.ParallelFor(pool.threads(), [&](int64_t i) {
      g_sink = HWY_DYNAMIC_DISPATCH(ReadAll)(memory.data() + i * part, part);
    });
  });
  return static_cast<double>(part * pool.threads()) * sizeof(float) / seconds;
}

std::vector<Precision> Precisions() {
  if (HasBFloat16Dot()) return {Precision::kFloat32, Precision::kBFloat16};
  return {Precision::kFloat32};
}

const char* NameOf(Precision precision) {
  return precision == Precision::kBFloat16 ? "bf16" : "fp32";
}

}  // namespace fedge
#endif  // HWY_ONCE
