// One blocked product serves all three directions: C [M, N] (+)= scale * A [M, K] B [K, N].
//
//   forward            y  = x W^T   B[k][n] = W[n][k]   packed: dequantize rows, transpose into
//   strips backward           dx = dy W    B[k][n] = W[k][n]   packed: dequantize rows; dense fp32
//   in place weight gradient    dw = dy^T x  B[k][n] = x[k][n]   in place, A read with a row stride
//   of 1
//
// B is walked in blocks of kDepth x kWidth that fit the second-level cache; inside, the
// micro-kernel keeps R x V vectors of C in registers. The depth blocking is fixed and every element
// of C is summed by one task, so the bits depend on neither the number of threads nor the number of
// rows.
#include "common/tensor/matmul.h"

#include <algorithm>
#include <cstring>

#include "common/base/status.h"
#include "common/tensor/quantize.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/tensor/matmul.cc"
#include <hwy/foreach_target.h>  // must come before highway.h

#include <hwy/aligned_allocator.h>
#include <hwy/highway.h>

#ifndef FEDGE_COMMON_TENSOR_MATMUL_ONCE
#define FEDGE_COMMON_TENSOR_MATMUL_ONCE
namespace fedge {

// A block is a multiple of every quantization block in both directions.
inline constexpr int64_t kDepth = 256;
inline constexpr int64_t kWidth = 256;
// Rows that are transposed together, and their distance: not a power of two, which would put them
// all into the same few sets of the cache.
inline constexpr int64_t kPackRows = 16;
inline constexpr int64_t kPackStride = kDepth + 16;

// The product's operands.
struct Product {
  int64_t m = 0, n = 0, k = 0;
  const float* a = nullptr;
  int64_t a_row_stride = 0;  // A[i][k] = a[i * a_row_stride + k * a_depth_stride]
  int64_t a_depth_stride = 1;
  WeightMatrix b;
  bool b_transposed = false;  // B[k][n] = b[n][k]
  float scale = 1;
  bool accumulate = false;
  float* c = nullptr;  // [m, n]
};

// The part of C one task computes.
struct Tile {
  int64_t row_begin, row_end;  // of C
  int64_t col_begin, col_end;
};

}  // namespace fedge
#endif  // FEDGE_COMMON_TENSOR_MATMUL_ONCE

HWY_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;

// Registers: 32 vectors on AVX-512 and NEON, 16 elsewhere.
#if HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr int kMaxVectors = 4;
constexpr int kRowsByVectors[5] = {0, 24, 12, 8, 6};
#else
constexpr int kMaxVectors = 2;
constexpr int kRowsByVectors[5] = {0, 12, 6, 0, 0};
#endif

// How a strip's operands lie in memory.
struct StripView {
  const float* a;
  int64_t a_row_stride, a_depth_stride;
  const float* b;
  int64_t b_stride;
  int64_t depth;
  float* c;
  int64_t c_stride;
  float scale;
  bool add_to_c;
};

// C [R, V * lanes] (+)= scale * A [R, depth] B [depth, V * lanes].
template <int R, int V>
HWY_INLINE void MicroKernel(const StripView& s) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<D> sum[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) sum[r][v] = hn::Zero(d);
  }
  const float* HWY_RESTRICT b = s.b;
  const float* HWY_RESTRICT a = s.a;
  for (int64_t k = 0; k < s.depth; ++k, b += s.b_stride, a += s.a_depth_stride) {
    hn::Vec<D> row[V];
    for (int v = 0; v < V; ++v) row[v] = hn::LoadU(d, b + v * lanes);
    for (int r = 0; r < R; ++r) {
      const auto factor = hn::Set(d, a[r * s.a_row_stride]);
      for (int v = 0; v < V; ++v) sum[r][v] = hn::MulAdd(factor, row[v], sum[r][v]);
    }
  }
  const auto scale = hn::Set(d, s.scale);
  for (int r = 0; r < R; ++r) {
    float* const c = s.c + r * s.c_stride;
    for (int v = 0; v < V; ++v) {
      const auto product = hn::Mul(sum[r][v], scale);
      const auto result = s.add_to_c ? hn::Add(hn::LoadU(d, c + v * lanes), product) : product;
      hn::StoreU(result, d, c + v * lanes);
    }
  }
}

template <int R, int V>
void Advance(StripView& s, int64_t& rows) {
  while (rows >= R) {
    MicroKernel<R, V>(s);
    s.a += R * s.a_row_stride;
    s.c += R * s.c_stride;
    rows -= R;
  }
}

template <int V>
HWY_NOINLINE void RunStrip(StripView s, int64_t rows) {
  Advance<kRowsByVectors[V], V>(s, rows);
  if constexpr (kRowsByVectors[V] > 8) Advance<8, V>(s, rows);
  if constexpr (kRowsByVectors[V] > 4) Advance<4, V>(s, rows);
  Advance<2, V>(s, rows);
  Advance<1, V>(s, rows);
}

