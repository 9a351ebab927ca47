// The gradients of a group of layers, in two parallel steps (and one to pack the factors B):
//
//   1. per block of rows: dy rounded to bf16 (when that is the precision), du = s dy B of all
//   layers
//   2. three kinds of independent tasks, each with outputs of its own:
//        columns of dx   sum over the layers of dy W + du A, W decoded panel by panel
//        columns of dA   du^T x of all layers, while the part of x is in the first cache
//        columns of dB   s u^T dy
#include <algorithm>
#include <vector>

#include "common/base/status.h"
#include "common/tensor/aligned_buffer.h"
#include "common/tensor/backward_plan.h"
#include "common/tensor/linear_group.h"
#include "common/tensor/matmul.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/tensor/backward_group.cc"
#include <hwy/foreach_target.h>  // must come before highway.h

#include "common/tensor/backward_branches-inl.h"

FEDGE_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {

int64_t VectorLanes() { return LaneCount(); }

// B of one branch for ComputeDu.
void PackFactor(const BackwardPlan& p, const FactorTask& task) {
  const BackwardLayer& layer = p.layers[task.layer];
  const PreparedLayer& prepared = p.prepared[task.layer];
  const float* const bt = layer.lora.factors[task.branch].bt;
  const int64_t offset = static_cast<int64_t>(task.branch) * prepared.factor_size;
  const int64_t out = layer.w.rows, rank = layer.lora.rank;
#if FEDGE_BF16_TARGET
  if (p.bf16) {
    return PackTransposed(bt, out, rank, out, prepared.factor_lanes,
                          static_cast<Bf16*>(prepared.factor) + offset);
  }
#endif
  PackTransposed(bt, out, rank, out, prepared.factor_lanes,
                 static_cast<float*>(prepared.factor) + offset);
}

void PrepareRows(const BackwardPlan& p, const RowsTask& task) {
  for (size_t i = 0; i < p.layers.size(); ++i) {
#if FEDGE_BF16_TARGET
    if (p.bf16) RoundGradient(p, i, task.begin, task.end);
    if (p.bf16 && p.layers[i].lora.rank > 0) ComputeDu<Bf16>(p, i, task);
#endif
    if (!p.bf16 && p.layers[i].lora.rank > 0) ComputeDu<float>(p, i, task);
  }
#if FEDGE_BF16_TARGET
  if (p.bf16 && p.du_columns > 0) RoundBranches(p, task);
#endif
}

// Where a task sums its part of dx: in place, or aside when the rows of dx are apart by so round a
// number of bytes that they share few sets of the cache.
struct InputSums {
  float* data;
  int64_t row_stride;
  int64_t strip_stride;  // from kPanelWidth columns to the next

  float* Strip(const ColumnsTask& task, int64_t c) const {
    return data + (c - task.column_begin) / kPanelWidth * strip_stride;
  }
};

// sums (+)= dy W of one layer. All strips of the task take their turn with a block of dy before the
// next, which may come from far away.
template <class E>
void AddWeightProduct(const BackwardPlan& p, const ColumnsTask& task, size_t index, bool add,
                      const InputSums& sums) {
  constexpr int64_t kPair = ElementTraits<E>::kPair;
  constexpr int64_t kDepth = ElementTraits<E>::kDepth;
  const BackwardLayer& layer = p.layers[index];
  E* const panel = ThreadPanel().Get<E>(kDepth * kPanelWidth);
  for (int64_t n = 0; n < layer.w.rows; n += kDepth) {
    const int64_t depth = std::min(kDepth, layer.w.rows - n);
    Strip<E> s;
    PointToGradient(p, index, task.row_begin, n, s);
    s.b_stride = kPanelWidth * kPair;
    s.depth = (depth + kPair - 1) / kPair;
    s.c_stride = sums.row_stride;
    s.scale = layer.scale;
    s.add_to_c = add || n > 0;
    for (int64_t c = task.column_begin; c < task.column_end; c += kPanelWidth) {
      const int64_t width = std::min(kPanelWidth, task.column_end - c);
      PackWeightColumns<E>(layer.w, n, depth, c, width, panel);
      for (int64_t j = 0; j < width; j += StripLanes()) {
        s.b = panel + j * kPair;
        s.c = sums.Strip(task, c) + j;
        RunRaggedStrip(std::min(StripLanes(), width - j), s, task.row_end - task.row_begin);
      }
    }
  }
}

template <class E>
void RunInputTask(const BackwardPlan& p, const ColumnsTask& task) {
  const int64_t rows = task.row_end - task.row_begin;
  const int64_t strips = (task.column_end - task.column_begin + kPanelWidth - 1) / kPanelWidth;
  const bool aside = p.in % 512 == 0;
  InputSums sums = {p.dx + task.row_begin * p.in + task.column_begin, p.in, kPanelWidth};
  if (aside)
    sums = {ThreadSums().Get<float>(strips * rows * kPanelWidth), kPanelWidth, rows * kPanelWidth};
  for (size_t i = 0; i < p.layers.size(); ++i) {
    AddWeightProduct<E>(p, task, i, i > 0 || (p.accumulate && !aside), sums);
  }
  for (int64_t c = task.column_begin; c < task.column_end; c += kPanelWidth) {
    const int64_t width = std::min(kPanelWidth, task.column_end - c);
    float* const to = sums.Strip(task, c);
    if (p.du_columns > 0) {
      ForEachBranch(p.rows, task.row_begin, task.row_end,
                    [&](size_t branch, int64_t, int64_t from, int64_t end) FEDGE_ATTR {
                      AddBranchProducts<E>(p, {branch, from, end, c, width},
                                           to + (from - task.row_begin) * sums.row_stride,
                                           sums.row_stride);
                    });
    }
    for (int64_t i = 0; aside && i < rows; ++i) {
      float* const dx = p.dx + (task.row_begin + i) * p.in + c;
      for (int64_t j = 0; j < width; j += LaneCount()) {  // in is a multiple of the vector
        V value = hn::Load(D(), to + i * kPanelWidth + j);
        if (p.accumulate) value = hn::Add(value, hn::LoadU(D(), dx + j));
        hn::StoreU(value, D(), dx + j);
      }
    }
  }
}

void RunFactorTask(const BackwardPlan& p, const ColumnsTask& task) {
  const auto run = [&](size_t branch, int64_t first, int64_t from, int64_t to) FEDGE_ATTR {
#if FEDGE_BF16_TARGET
    for (int64_t t = from; p.bf16 && t < to; t += kMaxDepth) {
      AddFactorGradientBf16(p, task, branch, first, t, std::min(t + kMaxDepth, to));
    }
    if (p.bf16) return;
#endif
    (void)first;
    for (int64_t t = from; t < to; t += kTokenDepth) {
      AddFactorGradient(p, task, branch, t, std::min(t + kTokenDepth, to));
    }
  };
  ForEachBranch(p.rows, 0, p.rows.t, run);
}

void RunColumnsTask(const BackwardPlan& p, const ColumnsTask& task) {
  if (task.kind != ColumnsTask::kInput) return RunFactorTask(p, task);
#if FEDGE_BF16_TARGET
  if (p.bf16) return RunInputTask<Bf16>(p, task);
#endif
  RunInputTask<float>(p, task);
}

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedge {
namespace {

HWY_EXPORT(VectorLanes);
HWY_EXPORT(PackFactor);
HWY_EXPORT(PrepareRows);
HWY_EXPORT(RunColumnsTask);

constexpr int64_t kMaxInputColumns = 4 * HWY_NAMESPACE::kPanelWidth;
constexpr int64_t kFactorColumns = 256;
// With as many rows a block of dy and the part of dx stay in the second-level cache.
constexpr int64_t kMaxInputRows = 512;
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
    int64_t parts =
        std::clamp((wanted + strips - 1) / strips, (t + kMaxInputRows - 1) / kMaxInputRows,
                   (t + kMinInputRows - 1) / kMinInputRows);
    // Whole parts for each thread, so that rows stay with their processor.
    if (parts > 1) parts = (parts + threads - 1) / threads * threads;
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

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Places what is prepared of the layers in one buffer.
void Reserve(AlignedBuffer& buffer, BackwardPlan& p) {
  constexpr int64_t kBlock = HWY_NAMESPACE::kMaxDepth;
  const int64_t branches = static_cast<int64_t>(p.rows.ends.size());
  const int64_t pairs = (p.rows.t + branches + 1) / 2;
  const int64_t lanes = HWY_DYNAMIC_DISPATCH(VectorLanes)();
  const int64_t element = p.bf16 ? sizeof(uint16_t) : sizeof(float);
  for (const BackwardLayer& layer : p.layers) {
    PreparedLayer prepared;
    prepared.column = p.du_columns;
    prepared.factor_lanes = RoundUp(layer.lora.rank, lanes);
    prepared.factor_size = RoundUp(layer.w.rows, 2) * prepared.factor_lanes;
    prepared.dy_stride = std::min(kBlock, RoundUp(layer.w.rows, 32));
    prepared.u_stride = RoundUp(layer.lora.rank, 32);
    p.du_columns += RoundUp(layer.lora.rank, 2);
    p.prepared.push_back(prepared);
  }
  p.du_stride = RoundUp(p.du_columns, 32);
  // Twice: first for the sizes.
  uint8_t* data = nullptr;
  for (const bool place : {false, true}) {
    int64_t size = 0;
    const auto take = [&](int64_t bytes) {
      const int64_t at = size;
      size += RoundUp(bytes, 64);
      return place ? data + at : nullptr;
    };
    const auto take_bf16 = [&](int64_t count) {
      return reinterpret_cast<uint16_t*>(take(p.bf16 ? 2 * count : 0));
    };
    p.du = reinterpret_cast<float*>(take(4 * p.rows.t * p.du_columns));
    p.du_rounded = take_bf16(p.rows.t * p.du_stride);
    p.du_pairs = take_bf16(2 * pairs * p.du_stride);
    for (size_t i = 0; i < p.layers.size(); ++i) {
      PreparedLayer& prepared = p.prepared[i];
      prepared.factor = take(branches * prepared.factor_size * element);
      prepared.dy =
          take_bf16(RoundUp(p.layers[i].w.rows, kBlock) / kBlock * p.rows.t * prepared.dy_stride);
      prepared.u_pairs = take_bf16(2 * pairs * prepared.u_stride);
    }
    if (!place) data = buffer.Get<uint8_t>(size);
  }
}

// B of every branch, before the rows that meet it.
void PackFactors(const BackwardPlan& p, ThreadPool& pool) {
  std::vector<FactorTask> tasks;
  for (size_t i = 0; i < p.layers.size(); ++i) {
    if (p.layers[i].lora.rank == 0) continue;
    for (size_t branch = 0; branch < p.rows.ends.size(); ++branch) tasks.push_back({i, branch});
  }
  const auto run = HWY_DYNAMIC_DISPATCH(PackFactor);
  pool.ParallelFor(static_cast<int64_t>(tasks.size()),
                   [&](int64_t i) { run(p, tasks[static_cast<size_t>(i)]); });
}

void Prepare(const BackwardPlan& p, ThreadPool& pool) {
  if (!p.bf16 && p.du_columns == 0) return;
  std::vector<RowsTask> tasks;
  const auto add = [&](size_t branch, int64_t first, int64_t end) {
    for (int64_t t = first; t < end; t += kMaxPreparedRows) {
      tasks.push_back({branch, first, t, std::min(t + kMaxPreparedRows, end)});
    }
  };
  if (p.du_columns == 0) {
    add(0, 0, p.rows.t);
  } else {
    int64_t first = 0;
    for (size_t i = 0; i < p.rows.ends.size(); ++i) {
      add(i, first, p.rows.ends[i]);
      first = p.rows.ends[i];
    }
  }
  const auto run = HWY_DYNAMIC_DISPATCH(PrepareRows);
  pool.ParallelFor(static_cast<int64_t>(tasks.size()),
                   [&](int64_t i) { run(p, tasks[static_cast<size_t>(i)]); });
}

}  // namespace

void BackwardGroup(absl::Span<const BackwardLayer> layers, const float* x, const LinearRows& rows,
                   Precision precision, Accumulate accumulate, float* dx, ThreadPool& pool) {
  if (layers.empty() || rows.t == 0) return;
  CheckLayers(layers, rows);
  thread_local AlignedBuffer scratch;
  BackwardPlan p;
  p.layers = layers;
  p.x = x;
  p.rows = rows;
  p.in = layers[0].w.cols;
  p.bf16 = dx != nullptr && precision == Precision::kBFloat16 && HasBFloat16Dot();
  p.accumulate = accumulate == Accumulate::kYes;
  p.dx = dx;
  Reserve(scratch, p);
  PackFactors(p, pool);
  Prepare(p, pool);
  const std::vector<ColumnsTask> tasks = Split(p, pool.threads());
  const auto run = HWY_DYNAMIC_DISPATCH(RunColumnsTask);
  pool.ParallelFor(static_cast<int64_t>(tasks.size()),
                   [&](int64_t i) { run(p, tasks[static_cast<size_t>(i)]); });
}

}  // namespace fedge
#endif  // HWY_ONCE
