// SIMD kernels on single rows that only some model families need. Conventions as in
// common/tensor/row_ops.h.
#ifndef FEDGE_COMMON_MODEL_FAMILY_ROW_OPS_H_
#define FEDGE_COMMON_MODEL_FAMILY_ROW_OPS_H_

#include <cstdint>

namespace fedge {

// Rotates pairs (i, i + n/2) of x[0, n); `cosine` and `sine` [n/2]. RopeHalvesRowBackward is the
// transposed rotation.
void RopeHalvesRow(const float* cosine, const float* sine, int64_t n, float* x);
void RopeHalvesRowBackward(const float* cosine, const float* sine, int64_t n, float* dx);

// y = gelu(gate) * up with the tanh form (Hendrycks, Gimpel 2016).
void GeluGluRow(const float* gate, const float* up, int64_t n, float* y);
// dgate and dup are overwritten; dgate may be gate, dup may be up or dy.
void GeluGluRowBackward(const float* gate, const float* up, const float* dy, int64_t n,
                        float* dgate, float* dup);

// x = cap * tanh(x / cap).
void SoftCapRow(float cap, int64_t n, float* x);
// dx *= 1 - (y / cap)^2, with y the capped values.
void SoftCapRowBackward(float cap, const float* y, int64_t n, float* dx);

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_FAMILY_ROW_OPS_H_
