// Blocked matrix products over dense or quantized operands.
//
// A quantized weight is never expanded as a whole: panels of it are dequantized into cache, packed
// for the SIMD unit and shared by all rows of the other operand. Every output element is summed in
// one fixed order by one thread, so results are the same for any number of threads (they may differ
// between SIMD targets). All matrices are row-major; `ThreadPool` splits the output.
//
// Thread-safety: calls on different outputs may run at once if each has its own ThreadPool.
#ifndef FEDGE_COMMON_TENSOR_MATMUL_H_
#define FEDGE_COMMON_TENSOR_MATMUL_H_

#include <cstdint>
#include <string>

#include "common/base/thread_pool.h"
#include "common/tensor/dtype.h"

namespace fedge {

// What happens to the output's old content.
enum class Accumulate { kNo, kYes };

// How a product with a frozen weight is multiplied. kBFloat16 rounds both operands to bf16 (8 bits
// of precision, relative error 2^-9 each) and sums in fp32; twice the speed where the CPU has the
// dot product, and the same as kFloat32 where it has not.
enum class Precision { kFloat32, kBFloat16 };

// Whether kBFloat16 differs from kFloat32 on this machine (AVX512-BF16).
bool HasBFloat16Dot();

// y [T, rows] (+)= scale * x [T, cols] W^T     (a linear layer forward)
// Up to kMaxVectorRows rows take another path (the weight is memory-bound then), fp32 throughout,
// whose sums have another order.
void MatMulForward(const WeightMatrix& w, const float* x, int64_t t, float scale,
                   Accumulate accumulate, float* y, ThreadPool& pool,
                   Precision precision = Precision::kFloat32);
inline constexpr int64_t kMaxVectorRows = 4;

// dx [T, cols] (+)= scale * dy [T, rows] W     (its gradient with respect to the input)
void MatMulBackward(const WeightMatrix& w, const float* dy, int64_t t, float scale,
                    Accumulate accumulate, float* dx, ThreadPool& pool,
                    Precision precision = Precision::kFloat32);

// dw [rows, cols] (+)= scale * dy^T x, with dy [T, rows] and x [T, cols]   (with respect to the
// weight)
void MatMulWeightGradient(const float* dy, const float* x, int64_t t, int64_t rows, int64_t cols,
                          float scale, Accumulate accumulate, float* dw, ThreadPool& pool);

// A dense fp32 matrix as a WeightMatrix, e.g. a LoRA factor.
WeightMatrix DenseView(const float* data, int64_t rows, int64_t cols);

// The SIMD target in use, e.g. "AVX3_ZEN4"; for logs and reports.
std::string SimdTargetName();

}  // namespace fedge

#endif  // FEDGE_COMMON_TENSOR_MATMUL_H_
