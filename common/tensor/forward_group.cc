// y = x W^T + s u B^T for a group of layers, in two parallel steps:
//
//   1. per tile of tokens: x is transposed and packed; u^T = A x^T while the tile is in cache
//   2. per block of output columns: W's rows are decoded depth block by depth block and multiplied
//      with all tiles. The sums stand transposed, [columns][tokens], in the second-level cache, get
//      the branch and the bias, and are transposed into y.
//
//            tokens                  tokens
//        +----------+            +-----------+
//   W    | packed x |    =       | block^T   |     broadcast elements of W, vectors of tokens
//        +----------+            +-----------+
#include <algorithm>
#include <vector>

#include "common/base/status.h"
#include "common/tensor/aligned_buffer.h"
#include "common/tensor/linear_group.h"
#include "common/tensor/matmul.h"
#include "common/tensor/vector_product.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/tensor/forward_group.cc"
#include <hwy/foreach_target.h>  // must come before highway.h

#include "common/tensor/panels-inl.h"

#ifndef FEDGE_COMMON_TENSOR_FORWARD_GROUP_ONCE
#define FEDGE_COMMON_TENSOR_FORWARD_GROUP_ONCE
namespace fedge {

// Output columns of a task, a multiple of the micro-kernels' rows; smaller when there would be too
// few tasks.
inline constexpr int64_t kLargeBlock = 192;
inline constexpr int64_t kSmallBlock = 48;
// Tokens of a task: a block's sums take 384 KiB.
inline constexpr int64_t kBlockTokens = 512;

// The rows of one branch in one tile.
struct ForwardSegment {
  int64_t tile;
  size_t branch;
  int64_t begin, end;  // rows
  float* ut;           // [all ranks][tile width], zero outside the segment's rows
  // The same in bf16, when that is the precision: [ranks / 2][tile width][2].
  uint16_t* ut_pairs;
};

struct ForwardPlan {
  absl::Span<const ForwardLayer> layers;
  const float* x = nullptr;
  int64_t t = 0, k = 0;
  int64_t packed_k = 0;  // even
  bool bf16 = false;
  bool accumulate = false;
  int64_t tile_width = 0;  // tokens
  int64_t total_rank = 0;
  void* packed = nullptr;
  std::vector<ForwardSegment> segments;  // by tile
  std::vector<size_t> first_segment;     // of each tile, and the end
};

struct ForwardTask {
  size_t layer;
  int64_t rank_offset;  // of the layer in ut
  int64_t n_begin, n_end;
  int64_t tile_begin, tile_end;
};

}  // namespace fedge
#endif  // FEDGE_COMMON_TENSOR_FORWARD_GROUP_ONCE

