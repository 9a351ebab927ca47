// SIMD kernels on single rows and small dense blocks: what a transformer does between its big
// matrix products. Single-threaded; callers split rows over a ThreadPool.
//
// Each result is summed in one fixed order for a given SIMD target. Pointers need no alignment.
// `n` is a number of floats; outputs may not overlap inputs unless said.
#ifndef FEDGE_COMMON_TENSOR_ROW_OPS_H_
#define FEDGE_COMMON_TENSOR_ROW_OPS_H_

#include <cstdint>

namespace fedge {

float RowDot(const float* a, const float* b, int64_t n);
void RowAdd(const float* x, int64_t n, float* y);            // y += x
void RowAxpy(float s, const float* x, int64_t n, float* y);  // y += s * x
void RowScale(float s, int64_t n, float* x);                 // x *= s

// y = x * inv * weight; returns inv = 1 / sqrt(mean(x^2) + epsilon) (Zhang, Sennrich 2019). y may
// be x.
float RmsNormRow(const float* x, const float* weight, int64_t n, float epsilon, float* y);
// dx += its gradient for dy.
void RmsNormRowBackward(const float* x, const float* weight, float inv, const float* dy, int64_t n,
                        float* dx);
// dweight += dy * x * inv.
void RmsNormRowWeightGradient(const float* x, float inv, const float* dy, int64_t n,
                              float* dweight);

// Rotates pairs (2i, 2i+1) of x[0, n) (RoPE, Su et al. 2021). `cosine` and `sine` [n] hold each
// pair's values twice, sine signed: (-sin, +sin). RopeRowBackward is the transposed rotation.
void RopeRow(const float* cosine, const float* sine, int64_t n, float* x);
void RopeRowBackward(const float* cosine, const float* sine, int64_t n, float* dx);

// y = silu(gate) * up, silu(x) = x / (1 + exp(-x)) (Shazeer 2020).
void SwiGluRow(const float* gate, const float* up, int64_t n, float* y);
// dgate and dup are overwritten; dgate may be gate, dup may be up or dy.
void SwiGluRowBackward(const float* gate, const float* up, const float* dy, int64_t n, float* dgate,
                       float* dup);

// log(sum(exp(scale * x))), in the same bits as SoftmaxRow.
double LogSumExpRow(const float* x, float scale, int64_t n);
// x = out_scale * softmax(scale * x); returns LogSumExpRow.
double SoftmaxRow(float scale, float out_scale, int64_t n, float* x);
// x = exp(scale * x - shift): the softmax again when shift is its LogSumExpRow.
void ExpRow(float scale, float shift, int64_t n, float* x);
// ds = p * (dp - delta) * scale, in place of dp: the gradient of a softmax row.
void SoftmaxRowBackward(const float* p, float delta, float scale, int64_t n, float* dp);

// out [cols, rows] = x^T with x [rows, cols]; both contiguous rows with strides.
void Transpose(const float* x, int64_t x_stride, int64_t rows, int64_t cols, float* out,
               int64_t out_stride);

// c [m, n] (+)= a b, b [k, n] with contiguous rows, a[i, l] at a[i * a_row + l * a_col]. For blocks
// that fit a cache (attention); the big products are in matmul.h.
struct SmallMatMulShape {
  int64_t m = 0, n = 0, k = 0;
  int64_t a_row = 0, a_col = 1;  // strides of a
  int64_t b_row = 0;
  int64_t c_row = 0;
  bool accumulate = false;
};
void SmallMatMul(const SmallMatMulShape& shape, const float* a, const float* b, float* c);

}  // namespace fedge

#endif  // FEDGE_COMMON_TENSOR_ROW_OPS_H_
