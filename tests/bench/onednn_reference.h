// oneDNN's dense matrix product, for comparison: y [t, rows] = x [t, cols] W^T with fp32 inputs and
// outputs. Built against libdnnl where that is installed.
#ifndef FEDGE_TESTS_BENCH_ONEDNN_REFERENCE_H_
#define FEDGE_TESTS_BENCH_ONEDNN_REFERENCE_H_

#include <cstdint>
#include <functional>

#include "common/tensor/matmul.h"

namespace fedge {

bool HasOneDnn();

// A product ready to run on one thread over packed weights; null without oneDNN. With bf16 the
// activations are converted in the call, as ours are. `x` and `y` must outlive it.
std::function<void()> OneDnnProduct(Precision precision, const float* weight, const float* x,
                                    int64_t t, int64_t rows, int64_t cols, float* y);

}  // namespace fedge

#endif  // FEDGE_TESTS_BENCH_ONEDNN_REFERENCE_H_