FEDGE_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {

int64_t TileWidth() { return StripLanes(); }

struct ForwardScratch {
  AlignedBuffer panel, sums, factor;
};
ForwardScratch& ThreadForwardScratch() {
  thread_local ForwardScratch scratch;
  return scratch;
}

// Panels of W: padded, so that rows do not all start in the same few sets of the cache.
constexpr int64_t kRowStride = kMaxDepth + 32;

int64_t TileRows(const ForwardPlan& p, int64_t tile) {
  return std::min(p.tile_width, p.t - tile * p.tile_width);
}
// Tokens of a tile in memory: the last one's are rounded up to vectors.
int64_t TileLanes(const ForwardPlan& p, int64_t tile) {
  const int64_t lanes = LaneCount();
  return (TileRows(p, tile) + lanes - 1) / lanes * lanes;
}
template <class E>
E* PackedTile(const ForwardPlan& p, int64_t tile) {
  return static_cast<E*>(p.packed) + tile * p.tile_width * p.packed_k;
}

// u^T = A x^T of one layer and segment.
template <class E>
void ComputeU(const ForwardPlan& p, const ForwardSegment& segment, const ForwardLayer& layer,
              float* ut) {
  constexpr int64_t kPair = ElementTraits<E>::kPair;
  const int64_t lanes = LaneCount();
  const int64_t tile_lanes = TileLanes(p, segment.tile);
  const int64_t tile_row = segment.tile * p.tile_width;
  const int64_t rank = layer.lora.rank;
  const int64_t from = (segment.begin - tile_row) / lanes * lanes;
  const int64_t to = (segment.end - tile_row + lanes - 1) / lanes * lanes;
  const WeightMatrix a = DenseView(layer.lora.factors[segment.branch].a, rank, p.k);
  E* const panel = ThreadForwardScratch().panel.Get<E>(kLargeBlock * kRowStride);
  std::fill(ut, ut + rank * p.tile_width, 0.0f);
  for (int64_t r0 = 0; r0 < rank; r0 += kLargeBlock) {
    const int64_t rows = std::min(kLargeBlock, rank - r0);
    for (int64_t k0 = 0; k0 < p.k; k0 += ElementTraits<E>::kDepth) {
      const int64_t depth = std::min(ElementTraits<E>::kDepth, p.k - k0);
      PackWeightRows<E>(a, r0, rows, k0, depth, kRowStride, panel);
      Strip<E> s;
      s.a = panel;
      s.a_row_stride = kRowStride;
      s.b = PackedTile<E>(p, segment.tile) + k0 * tile_lanes + from * kPair;
      s.b_stride = tile_lanes * kPair;
      s.depth = (depth + kPair - 1) / kPair;
      s.c = ut + r0 * p.tile_width + from;
      s.c_stride = p.tile_width;
      s.add_to_c = true;
      RunStrip((to - from) / lanes, s, rows);
    }
  }
  for (int64_t r = 0; r < rank; ++r) {
    float* const row = ut + r * p.tile_width;
    std::fill(row + from, row + segment.begin - tile_row, 0.0f);
    std::fill(row + segment.end - tile_row, row + to, 0.0f);
    for (int64_t i = segment.begin; i < segment.end; ++i) {
      layer.u[i * rank + r] = row[i - tile_row];
    }
  }
}

#if FEDGE_BF16_TARGET
// ut [rank][tile width] -> [rank / 2 rounded up][tile width][2]
void RoundU(const ForwardPlan& p, int64_t rank, const float* ut, Bf16* out) {
  for (int64_t r = 0; r < rank; r += 2) {
    const float* const row = ut + r * p.tile_width;
    for (int64_t i = 0; i < p.tile_width; i += 16) {
      const V odd = r + 1 < rank ? hn::LoadU(D(), row + p.tile_width + i) : hn::Zero(D());
      _mm512_storeu_si512(out + r * p.tile_width + 2 * i, PairsOf(hn::LoadU(D(), row + i), odd));
    }
  }
}

// B^T [rank][stride] -> B [columns][kRowStride] in bf16, an odd rank padded with zeros.
void RoundFactorColumns(const float* bt, int64_t stride, int64_t rank, int64_t columns, Bf16* out) {
  HWY_ALIGN uint32_t pairs[16];
  for (int64_t r = 0; r < rank; r += 2) {
    for (int64_t n = 0; n < columns; n += 16) {
      const float* const row = bt + r * stride + n;
      const V odd = r + 1 < rank ? LoadPart(row + stride, columns - n) : hn::Zero(D());
      _mm512_store_si512(pairs, PairsOf(LoadPart(row, columns - n), odd));
      for (int64_t j = 0; j < std::min<int64_t>(16, columns - n); ++j) {
        std::memcpy(out + (n + j) * kRowStride + r, pairs + j, sizeof(uint32_t));
      }
    }
  }
}
#endif

template <class E>
void PackTileOf(const ForwardPlan& p, int64_t tile) {
  PackTransposed<E>(p.x + tile * p.tile_width * p.k, p.k, TileRows(p, tile), p.k,
                    TileLanes(p, tile), PackedTile<E>(p, tile));
  for (size_t i = p.first_segment[static_cast<size_t>(tile)];
       i < p.first_segment[static_cast<size_t>(tile) + 1]; ++i) {
    const ForwardSegment& segment = p.segments[i];
    int64_t offset = 0;
    for (const ForwardLayer& layer : p.layers) {
      if (layer.lora.rank == 0) continue;
      ComputeU<E>(p, segment, layer, segment.ut + offset);
#if FEDGE_BF16_TARGET
      if constexpr (ElementTraits<E>::kPair == 2) {
        RoundU(p, layer.lora.rank, segment.ut + offset, segment.ut_pairs + offset);
      }
#endif
      offset += (layer.lora.rank + 1) / 2 * 2 * p.tile_width;
    }
  }
}

// sums[n][tokens] += s B u^T of one segment, in the lanes of its rows.
template <class E>
void AddBranch(const ForwardPlan& p, const ForwardTask& task, const ForwardSegment& segment,
               const E* factor, float* sums) {
  constexpr int64_t kPair = ElementTraits<E>::kPair;
  const ForwardLayer& layer = p.layers[task.layer];
  const int64_t lanes = LaneCount();
  const int64_t rank = layer.lora.rank;
  const int64_t tile_row = segment.tile * p.tile_width;
  const int64_t from = (segment.begin - tile_row) / lanes * lanes;
  const int64_t to = (segment.end - tile_row + lanes - 1) / lanes * lanes;
  Strip<E> s;
  if constexpr (kPair == 1) {  // B^T in place
    s.a = layer.lora.factors[segment.branch].bt + task.n_begin;
    s.a_row_stride = 1;
    s.a_depth_stride = layer.w.rows;
    s.b = segment.ut + task.rank_offset * p.tile_width + from;
  } else {
    s.a = factor;
    s.a_row_stride = kRowStride;
    s.b = segment.ut_pairs + task.rank_offset * p.tile_width + from * kPair;
  }
  s.b_stride = p.tile_width * kPair;
  s.depth = (rank + kPair - 1) / kPair;
  s.c = sums + from;
  s.c_stride = p.tile_width;
  s.scale = layer.lora.scale;
  s.add_to_c = true;
  RunStrip((to - from) / lanes, s, task.n_end - task.n_begin);
}

// The branches of all tiles of a task, whose sums are `tile_sums` apart.
template <class E>
void AddBranches(const ForwardPlan& p, const ForwardTask& task, int64_t tile_sums, float* sums) {
  [[maybe_unused]] const ForwardLayer& layer = p.layers[task.layer];
  [[maybe_unused]] const ForwardSegment* last = nullptr;
  for (size_t i = p.first_segment[static_cast<size_t>(task.tile_begin)];
       i < p.first_segment[static_cast<size_t>(task.tile_end)]; ++i) {
    const ForwardSegment& segment = p.segments[i];
    float* const to = sums + (segment.tile - task.tile_begin) * tile_sums;
#if FEDGE_BF16_TARGET
    if (ElementTraits<E>::kPair == 2 && layer.lora.rank <= kMaxDepth) {
      Bf16* const factor = ThreadForwardScratch().factor.Get<Bf16>(kLargeBlock * kRowStride);
      if (last == nullptr || last->branch != segment.branch) {
        RoundFactorColumns(layer.lora.factors[segment.branch].bt + task.n_begin, layer.w.rows,
                           layer.lora.rank, task.n_end - task.n_begin, factor);
      }
      last = &segment;
      AddBranch<Bf16>(p, task, segment, factor, to);
      continue;
    }
#endif
    AddBranch<float>(p, task, segment, nullptr, to);
  }
}

// A square of y (+)= square + bias; kWhole: none of it lies outside of y.
template <bool kWhole>
HWY_INLINE void StoreSquare(const V* square, V bias, bool accumulate, int64_t out, int64_t rows,
                            int64_t columns, float* y) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  for (int64_t i = 0; i < (kWhole ? kLanes : rows); ++i, y += out) {
    V value = hn::Add(square[i], bias);
    if (accumulate) value = hn::Add(value, kWhole ? hn::LoadU(D(), y) : LoadPart(y, columns));
    kWhole ? hn::StoreU(value, D(), y) : StorePart(value, y, columns);
  }
}

