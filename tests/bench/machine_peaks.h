// What the machine can do at best: the denominators of the engine's ratios. Measured in pieces of
// about a millisecond, to be interleaved with what they are compared with.
#ifndef FEDGE_TESTS_BENCH_MACHINE_PEAKS_H_
#define FEDGE_TESTS_BENCH_MACHINE_PEAKS_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/base/thread_pool.h"
#include "common/tensor/matmul.h"

namespace fedge {

// Makes all kernels of this process run as on a machine that has no better target ("AVX2", case
// does not matter). False when this machine has no such target.
bool UseSimdTarget(absl::string_view name);

// Seconds `work` takes. With one thread it is processor time, so that other processes on the
// machine do not count; with more it is the time on the clock.
double Seconds(int threads, const std::function<void()>& work);

// FLOP/s of all threads of the pool together, in one piece: independent fused multiply-adds, or
// bf16 dot products (0 without them), on full vectors in registers.
double FmaPeakOnce(ThreadPool& pool);
double Bf16PeakOnce(ThreadPool& pool);
// Bytes/s of reading memory that fits no cache.
double ReadBandwidthOnce(ThreadPool& pool);

// Those of the frozen products that this machine has.
std::vector<Precision> Precisions();
const char* NameOf(Precision precision);  // "fp32"

}  // namespace fedge

#endif  // FEDGE_TESTS_BENCH_MACHINE_PEAKS_H_
