// The innermost loops of the blocked products: a few rows times a strip of columns, held in
// registers over the depth of the sum. Included once per SIMD target.
//
// Elements are fp32 or bf16. The depth of bf16 operands is counted in pairs, since the dot product
// takes two products a step: a row of A holds pairs side by side, a row of B interleaves two rows.
#if defined(FEDGE_COMMON_TENSOR_MICRO_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FEDGE_COMMON_TENSOR_MICRO_KERNEL_INL_H_
#undef FEDGE_COMMON_TENSOR_MICRO_KERNEL_INL_H_
#else
#define FEDGE_COMMON_TENSOR_MICRO_KERNEL_INL_H_
#endif

#include <algorithm>

#include "common/base/status.h"
#include "common/tensor/vector-inl.h"

FEDGE_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {

using Bf16 = uint16_t;

// Registers: 32 vectors on AVX-512 and NEON, 16 elsewhere.
#if HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr int kMaxVectors = 4;
constexpr int kSkinnyVectors = 3;  // of products with few rows: 8 of them at a time
constexpr int kRowsByVectors[5] = {0, 12, 12, 8, 6};
#else
constexpr int kMaxVectors = 2;
constexpr int kSkinnyVectors = 2;
constexpr int kRowsByVectors[5] = {0, 12, 6, 0, 0};
#endif

HWY_INLINE int64_t StripLanes() { return kMaxVectors * LaneCount(); }

// What differs between the elements. kDepth: how much of a sum is done before its next block is
// packed: a strip of B of this depth and of the longest vectors takes 32 KiB of the first cache.
template <class E>
struct ElementTraits;
template <>
struct ElementTraits<float> {
  static constexpr int64_t kDepth = 128;
  static constexpr int64_t kPair = 1;
};
template <>
struct ElementTraits<Bf16> {
  static constexpr int64_t kDepth = 256;
  static constexpr int64_t kPair = 2;
};
inline constexpr int64_t kMaxDepth = 256;

// C [rows, columns] (+)= scale * A [rows, depth] B [depth, columns]
template <class E>
struct Strip {
  const E* a = nullptr;  // strides in elements
  int64_t a_row_stride = 0;
  int64_t a_depth_stride = ElementTraits<E>::kPair;
  const E* b = nullptr;
  int64_t b_stride = 0;
  int64_t depth = 0;  // of bf16: pairs
  float* c = nullptr;
  int64_t c_stride = 0;
  float scale = 1;
  bool add_to_c = false;
};

template <int N>
HWY_INLINE void MultiplyStep(const Strip<float>& s, const float* a, const float* b, int rows,
                             V (*sum)[N]) {
  const D d;
  V row[N];
  for (int v = 0; v < N; ++v) row[v] = hn::LoadU(d, b + v * LaneCount());
  for (int r = 0; r < rows; ++r) {
    const V factor = hn::Set(d, a[r * s.a_row_stride]);
    for (int v = 0; v < N; ++v) sum[r][v] = hn::MulAdd(factor, row[v], sum[r][v]);
  }
}

#if FEDGE_BF16_TARGET
template <int N>
HWY_INLINE void MultiplyStep(const Strip<Bf16>& s, const Bf16* a, const Bf16* b, int rows,
                             V (*sum)[N]) {
  __m512bh row[N];
  for (int v = 0; v < N; ++v) row[v] = (__m512bh)_mm512_loadu_si512(b + v * 32);
  for (int r = 0; r < rows; ++r) {
    int32_t pair;
    std::memcpy(&pair, a + r * s.a_row_stride, sizeof(pair));
    const __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
    for (int v = 0; v < N; ++v) sum[r][v].raw = _mm512_dpbf16_ps(sum[r][v].raw, factor, row[v]);
  }
}
#endif

template <int R, int N, class E>
HWY_INLINE void MicroKernel(const Strip<E>& s) {
  const D d;
  const int64_t lanes = LaneCount();
  V sum[R][N];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < N; ++v) sum[r][v] = hn::Zero(d);
  }
  // Kept in memory until the sums are done: with 16 registers none is left for it.
  float scale_value = s.scale;
  asm("" : "+m"(scale_value));
  const E* HWY_RESTRICT a = s.a;
  const E* HWY_RESTRICT b = s.b;
  for (int64_t k = 0; k < s.depth; ++k, a += s.a_depth_stride, b += s.b_stride) {
    MultiplyStep<N>(s, a, b, R, sum);
  }
  const V scale = hn::Set(d, scale_value);
  for (int r = 0; r < R; ++r) {
    float* const c = s.c + r * s.c_stride;
    for (int v = 0; v < N; ++v) {
      const V product = hn::Mul(sum[r][v], scale);
      const V result = s.add_to_c ? hn::Add(hn::LoadU(d, c + v * lanes), product) : product;
      hn::StoreU(result, d, c + v * lanes);
    }
  }
}