// y[tokens][n] (+)= sums^T + bias
void StoreTile(const ForwardPlan& p, const ForwardTask& task, int64_t tile, const float* sums) {
  const ForwardLayer& layer = p.layers[task.layer];
  constexpr int64_t kLanes = hn::MaxLanes(D());
  const int64_t out = layer.w.rows;
  V square[kLanes];
  // Along the rows of y, so that few of its pages are written at a time.
  for (int64_t i0 = 0; i0 < TileRows(p, tile); i0 += kLanes) {
    const int64_t rows = std::min(kLanes, TileRows(p, tile) - i0);
    for (int64_t n = task.n_begin; n < task.n_end; n += kLanes) {
      const int64_t columns = std::min(kLanes, task.n_end - n);
      for (int64_t j = 0; j < kLanes; ++j) {
        square[j] = hn::Load(D(), sums + (n - task.n_begin + j) * p.tile_width + i0);
      }
      TransposeSquare(square);
      const V bias = layer.bias == nullptr ? hn::Zero(D()) : LoadPart(layer.bias + n, columns);
      float* const y = layer.y + (tile * p.tile_width + i0) * out + n;
      if (rows == kLanes && columns == kLanes) {
        StoreSquare<true>(square, bias, p.accumulate, out, rows, columns, y);
      } else {
        StoreSquare<false>(square, bias, p.accumulate, out, rows, columns, y);
      }
    }
  }
}

