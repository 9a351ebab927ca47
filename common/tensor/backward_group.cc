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

// B^T of one branch to bf16.
void RoundFactor(const BackwardPlan& p, const FactorTask& task) {
#if FEDGE_BF16_TARGET
  const BackwardLayer& layer = p.layers[task.layer];
  const RoundedLayer& rounded = p.rounded[task.layer];
  for (int64_t r = 0; r < layer.lora.rank; ++r) {
    RoundRow(
        layer.lora.factors[task.branch].bt + r * layer.w.rows, layer.w.rows,
        rounded.bt + (static_cast<int64_t>(task.branch) * layer.lora.rank + r) * rounded.bt_stride);
  }
#else
  (void)p;
  (void)task;
#endif
}

void PrepareRows(const BackwardPlan& p, const RowsTask& task) {
  const BackwardLayer& layer = p.layers[task.layer];
#if FEDGE_BF16_TARGET
  if (p.bf16) {
    const auto prepare = [&](size_t branch, int64_t from, int64_t to) FEDGE_ATTR {
      for (int64_t i = from; i < to; i += kDotRows) {
        RoundAndComputeDu(p, task.layer, branch, i, std::min<int64_t>(i + kDotRows, to));
      }
    };
    if (layer.lora.rank == 0) return prepare(0, task.begin, task.end);
    return ForEachBranch(p.rows, task.begin, task.end, prepare);
  }
#endif
  if (layer.lora.rank == 0) return;
  ForEachBranch(p.rows, task.begin, task.end,
                [&](size_t branch, int64_t from, int64_t to)
                    FEDGE_ATTR { ComputeDu(layer, branch, from, to); });
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
      const RoundedLayer& rounded = p.rounded[index];
      s.a = rounded.dy + (n / kMaxDepth * p.rows.t + task.row_begin) * rounded.dy_stride;
      s.a_row_stride = rounded.dy_stride;
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

template <class E>
void RunInputTask(const BackwardPlan& p, const ColumnsTask& task) {
  for (size_t i = 0; i < p.layers.size(); ++i) {
    AddWeightProduct<E>(p, task, i, p.accumulate || i > 0);
    if (p.layers[i].lora.rank == 0) continue;
    for (int64_t c = task.column_begin; c < task.column_end; c += kPanelWidth) {
      AddBranchProduct<E>(p, task, i, c, std::min(kPanelWidth, task.column_end - c));
    }
  }
}

void RunFactorTask(const BackwardPlan& p, const ColumnsTask& task) {
  ForEachBranch(p.rows, 0, p.rows.t, [&](size_t branch, int64_t from, int64_t to) FEDGE_ATTR {
#if FEDGE_BF16_TARGET
    for (int64_t t = from; p.bf16 && t < to; t += kMaxDepth) {
      AddFactorGradientBf16(p, task, branch, t, std::min(t + kMaxDepth, to));
    }
    if (p.bf16) return;
#endif
    for (int64_t t = from; t < to; t += kTokenDepth) {
      AddFactorGradient(p, task, branch, t, std::min(t + kTokenDepth, to));
    }
  });
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

HWY_EXPORT(RoundFactor);
HWY_EXPORT(PrepareRows);
HWY_EXPORT(RunColumnsTask);

constexpr int64_t kPrepareRows = 48;
constexpr int64_t kMaxInputColumns = 4 * HWY_NAMESPACE::kPanelWidth;
constexpr int64_t kFactorColumns = 256;
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

int64_t RoundUp(int64_t value) { return (value + 31) / 32 * 32; }

// What is not written before it is read becomes zero.
void ReserveRounded(AlignedBuffer& buffer, BackwardPlan& p) {
  constexpr int64_t kBlock = HWY_NAMESPACE::kMaxDepth;
  const int64_t branches = static_cast<int64_t>(p.rows.ends.size());
  int64_t size = 0;
  const auto reserve = [&](int64_t count) {
    size += RoundUp(count);
    return size - RoundUp(count);
  };
  struct Offsets {
    int64_t dy, bt, du, du_t, u_t;
  };
  std::vector<Offsets> offsets;
  for (const BackwardLayer& layer : p.layers) {
    const int64_t out = layer.w.rows, rank = layer.lora.rank;
    RoundedLayer rounded;
    rounded.dy_stride = std::min(kBlock, RoundUp(out));
    rounded.bt_stride = RoundUp(out);
    rounded.du_stride = RoundUp(rank);
    rounded.t_stride = p.rows.t + branches;
    p.rounded.push_back(rounded);
    offsets.push_back({reserve((out + kBlock - 1) / kBlock * p.rows.t * rounded.dy_stride),
                       reserve(branches * rank * rounded.bt_stride),
                       reserve(p.rows.t * rounded.du_stride), reserve(rank * rounded.t_stride),
                       reserve(rank * rounded.t_stride)});
  }
  uint16_t* const data = buffer.Get<uint16_t>(size);
  for (size_t i = 0; i < offsets.size(); ++i) {
    RoundedLayer& rounded = p.rounded[i];
    rounded.dy = data + offsets[i].dy;
    rounded.bt = data + offsets[i].bt;
    rounded.du = data + offsets[i].du;
    rounded.du_t = data + offsets[i].du_t;
    rounded.u_t = data + offsets[i].u_t;
    const int64_t columns = p.layers[i].lora.rank * rounded.t_stride;
    std::fill(rounded.du_t, rounded.du_t + columns, uint16_t{0});
    std::fill(rounded.u_t, rounded.u_t + columns, uint16_t{0});
  }
}

// The factors B are rounded once, before the rows that meet them.
void RoundFactors(const BackwardPlan& p, ThreadPool& pool) {
  std::vector<FactorTask> tasks;
  for (size_t i = 0; i < p.layers.size(); ++i) {
    if (p.layers[i].lora.rank == 0) continue;
    for (size_t branch = 0; branch < p.rows.ends.size(); ++branch) tasks.push_back({i, branch});
  }
  const auto run = HWY_DYNAMIC_DISPATCH(RoundFactor);
  pool.ParallelFor(static_cast<int64_t>(tasks.size()),
                   [&](int64_t i) { run(p, tasks[static_cast<size_t>(i)]); });
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
  if (p.bf16) {
    ReserveRounded(rounded, p);
    RoundFactors(p, pool);
  }
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