template <int R, int N, class E>
HWY_INLINE void AdvanceRows(Strip<E>& s, int64_t& rows) {
  while (rows >= R) {
    MicroKernel<R, N>(s);
    s.a += R * s.a_row_stride;
    s.c += R * s.c_stride;
    rows -= R;
  }
}

template <int N, class E>
HWY_NOINLINE void RunRows(Strip<E> s, int64_t rows) {
  AdvanceRows<kRowsByVectors[N], N>(s, rows);
  if constexpr (kRowsByVectors[N] > 8) AdvanceRows<8, N>(s, rows);
  if constexpr (kRowsByVectors[N] > 4) AdvanceRows<4, N>(s, rows);
  AdvanceRows<2, N>(s, rows);
  AdvanceRows<1, N>(s, rows);
}

// `vectors` whole vectors of columns.
template <class E>
void RunStrip(int64_t vectors, const Strip<E>& s, int64_t rows) {
  switch (vectors) {
    case 1:
      return RunRows<1>(s, rows);
    case 2:
      return RunRows<2>(s, rows);
#if HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON
    case 3:
      return RunRows<3>(s, rows);
    case 4:
      return RunRows<4>(s, rows);
#endif
    default:
      FEDGE_CHECK(false, "strip of ", vectors, " vectors");
  }
}

// Any number of columns up to a strip's. B's rows must be readable up to whole vectors; of C only
// `columns` are written.
template <class E>
void RunRaggedStrip(int64_t columns, const Strip<E>& s, int64_t rows) {
  const int64_t vectors = (columns + LaneCount() - 1) / LaneCount();
  if (columns % LaneCount() == 0) return RunStrip(vectors, s, rows);
  constexpr int64_t kRows = 24;
  HWY_ALIGN float buffer[kRows * kMaxVectors * hn::MaxLanes(D())];
  for (int64_t r0 = 0; r0 < rows; r0 += kRows) {
    const int64_t count = std::min(kRows, rows - r0);
    Strip<E> part = s;
    part.a = s.a + r0 * s.a_row_stride;
    part.c = buffer;
    part.c_stride = vectors * LaneCount();
    part.add_to_c = false;
    RunStrip(vectors, part, count);
    for (int64_t r = 0; r < count; ++r) {
      float* const c = s.c + (r0 + r) * s.c_stride;
      const float* const from = buffer + r * part.c_stride;
      for (int64_t j = 0; j < columns; ++j) c[j] = s.add_to_c ? c[j] + from[j] : from[j];
    }
  }
}

// Any number of columns, N vectors at a time; rows of B readable up to `columns` only.
template <int N>
HWY_INLINE void RunDenseColumns(int64_t columns, Strip<float> s, int64_t rows) {
  const int64_t lanes = LaneCount();
  const int64_t whole = columns / lanes * lanes;
  for (int64_t j = 0; j < whole; j += N * lanes) {
    Strip<float> part = s;
    part.b = s.b + j;
    part.c = s.c + j;
    RunStrip(std::min<int64_t>(N, (whole - j) / lanes), part, rows);
  }
  if (whole == columns) return;
  HWY_ALIGN float tail[kMaxDepth * hn::MaxLanes(D())];
  for (int64_t k = 0; k < s.depth; ++k) {
    hn::Store(LoadPart(s.b + k * s.b_stride + whole, columns - whole), D(), tail + k * lanes);
  }
  s.b = tail;
  s.b_stride = lanes;
  s.c += whole;
  RunRaggedStrip(columns - whole, s, rows);
}

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