template <class E>
void RunTask(const ForwardPlan& p, const ForwardTask& task) {
  constexpr int64_t kPair = ElementTraits<E>::kPair;
  const ForwardLayer& layer = p.layers[task.layer];
  const int64_t lanes = LaneCount();
  const int64_t columns = task.n_end - task.n_begin;
  // Whole squares are transposed, of which rows past `columns` are never looked at.
  const int64_t tile_sums = (columns + lanes - 1) / lanes * lanes * p.tile_width;
  ForwardScratch& scratch = ThreadForwardScratch();
  E* const panel = scratch.panel.Get<E>(kLargeBlock * kRowStride);
  const int64_t size = (task.tile_end - task.tile_begin) * tile_sums;
  float* const sums = scratch.sums.Get<float>(size);
  if (p.k == 0) std::fill(sums, sums + size, 0.0f);
  for (int64_t k0 = 0; k0 < p.k; k0 += ElementTraits<E>::kDepth) {
    const int64_t depth = std::min(ElementTraits<E>::kDepth, p.k - k0);
    PackWeightRows<E>(layer.w, task.n_begin, columns, k0, depth, kRowStride, panel);
    for (int64_t tile = task.tile_begin; tile < task.tile_end; ++tile) {
      const int64_t tile_lanes = TileLanes(p, tile);
      Strip<E> s;
      s.a = panel;
      s.a_row_stride = kRowStride;
      s.b = PackedTile<E>(p, tile) + k0 * tile_lanes;
      s.b_stride = tile_lanes * kPair;
      s.depth = (depth + kPair - 1) / kPair;
      s.c = sums + (tile - task.tile_begin) * tile_sums;
      s.c_stride = p.tile_width;
      s.scale = layer.scale;
      s.add_to_c = k0 > 0;
      RunStrip(tile_lanes / lanes, s, columns);
    }
  }
  if (layer.lora.rank > 0) AddBranches<E>(p, task, tile_sums, sums);
  for (int64_t tile = task.tile_begin; tile < task.tile_end; ++tile) {
    StoreTile(p, task, tile, sums + (tile - task.tile_begin) * tile_sums);
  }
}

void PackForwardTile(const ForwardPlan& p, int64_t tile) {
#if FEDGE_BF16_TARGET
  if (p.bf16) return PackTileOf<Bf16>(p, tile);
#endif
  PackTileOf<float>(p, tile);
}