void DispatchStrip(int vectors, const StripView& s, int64_t rows) {
  switch (vectors) {
    case 1:
      return RunStrip<1>(s, rows);
    case 2:
      return RunStrip<2>(s, rows);
#if HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON
    case 3:
      return RunStrip<3>(s, rows);
    case 4:
      return RunStrip<4>(s, rows);
#endif
    default:
      FEDGE_CHECK(false, "strip of ", vectors, " vectors");
  }
}

// Per-thread memory for packed panels: a strip [kDepth, strip width], rows being dequantized, and C
// of a strip whose last vector is not full.
struct PackScratch {
  hwy::AlignedFreeUniquePtr<float[]> panel = hwy::AllocateAligned<float>(kDepth * kWidth);
  hwy::AlignedFreeUniquePtr<float[]> row = hwy::AllocateAligned<float>(kPackRows * kPackStride);
};

PackScratch& ThreadScratch() {
  thread_local PackScratch scratch;
  return scratch;
}

// Panel layout: strips of `strip` columns, each [depth, strip]; columns past the block's end are
// zero.
void PackTransposed(const WeightMatrix& w, int64_t n0, int64_t width, int64_t k0, int64_t depth,
                    int64_t strip, PackScratch& scratch) {
  for (int64_t begin = 0; begin < width; begin += strip) {
    float* const panel = scratch.panel.get() + begin * depth;
    const int64_t columns = std::min(strip, width - begin);
    if (columns < strip) std::fill(panel, panel + depth * strip, 0.0f);
    // A group of rows at a time, so that the panel is written along its rows.
    for (int64_t j0 = 0; j0 < columns; j0 += kPackRows) {
      const int64_t group = std::min(kPackRows, columns - j0);
      for (int64_t j = 0; j < group; ++j) {
        const uint8_t* const blocks = w.Row(n0 + begin + j0 + j) + RowBytes(w.type, k0);
        Dequantize(w.type, blocks, depth, scratch.row.get() + j * kPackStride);
      }
      const float* HWY_RESTRICT rows = scratch.row.get();
      float* HWY_RESTRICT out = panel + j0;
      if (group == kPackRows) {
        for (int64_t k = 0; k < depth; ++k) {
          for (int64_t j = 0; j < kPackRows; ++j) out[k * strip + j] = rows[j * kPackStride + k];
        }
      } else {
        for (int64_t k = 0; k < depth; ++k) {
          for (int64_t j = 0; j < group; ++j) out[k * strip + j] = rows[j * kPackStride + k];
        }
      }
    }
  }
}

void PackRows(const WeightMatrix& w, int64_t n0, int64_t width, int64_t k0, int64_t depth,
              int64_t strip, PackScratch& scratch) {
  for (int64_t k = 0; k < depth; ++k) {
    Dequantize(w.type, w.Row(k0 + k) + RowBytes(w.type, n0), width, scratch.row.get());
    for (int64_t begin = 0; begin < width; begin += strip) {
      float* const out = scratch.panel.get() + begin * depth + k * strip;
      const int64_t columns = std::min(strip, width - begin);
      std::memcpy(out, scratch.row.get() + begin, static_cast<size_t>(columns) * sizeof(float));
      std::fill(out + columns, out + strip, 0.0f);
    }
  }
}

// The last columns of a block whose count is no multiple of the vector: computed into a small
// buffer.
void RunRaggedStrip(int vectors, StripView s, int64_t rows, int64_t columns) {
  constexpr int64_t kRows = 24;
  const int64_t padded = vectors * static_cast<int64_t>(hn::Lanes(D()));
  HWY_ALIGN float buffer[kRows * 64];
  for (int64_t r0 = 0; r0 < rows; r0 += kRows) {
    const int64_t count = std::min(kRows, rows - r0);
    StripView part = s;
    part.a = s.a + r0 * s.a_row_stride;
    part.c = buffer;
    part.c_stride = padded;
    part.add_to_c = false;
    DispatchStrip(vectors, part, count);
    for (int64_t r = 0; r < count; ++r) {
      float* const c = s.c + (r0 + r) * s.c_stride;
      const float* const from = buffer + r * padded;
      for (int64_t j = 0; j < columns; ++j) c[j] = s.add_to_c ? c[j] + from[j] : from[j];
    }
  }
}

