// The gradients of a group of layers, in two parallel steps:
//
//   1. per block of rows: dy rounded to bf16 (when that is the precision), du = s dy B
//   2. three kinds of independent tasks, each with outputs of its own:
//        columns of dx   sum over the layers of dy W + du A, W decoded panel by panel
//        columns of dA   du^T x of all layers, while the part of x is in the first cache
//        columns of dB   s u^T dy
#include <algorithm>
#include <vector>

#include "common/base/status.h"
#include "common/tensor/aligned_buffer.h"
#include "common/tensor/linear_group.h"
#include "common/tensor/matmul.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/tensor/backward_group.cc"
#include <hwy/foreach_target.h>  // must come before highway.h

#include "common/tensor/panels-inl.h"

#ifndef FEDGE_COMMON_TENSOR_BACKWARD_GROUP_ONCE
#define FEDGE_COMMON_TENSOR_BACKWARD_GROUP_ONCE
namespace fedge {

// dy of a layer in bf16: blocks of kMaxDepth columns, each [t][stride].
struct RoundedGradient {
  uint16_t* data = nullptr;
  int64_t stride = 0;
};

struct BackwardPlan {
  absl::Span<const BackwardLayer> layers;
  const float* x = nullptr;
  LinearRows rows;
  int64_t in = 0;
  bool bf16 = false;
  bool accumulate = false;
  float* dx = nullptr;
  std::vector<RoundedGradient> rounded;  // of each layer, when bf16
};

// Step 1.
struct RowsTask {
  size_t layer;
  int64_t begin, end;
};

// Step 2.
struct ColumnsTask {
  enum Kind { kInput, kFactorA, kFactorB } kind;
  size_t layer;  // of kFactorB
  int64_t column_begin, column_end;
  int64_t row_begin, row_end;  // of kInput
};

}  // namespace fedge
#endif  // FEDGE_COMMON_TENSOR_BACKWARD_GROUP_ONCE