void RunForwardTask(const ForwardPlan& p, const ForwardTask& task) {
#if FEDGE_BF16_TARGET
  if (p.bf16) return RunTask<Bf16>(p, task);
#endif
  RunTask<float>(p, task);
}

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedge {
namespace {

HWY_EXPORT(TileWidth);
HWY_EXPORT(PackForwardTile);
HWY_EXPORT(RunForwardTask);

// Scratch of the calling thread, read by all.
struct GroupScratch {
  AlignedBuffer packed, ut, ut_pairs;
};

// Ranks of a layer in ForwardSegment::ut.
int64_t EvenRank(const ForwardLayer& layer) { return (layer.lora.rank + 1) / 2 * 2; }

// Cuts the branches' rows at tile boundaries; without branches there are no segments.
void AddSegments(const LinearRows& rows, GroupScratch& scratch, ForwardPlan& p) {
  const int64_t tiles = (p.t + p.tile_width - 1) / p.tile_width;
  p.first_segment.assign(static_cast<size_t>(tiles) + 1, 0);
  if (p.total_rank == 0) return;
  int64_t begin = 0;
  for (size_t branch = 0; branch < rows.ends.size(); ++branch) {
    while (begin < rows.ends[branch]) {
      const int64_t tile = begin / p.tile_width;
      const int64_t end = std::min(rows.ends[branch], (tile + 1) * p.tile_width);
      p.segments.push_back({tile, branch, begin, end, nullptr, nullptr});
      ++p.first_segment[static_cast<size_t>(tile) + 1];
      begin = end;
    }
  }
  for (size_t i = 1; i < p.first_segment.size(); ++i) p.first_segment[i] += p.first_segment[i - 1];
  const int64_t size = p.total_rank * p.tile_width;
  const int64_t count = static_cast<int64_t>(p.segments.size());
  float* const ut = scratch.ut.Get<float>(count * size);
  uint16_t* const ut_pairs = scratch.ut_pairs.Get<uint16_t>(p.bf16 ? count * size : 0);
  for (int64_t i = 0; i < count; ++i) {
    ForwardSegment& segment = p.segments[static_cast<size_t>(i)];
    segment.ut = ut + i * size;
    segment.ut_pairs = ut_pairs + i * size;
  }
}

// Whether moving rows between processors costs more than decoding the weights once a thread.
bool SmallProduct(const ForwardPlan& p) {
  constexpr int64_t kSmall = int64_t{1} << 27;  // multiply-adds: some hundred microseconds
  int64_t columns = 0;
  for (const ForwardLayer& layer : p.layers) columns += layer.w.rows;
  return p.t * p.k * columns < kSmall;
}

// Which outputs each task computes; the results do not depend on it.
std::vector<ForwardTask> Split(const ForwardPlan& p, int threads) {
  const auto blocks_of = [&](int64_t block) {
    int64_t count = 0;
    for (const ForwardLayer& layer : p.layers) {
      if (layer.y != nullptr) count += (layer.w.rows + block - 1) / block;
    }
    return count;
  };
  const int64_t wanted = threads == 1 ? 1 : 4 * threads;
  int64_t block = kLargeBlock;
  while (block > kSmallBlock && blocks_of(block) < wanted) block /= 2;
  const int64_t tiles = static_cast<int64_t>(p.first_segment.size()) - 1;
  const int64_t blocks = std::max<int64_t>(1, blocks_of(block));
  int64_t least_parts = (wanted / 2 + blocks - 1) / blocks;
  if (SmallProduct(p)) least_parts = std::max<int64_t>(least_parts, threads);
  const int64_t parts =
      std::clamp<int64_t>(std::max(least_parts, (p.t + kBlockTokens - 1) / kBlockTokens), 1, tiles);
  // Part by part: the thread that packed these rows multiplies them, too.
  std::vector<ForwardTask> tasks;
  for (int64_t part = 0; part < parts; ++part) {
    int64_t rank_offset = 0;
    for (size_t i = 0; i < p.layers.size(); ++i) {
      const ForwardLayer& layer = p.layers[i];
      for (int64_t n = 0; layer.y != nullptr && n < layer.w.rows; n += block) {
        tasks.push_back({i, rank_offset, n, std::min(n + block, layer.w.rows), part * tiles / parts,
                         (part + 1) * tiles / parts});
      }
      rank_offset += EvenRank(layer);
    }
  }
  return tasks;
}

void CheckLayers(absl::Span<const ForwardLayer> layers, const LinearRows& rows) {
  for (const ForwardLayer& layer : layers) {
    FEDGE_CHECK(layer.w.cols == layers[0].w.cols, "layers of one group with inputs of ",
                layers[0].w.cols, " and ", layer.w.cols);
    if (layer.lora.rank == 0) continue;
    FEDGE_CHECK(layer.lora.factors.size() == rows.ends.size() && rows.ends.back() == rows.t,
                "layer with ", layer.lora.factors.size(), " branches for ", rows.ends.size(),
                " parts of the rows");
  }
}

}  // namespace

void ForwardGroup(absl::Span<const ForwardLayer> layers, const float* x, const LinearRows& rows,
                  Precision precision, Accumulate accumulate, ThreadPool& pool) {
  if (layers.empty() || rows.t == 0) return;
  CheckLayers(layers, rows);
  if (rows.t <= kMaxVectorRows) return ForwardVectors(layers, x, rows, accumulate, pool);
  thread_local GroupScratch scratch;
  ForwardPlan p;
  p.layers = layers;
  p.x = x;
  p.t = rows.t;
  p.k = layers[0].w.cols;
  p.packed_k = (p.k + 1) / 2 * 2;
  p.bf16 = precision == Precision::kBFloat16 && HasBFloat16Dot();
  p.accumulate = accumulate == Accumulate::kYes;
  p.tile_width = HWY_DYNAMIC_DISPATCH(TileWidth)();
  for (const ForwardLayer& layer : layers) p.total_rank += EvenRank(layer);
  AddSegments(rows, scratch, p);
  const int64_t tiles = static_cast<int64_t>(p.first_segment.size()) - 1;
  const int64_t size = tiles * p.tile_width * p.packed_k;
  p.packed = p.bf16 ? static_cast<void*>(scratch.packed.Get<uint16_t>(size))
                    : scratch.packed.Get<float>(size);
  const auto pack = HWY_DYNAMIC_DISPATCH(PackForwardTile);
  pool.ParallelFor(tiles, [&](int64_t tile) { pack(p, tile); });
  const std::vector<ForwardTask> tasks = Split(p, pool.threads());
  const auto run = HWY_DYNAMIC_DISPATCH(RunForwardTask);
  pool.ParallelFor(static_cast<int64_t>(tasks.size()),
                   [&](int64_t i) { run(p, tasks[static_cast<size_t>(i)]); });
}

}  // namespace fedge
#endif  // HWY_ONCE