void RunBlock(const Product& p, const Tile& tile, int64_t n0, int64_t k0) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(D()));
  const int64_t strip = kMaxVectors * lanes;
  const int64_t width = std::min(kWidth, tile.col_end - n0);
  const int64_t depth = std::min(kDepth, p.k - k0);
  PackScratch& scratch = ThreadScratch();
  // Dense rows need no packing unless the last vector would read past their end.
  const bool in_place = !p.b_transposed && p.b.type == DType::kF32 && width % lanes == 0;
  if (p.b_transposed) {
    PackTransposed(p.b, n0, width, k0, depth, strip, scratch);
  } else if (!in_place) {
    PackRows(p.b, n0, width, k0, depth, strip, scratch);
  }
  for (int64_t begin = 0; begin < width; begin += strip) {
    const int64_t columns = std::min(strip, width - begin);
    const int vectors = static_cast<int>((columns + lanes - 1) / lanes);
    StripView s;
    s.a = p.a + tile.row_begin * p.a_row_stride + k0 * p.a_depth_stride;
    s.a_row_stride = p.a_row_stride;
    s.a_depth_stride = p.a_depth_stride;
    s.b = in_place ? reinterpret_cast<const float*>(p.b.data) + k0 * p.b.cols + n0 + begin
                   : scratch.panel.get() + begin * depth;
    s.b_stride = in_place ? p.b.cols : strip;
    s.depth = depth;
    s.c = p.c + tile.row_begin * p.n + n0 + begin;
    s.c_stride = p.n;
    s.scale = p.scale;
    s.add_to_c = p.accumulate || k0 > 0;
    const int64_t rows = tile.row_end - tile.row_begin;
    if (columns % lanes == 0) {
      DispatchStrip(vectors, s, rows);
    } else {
      RunRaggedStrip(vectors, s, rows, columns);
    }
  }
}

void RunTile(const Product& p, const Tile& tile) {
  for (int64_t n0 = tile.col_begin; n0 < tile.col_end; n0 += kWidth) {
    for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) RunBlock(p, tile, n0, k0);
  }
}

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedge {
namespace {

HWY_EXPORT(RunTile);
HWY_EXPORT(TargetName);

// Splits C into tiles: first by columns (each tile packs its own part of B once), then, when that
// gives too few for the pool, by rows.
void Run(const Product& p, ThreadPool& pool) {
  if (p.m == 0 || p.n == 0) return;
  if (p.k == 0) {
    if (!p.accumulate) std::fill(p.c, p.c + p.m * p.n, 0.0f);
    return;
  }
  const int64_t threads = pool.threads();
  const int64_t col_tiles = (p.n + kWidth - 1) / kWidth;
  const int64_t wanted = threads == 1 ? 1 : 2 * threads;
  constexpr int64_t kMinRows = 24;
  const int64_t row_tiles =
      std::clamp<int64_t>((wanted + col_tiles - 1) / col_tiles, 1, (p.m + kMinRows - 1) / kMinRows);
  const int64_t rows_per_tile =
      ((p.m + row_tiles - 1) / row_tiles + kMinRows - 1) / kMinRows * kMinRows;
  const auto run = HWY_DYNAMIC_DISPATCH(RunTile);
  pool.ParallelFor(col_tiles * row_tiles, [&](int64_t task) {
    Tile tile;
    tile.col_begin = task % col_tiles * kWidth;
    tile.col_end = std::min(p.n, tile.col_begin + kWidth);
    tile.row_begin = std::min(p.m, task / col_tiles * rows_per_tile);
    tile.row_end = std::min(p.m, tile.row_begin + rows_per_tile);
    if (tile.row_begin < tile.row_end) run(p, tile);
  });
}

}  // namespace

void MatMulForward(const WeightMatrix& w, const float* x, int64_t t, float scale,
                   Accumulate accumulate, float* y, ThreadPool& pool) {
  Product p;
  p.m = t;
  p.n = w.rows;
  p.k = w.cols;
  p.a = x;
  p.a_row_stride = w.cols;
  p.b = w;
  p.b_transposed = true;
  p.scale = scale;
  p.accumulate = accumulate == Accumulate::kYes;
  p.c = y;
  Run(p, pool);
}

void MatMulBackward(const WeightMatrix& w, const float* dy, int64_t t, float scale,
                    Accumulate accumulate, float* dx, ThreadPool& pool) {
  Product p;
  p.m = t;
  p.n = w.cols;
  p.k = w.rows;
  p.a = dy;
  p.a_row_stride = w.rows;
  p.b = w;
  p.scale = scale;
  p.accumulate = accumulate == Accumulate::kYes;
  p.c = dx;
  Run(p, pool);
}

void MatMulWeightGradient(const float* dy, const float* x, int64_t t, int64_t rows, int64_t cols,
                          float scale, Accumulate accumulate, float* dw, ThreadPool& pool) {
  Product p;
  p.m = rows;
  p.n = cols;
  p.k = t;
  p.a = dy;
  p.a_row_stride = 1;
  p.a_depth_stride = rows;
  p.b = DenseView(x, t, cols);
  p.scale = scale;
  p.accumulate = accumulate == Accumulate::kYes;
  p.c = dw;
  Run(p, pool);
}

WeightMatrix DenseView(const float* data, int64_t rows, int64_t cols) {
  WeightMatrix view;
  view.data = reinterpret_cast<const uint8_t*>(data);
  view.type = DType::kF32;
  view.rows = rows;
  view.cols = cols;
  return view;
}

std::string SimdTargetName() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

}  // namespace fedge
#endif  // HWY_ONCE