FEDGE_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {

// Runs body(branch, first row, end) for the branches with rows in [begin, end).
template <class Body>
HWY_INLINE void ForEachBranch(const LinearRows& rows, int64_t begin, int64_t end,
                              const Body& body) {
  int64_t first = 0;
  for (size_t i = 0; i < rows.ends.size(); ++i) {
    const int64_t from = std::max(first, begin), to = std::min(rows.ends[i], end);
    if (from < to) body(i, from, to);
    first = rows.ends[i];
  }
}

// out[i * out_stride + j] = scale * dot(a_i, b_j) over n, T rows of a and R rows of b.
struct DotShape {
  int64_t n;
  int64_t a_stride, b_stride, out_stride;
  float scale;
};
template <int T, int R>
HWY_INLINE void DotTile(const DotShape& s, const float* a, const float* b, float* out) {
  const int64_t lanes = LaneCount();
  V sum[T][R];
  for (int i = 0; i < T; ++i) {
    for (int j = 0; j < R; ++j) sum[i][j] = hn::Zero(D());
  }
  int64_t k = 0;
  for (; k + lanes <= s.n; k += lanes) {
    V row[R];
    for (int j = 0; j < R; ++j) row[j] = hn::LoadU(D(), b + j * s.b_stride + k);
    for (int i = 0; i < T; ++i) {
      const V value = hn::LoadU(D(), a + i * s.a_stride + k);
      for (int j = 0; j < R; ++j) sum[i][j] = hn::MulAdd(value, row[j], sum[i][j]);
    }
  }
  for (int i = 0; i < T; ++i) {
    const V rest = LoadPart(a + i * s.a_stride + k, s.n - k);
    for (int j = 0; j < R; ++j) {
      const V last = hn::MulAdd(rest, LoadPart(b + j * s.b_stride + k, s.n - k), sum[i][j]);
      out[i * s.out_stride + j] = s.scale * hn::GetLane(hn::SumOfLanes(D(), last));
    }
  }
}

#if HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr int kDotRows = 6;
#else
constexpr int kDotRows = 2;
#endif
constexpr int kDotRanks = 4;

template <int T>
void DotRanks(const DotShape& s, const float* a, const float* b, int64_t rank, float* out) {
  int64_t j = 0;
  for (; j + kDotRanks <= rank; j += kDotRanks) {
    DotTile<T, kDotRanks>(s, a, b + j * s.b_stride, out + j);
  }
  for (; j < rank; ++j) DotTile<T, 1>(s, a, b + j * s.b_stride, out + j);
}

// du = s dy B for rows of one branch.
HWY_NOINLINE void ComputeDu(const BackwardLayer& layer, size_t branch, int64_t begin, int64_t end) {
  const int64_t out = layer.w.rows, rank = layer.lora.rank;
  const DotShape shape = {out, out, out, rank, layer.lora.scale};
  const float* const bt = layer.lora.factors[branch].bt;
  int64_t i = begin;
  for (; i + kDotRows <= end; i += kDotRows) {
    DotRanks<kDotRows>(shape, layer.dy + i * out, bt, rank, layer.du + i * rank);
  }
  for (; i < end; ++i) DotRanks<1>(shape, layer.dy + i * out, bt, rank, layer.du + i * rank);
}

void PrepareRows(const BackwardPlan& p, const RowsTask& task) {
  const BackwardLayer& layer = p.layers[task.layer];
#if FEDGE_BF16_TARGET
  if (p.bf16) {
    const RoundedGradient& rounded = p.rounded[task.layer];
    const int64_t out = layer.w.rows;
    for (int64_t i = task.begin; i < task.end; ++i) {
      for (int64_t n = 0; n < out; n += kMaxDepth) {
        RoundRow(layer.dy + i * out + n, std::min(kMaxDepth, out - n),
                 rounded.data + (n / kMaxDepth * p.rows.t + i) * rounded.stride);
      }
    }
  }
#endif
  if (layer.lora.rank == 0) return;
  ForEachBranch(p.rows, task.begin, task.end,
                [&](size_t branch, int64_t from, int64_t to)
                    FEDGE_ATTR { ComputeDu(layer, branch, from, to); });
}

AlignedBuffer& ThreadPanel() {
  thread_local AlignedBuffer panel;
  return panel;
}

// dx (+)= dy W of one layer. All strips of the task take their turn with a block of dy before the
// next, which may come from far away.
template <class E>
void AddWeightProduct(const BackwardPlan& p, const ColumnsTask& task, size_t index, bool add) {
  constexpr int64_t kPair = ElementTraits<E>::kPair;
  constexpr int64_t kDepth = ElementTraits<E>::kDepth;
  const BackwardLayer& layer = p.layers[index];
  E* const panel = ThreadPanel().Get<E>(kDepth * kPanelWidth);
  for (int64_t n = 0; n < layer.w.rows; n += kDepth) {
    const int64_t depth = std::min(kDepth, layer.w.rows - n);
    Strip<E> s;
    if constexpr (kPair == 1) {
      s.a = layer.dy + task.row_begin * layer.w.rows + n;
      s.a_row_stride = layer.w.rows;
    } else {
      const RoundedGradient& rounded = p.rounded[index];
      s.a = rounded.data + (n / kMaxDepth * p.rows.t + task.row_begin) * rounded.stride;
      s.a_row_stride = rounded.stride;
    }
    s.b_stride = kPanelWidth * kPair;
    s.depth = (depth + kPair - 1) / kPair;
    s.c_stride = p.in;
    s.scale = layer.scale;
    s.add_to_c = add || n > 0;
    for (int64_t c = task.column_begin; c < task.column_end; c += kPanelWidth) {
      const int64_t width = std::min(kPanelWidth, task.column_end - c);
      PackWeightColumns<E>(layer.w, n, depth, c, width, panel);
      for (int64_t j = 0; j < width; j += StripLanes()) {
        s.b = panel + j * kPair;
        s.c = p.dx + task.row_begin * p.in + c + j;
        RunRaggedStrip(std::min(StripLanes(), width - j), s, task.row_end - task.row_begin);
      }
    }
  }
}

// dx += du A
void AddBranchProduct(const BackwardPlan& p, const ColumnsTask& task, const BackwardLayer& layer) {
  ForEachBranch(p.rows, task.row_begin, task.row_end,
                [&](size_t branch, int64_t from, int64_t to) FEDGE_ATTR {
                  Strip<float> s;
                  s.a = layer.du + from * layer.lora.rank;
                  s.a_row_stride = layer.lora.rank;
                  s.b = layer.lora.factors[branch].a + task.column_begin;
                  s.b_stride = p.in;
                  s.c = p.dx + from * p.in + task.column_begin;
                  s.c_stride = p.in;
                  s.add_to_c = true;
                  for (int64_t r = 0; r < layer.lora.rank; r += kMaxDepth) {
                    s.depth = std::min(kMaxDepth, layer.lora.rank - r);
                    RunDenseColumns<kMaxVectors>(task.column_end - task.column_begin, s, to - from);
                    s.a += kMaxDepth;
                    s.b += kMaxDepth * p.in;
                  }
                });
}

void RunInputTask(const BackwardPlan& p, const ColumnsTask& task) {
  for (size_t i = 0; i < p.layers.size(); ++i) {
    const bool add = p.accumulate || i > 0;
#if FEDGE_BF16_TARGET
    if (p.bf16) {
      AddWeightProduct<Bf16>(p, task, i, add);
    } else {
      AddWeightProduct<float>(p, task, i, add);
    }
#else
    AddWeightProduct<float>(p, task, i, add);
#endif
    if (p.layers[i].lora.rank > 0) AddBranchProduct(p, task, p.layers[i]);
  }
}

// Rows of a sum over tokens that are done before the next: what is read of x or dy stays in the
// first cache for the layers that share it.
constexpr int64_t kTokenDepth = 64;

// gradient [rank, width] += scale * left^T right over rows [from, to); left [t, rank].
struct FactorGradient {
  const float* left;
  const float* right;
  int64_t rank, width;
  float scale;
  float* to;
};
HWY_INLINE void AddFactorGradient(const FactorGradient& g, const ColumnsTask& task, int64_t begin,
                                  int64_t end) {
  Strip<float> s;
  s.a = g.left + begin * g.rank;
  s.a_row_stride = 1;
  s.a_depth_stride = g.rank;
  s.b = g.right + begin * g.width + task.column_begin;
  s.b_stride = g.width;
  s.depth = end - begin;
  s.c = g.to + task.column_begin;
  s.c_stride = g.width;
  s.scale = g.scale;
  s.add_to_c = true;
  RunDenseColumns<kSkinnyVectors>(task.column_end - task.column_begin, s, g.rank);
}

void RunFactorTask(const BackwardPlan& p, const ColumnsTask& task) {
  ForEachBranch(p.rows, 0, p.rows.t, [&](size_t branch, int64_t from, int64_t to) FEDGE_ATTR {
    for (int64_t t = from; t < to; t += kTokenDepth) {
      const int64_t end = std::min(t + kTokenDepth, to);
      for (size_t i = 0; i < p.layers.size(); ++i) {
        const BackwardLayer& layer = p.layers[i];
        const int64_t rank = layer.lora.rank;
        if (rank == 0 || layer.gradient.empty()) continue;
        const LoraFactorsGradient& wanted = layer.gradient[branch];
        if (task.kind == ColumnsTask::kFactorA && wanted.a != nullptr) {
          AddFactorGradient({layer.du, p.x, rank, p.in, 1, wanted.a}, task, t, end);
        } else if (task.kind == ColumnsTask::kFactorB && i == task.layer && wanted.bt != nullptr) {
          AddFactorGradient({layer.u, layer.dy, rank, layer.w.rows, layer.lora.scale, wanted.bt},
                            task, t, end);
        }
      }
    }
  });
}

void RunColumnsTask(const BackwardPlan& p, const ColumnsTask& task) {
  if (task.kind == ColumnsTask::kInput) return RunInputTask(p, task);
  RunFactorTask(p, task);
}

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedge {
namespace {

HWY_EXPORT(PrepareRows);
HWY_EXPORT(RunColumnsTask);

constexpr int64_t kPrepareRows = 48;
constexpr int64_t kMaxInputColumns = 4 * HWY_NAMESPACE::kPanelWidth;
constexpr int64_t kFactorColumns = 192;
constexpr int64_t kMinInputRows = 96;

void AddColumns(ColumnsTask task, int64_t columns, int64_t step, std::vector<ColumnsTask>& tasks) {
  for (int64_t c = 0; c < columns; c += step) {
    task.column_begin = c;
    task.column_end = std::min(c + step, columns);
    tasks.push_back(task);
  }
}

// The big tasks come first. The results do not depend on the split.
std::vector<ColumnsTask> Split(const BackwardPlan& p, int threads) {
  std::vector<ColumnsTask> tasks;
  const int64_t t = p.rows.t;
  if (p.dx != nullptr) {
    const int64_t wanted = threads == 1 ? 1 : 4 * threads;
    int64_t columns = kMaxInputColumns;
    while (columns > HWY_NAMESPACE::kPanelWidth && (p.in + columns - 1) / columns < wanted) {
      columns /= 2;
    }
    const int64_t strips = (p.in + columns - 1) / columns;
    const int64_t parts = std::clamp<int64_t>((wanted + strips - 1) / strips, 1,
                                              (t + kMinInputRows - 1) / kMinInputRows);
    for (int64_t part = 0; part < parts; ++part) {
      AddColumns({ColumnsTask::kInput, 0, 0, 0, part * t / parts, (part + 1) * t / parts}, p.in,
                 columns, tasks);
    }
  }
  bool any_factor = false;
  for (size_t i = 0; i < p.layers.size(); ++i) {
    const BackwardLayer& layer = p.layers[i];
    if (layer.lora.rank == 0 || layer.gradient.empty()) continue;
    any_factor = true;
    AddColumns({ColumnsTask::kFactorB, i, 0, 0, 0, 0}, layer.w.rows, kFactorColumns, tasks);
  }
  if (any_factor) {
    AddColumns({ColumnsTask::kFactorA, 0, 0, 0, 0, 0}, p.in, kFactorColumns, tasks);
  }
  return tasks;
}

void CheckLayers(absl::Span<const BackwardLayer> layers, const LinearRows& rows) {
  for (const BackwardLayer& layer : layers) {
    FEDGE_CHECK(layer.w.cols == layers[0].w.cols, "layers of one group with inputs of ",
                layers[0].w.cols, " and ", layer.w.cols);
    if (layer.lora.rank == 0) continue;
    FEDGE_CHECK(layer.lora.factors.size() == rows.ends.size() && rows.ends.back() == rows.t &&
                    (layer.gradient.empty() || layer.gradient.size() == rows.ends.size()),
                "layer with ", layer.lora.factors.size(), " branches for ", rows.ends.size(),
                " parts of the rows");
  }
}

void ReserveRounded(AlignedBuffer& buffer, BackwardPlan& p) {
  int64_t size = 0;
  std::vector<int64_t> offsets;
  for (const BackwardLayer& layer : p.layers) {
    const int64_t out = layer.w.rows;
    const int64_t stride = std::min<int64_t>(HWY_NAMESPACE::kMaxDepth, (out + 31) / 32 * 32);
    offsets.push_back(size);
    p.rounded.push_back({nullptr, stride});
    size += (out + HWY_NAMESPACE::kMaxDepth - 1) / HWY_NAMESPACE::kMaxDepth * p.rows.t * stride;
  }
  uint16_t* const data = buffer.Get<uint16_t>(size);
  for (size_t i = 0; i < offsets.size(); ++i) p.rounded[i].data = data + offsets[i];
}

}  // namespace

void BackwardGroup(absl::Span<const BackwardLayer> layers, const float* x, const LinearRows& rows,
                   Precision precision, Accumulate accumulate, float* dx, ThreadPool& pool) {
  if (layers.empty() || rows.t == 0) return;
  CheckLayers(layers, rows);
  thread_local AlignedBuffer rounded;
  BackwardPlan p;
  p.layers = layers;
  p.x = x;
  p.rows = rows;
  p.in = layers[0].w.cols;
  p.bf16 = dx != nullptr && precision == Precision::kBFloat16 && HasBFloat16Dot();
  p.accumulate = accumulate == Accumulate::kYes;
  p.dx = dx;
  if (p.bf16) ReserveRounded(rounded, p);
  std::vector<RowsTask> prepare;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!p.bf16 && layers[i].lora.rank == 0) continue;
    for (int64_t t = 0; t < rows.t; t += kPrepareRows) {
      prepare.push_back({i, t, std::min(t + kPrepareRows, rows.t)});
    }
  }
  const auto prepare_rows = HWY_DYNAMIC_DISPATCH(PrepareRows);
  pool.ParallelFor(static_cast<int64_t>(prepare.size()),
                   [&](int64_t i) { prepare_rows(p, prepare[static_cast<size_t>(i)]); });
  const std::vector<ColumnsTask> tasks = Split(p, pool.threads());
  const auto run = HWY_DYNAMIC_DISPATCH(RunColumnsTask);
  pool.ParallelFor(static_cast<int64_t>(tasks.size()),
                   [&](int64_t i) { run(p, tasks[static_cast<size_t>(i)]); });
}

}  // namespace fedge
#endif  // HWY_ONCE
