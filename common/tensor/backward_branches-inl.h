// The low-rank branches' part of BackwardGroup: du, dA, dB and du A. Included once per SIMD target.
#if defined(FEDGE_COMMON_TENSOR_BACKWARD_BRANCHES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FEDGE_COMMON_TENSOR_BACKWARD_BRANCHES_INL_H_
#undef FEDGE_COMMON_TENSOR_BACKWARD_BRANCHES_INL_H_
#else
#define FEDGE_COMMON_TENSOR_BACKWARD_BRANCHES_INL_H_
#endif

#include <algorithm>

#include "common/tensor/aligned_buffer.h"
#include "common/tensor/backward_plan.h"
#include "common/tensor/panels-inl.h"

FEDGE_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {

inline AlignedBuffer& ThreadPanel() {
  thread_local AlignedBuffer panel;
  return panel;
}

inline AlignedBuffer& ThreadSums() {
  thread_local AlignedBuffer sums;
  return sums;
}

// Runs body(branch, its first row, first row, end) for the branches with rows in [begin, end).
template <class Body>
HWY_INLINE void ForEachBranch(const LinearRows& rows, int64_t begin, int64_t end,
                              const Body& body) {
  int64_t first = 0;
  for (size_t i = 0; i < rows.ends.size(); ++i) {
    const int64_t from = std::max(first, begin), to = std::min(rows.ends[i], end);
    if (from < to) body(i, first, from, to);
    first = rows.ends[i];
  }
}

// --- du = s dy B
// -----------------------------------------------------------------------------------

// dy of a layer from row t and column n on: the operand whose elements are broadcast.
template <class E>
HWY_INLINE void PointToGradient(const BackwardPlan& p, size_t index, int64_t t, int64_t n,
                                Strip<E>& s) {
  if constexpr (ElementTraits<E>::kPair == 1) {
    s.a_row_stride = p.layers[index].w.rows;
    s.a = p.layers[index].dy + t * s.a_row_stride + n;
  } else {
    s.a_row_stride = p.prepared[index].dy_stride;
    s.a = p.prepared[index].dy + (n / kMaxDepth * p.rows.t + t) * s.a_row_stride;
  }
}

template <class E>
void ComputeDu(const BackwardPlan& p, size_t index, const RowsTask& task) {
  constexpr int64_t kPair = ElementTraits<E>::kPair;
  constexpr int64_t kDepth = ElementTraits<E>::kDepth;
  const BackwardLayer& layer = p.layers[index];
  const PreparedLayer& prepared = p.prepared[index];
  const int64_t rank = layer.lora.rank, rows = task.end - task.begin;
  const E* const factor = static_cast<const E*>(prepared.factor) +
                          static_cast<int64_t>(task.branch) * prepared.factor_size;
  HWY_ALIGN float sums[kMaxPreparedRows * kMaxVectors * hn::MaxLanes(D())];
  for (int64_t r = 0; r < rank; r += StripLanes()) {
    Strip<E> s;
    s.b_stride = prepared.factor_lanes * kPair;
    s.c = sums;
    s.c_stride = StripLanes();
    s.scale = layer.lora.scale;
    const int64_t vectors =
        std::min<int64_t>(kMaxVectors, (prepared.factor_lanes - r) / LaneCount());
    for (int64_t n = 0; n < layer.w.rows; n += kDepth) {
      PointToGradient(p, index, task.begin, n, s);
      s.b = factor + n * prepared.factor_lanes + r * kPair;
      s.depth = (std::min(kDepth, layer.w.rows - n) + kPair - 1) / kPair;
      s.add_to_c = n > 0;
      RunStrip(vectors, s, rows);
    }
    // Past an odd rank comes the zero of the factor's padding, which makes it even.
    const int64_t count = std::min(StripLanes(), rank + rank % 2 - r);
    for (int64_t i = 0; i < rows; ++i) {
      float* const du = p.du + (task.begin + i) * p.du_columns + prepared.column + r;
      for (int64_t j = 0; j < count; j += LaneCount()) {
        StorePart(hn::Load(D(), sums + i * StripLanes() + j), du + j, count - j);
      }
    }
  }
}

#if FEDGE_BF16_TARGET

inline void RoundGradient(const BackwardPlan& p, size_t index, int64_t begin, int64_t end) {
  const int64_t out = p.layers[index].w.rows;
  const PreparedLayer& prepared = p.prepared[index];
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t n = 0; n < out; n += kMaxDepth) {
      RoundRow(p.layers[index].dy + i * out + n, std::min(kMaxDepth, out - n),
               prepared.dy + (n / kMaxDepth * p.rows.t + i) * prepared.dy_stride);
    }
  }
}

// du and u of the task's rows, as operands of dx, dA and dB.
inline void RoundBranches(const BackwardPlan& p, const RowsTask& task) {
  const int64_t pair =
      FirstPair(task.branch, task.branch_begin) + (task.begin - task.branch_begin) / 2;
  for (int64_t i = task.begin; i < task.end; ++i) {
    RoundRow(p.du + i * p.du_columns, p.du_columns, p.du_rounded + i * p.du_stride);
  }
  AlignedBuffer& buffer = ThreadPanel();
  for (int64_t i = task.begin; i < task.end; i += 2) {
    const bool odd = i + 1 == task.end;
    const int64_t at = pair + (i - task.begin) / 2;
    int64_t widest = p.du_stride;
    for (const PreparedLayer& prepared : p.prepared) widest = std::max(widest, prepared.u_stride);
    Bf16* const first = buffer.Get<Bf16>(2 * widest);
    Bf16* const second = first + widest;
    if (odd) std::fill(second, second + widest, Bf16{0});
    const Bf16* const du = p.du_rounded + i * p.du_stride;
    InterleaveRows(du, odd ? second : du + p.du_stride, p.du_stride,
                   p.du_pairs + at * p.du_stride * 2);
    for (size_t l = 0; l < p.layers.size(); ++l) {
      const BackwardLayer& layer = p.layers[l];
      const int64_t rank = layer.lora.rank, stride = p.prepared[l].u_stride;
      if (rank == 0) continue;
      RoundRow(layer.u + i * rank, rank, first);
      if (!odd) RoundRow(layer.u + (i + 1) * rank, rank, second);
      InterleaveRows(first, second, stride, p.prepared[l].u_pairs + at * stride * 2);
    }
  }
}

#endif  // FEDGE_BF16_TARGET

// --- dA += du^T x and dB += s u^T dy
// ----------------------------------------------------------------

// Rows of an fp32 sum over tokens that are done before the next: what is read of x or dy stays in
// the first cache for the layers that share it.
constexpr int64_t kTokenDepth = 64;

inline bool Wants(const BackwardLayer& layer, size_t i, size_t branch, const ColumnsTask& task) {
  if (layer.lora.rank == 0 || layer.gradient.empty()) return false;
  if (task.kind == ColumnsTask::kFactorA) return layer.gradient[branch].a != nullptr;
  return i == task.layer && layer.gradient[branch].bt != nullptr;
}

// For the tokens [begin, end) of a branch.
inline void AddFactorGradient(const BackwardPlan& p, const ColumnsTask& task, size_t branch,
                              int64_t begin, int64_t end) {
  const bool of_a = task.kind == ColumnsTask::kFactorA;
  for (size_t i = 0; i < p.layers.size(); ++i) {
    const BackwardLayer& layer = p.layers[i];
    if (!Wants(layer, i, branch, task)) continue;
    Strip<float> s;
    s.a_row_stride = 1;
    s.a_depth_stride = of_a ? p.du_columns : layer.lora.rank;
    s.a = (of_a ? p.du + p.prepared[i].column : layer.u) + begin * s.a_depth_stride;
    s.b_stride = s.c_stride = of_a ? p.in : layer.w.rows;
    s.b = (of_a ? p.x : layer.dy) + begin * s.b_stride + task.column_begin;
    s.depth = end - begin;
    s.c = (of_a ? layer.gradient[branch].a : layer.gradient[branch].bt) + task.column_begin;
    s.scale = of_a ? 1 : layer.lora.scale;
    s.add_to_c = true;
    RunDenseColumns<kSkinnyVectors>(task.column_end - task.column_begin, s, layer.lora.rank);
  }
}

#if FEDGE_BF16_TARGET

// Rows [t, t + depth) and columns [c, c + kPanelWidth) of the rounded dy, in pairs of rows.
inline void PackRoundedColumns(const BackwardPlan& p, const PreparedLayer& prepared, int64_t t,
                               int64_t depth, int64_t c, Bf16* out) {
  HWY_ALIGN static constexpr Bf16 kZeros[kPanelWidth] = {};
  const Bf16* const from =
      prepared.dy + (c / kMaxDepth * p.rows.t + t) * prepared.dy_stride + c % kMaxDepth;
  const int64_t width = std::min(kPanelWidth, prepared.dy_stride - c % kMaxDepth);
  for (int64_t i = 0; i < depth; i += 2) {
    const Bf16* const first = from + i * prepared.dy_stride;
    InterleaveRows(first, i + 1 < depth ? first + prepared.dy_stride : kZeros, width,
                   out + i * kPanelWidth);
  }
}

// For the tokens [begin, end) of a branch that begins at `first`; begin - first is even.
inline void AddFactorGradientBf16(const BackwardPlan& p, const ColumnsTask& task, size_t branch,
                                  int64_t first, int64_t begin, int64_t end) {
  const bool of_a = task.kind == ColumnsTask::kFactorA;
  const int64_t depth = end - begin;
  const int64_t pair = FirstPair(branch, first) + (begin - first) / 2;
  Bf16* const panel = ThreadPanel().Get<Bf16>(kMaxDepth * kPanelWidth);
  for (int64_t c = task.column_begin; c < task.column_end; c += kPanelWidth) {
    const int64_t width = std::min(kPanelWidth, task.column_end - c);
    if (of_a) {
      PackWeightColumns<Bf16>(DenseView(p.x, p.rows.t, p.in), begin, depth, c, width, panel);
    } else {
      PackRoundedColumns(p, p.prepared[task.layer], begin, depth, c, panel);
    }
    for (size_t i = 0; i < p.layers.size(); ++i) {
      const BackwardLayer& layer = p.layers[i];
      if (!Wants(layer, i, branch, task)) continue;
      Strip<Bf16> s;
      s.a_row_stride = 2;
      s.a_depth_stride = 2 * (of_a ? p.du_stride : p.prepared[i].u_stride);
      s.a = (of_a ? p.du_pairs + 2 * p.prepared[i].column : p.prepared[i].u_pairs) +
            pair * s.a_depth_stride;
      s.b = panel;
      s.b_stride = 2 * kPanelWidth;
      s.depth = (depth + 1) / 2;
      s.c_stride = of_a ? p.in : layer.w.rows;
      s.c = (of_a ? layer.gradient[branch].a : layer.gradient[branch].bt) + c;
      s.scale = of_a ? 1 : layer.lora.scale;
      s.add_to_c = true;
      RunRaggedStrip(width, s, layer.lora.rank);
    }
  }
}

#endif  // FEDGE_BF16_TARGET

// --- dx += du A
// -------------------------------------------------------------------------------------

// One strip of columns and the rows [from, to) of a branch.
struct BranchStrip {
  size_t branch;
  int64_t from, to;
  int64_t column, width;
};

// sums += du A. The factors A of all layers, one below the other, make one operand.
template <class E>
void AddBranchProducts(const BackwardPlan& p, const BranchStrip& strip, float* sums,
                       int64_t sums_stride) {
  constexpr int64_t kPair = ElementTraits<E>::kPair;
  constexpr int64_t kDepth = ElementTraits<E>::kDepth;
  E* const panel = ThreadPanel().Get<E>(kDepth * kPanelWidth);
  int64_t column = 0, filled = 0;  // of du; rows of the panel
  const auto multiply = [&]() FEDGE_ATTR {
    Strip<E> s;
    if constexpr (kPair == 1) {
      s.a = p.du + strip.from * p.du_columns + column;
      s.a_row_stride = p.du_columns;
    } else {
      s.a = p.du_rounded + strip.from * p.du_stride + column;
      s.a_row_stride = p.du_stride;
    }
    s.b_stride = kPanelWidth * kPair;
    s.depth = filled / kPair;
    s.c_stride = sums_stride;
    s.add_to_c = true;
    for (int64_t j = 0; j < strip.width; j += StripLanes()) {
      s.b = panel + j * kPair;
      s.c = sums + j;
      RunRaggedStrip(std::min(StripLanes(), strip.width - j), s, strip.to - strip.from);
    }
    column += filled;
    filled = 0;
  };
  for (const BackwardLayer& layer : p.layers) {
    const int64_t rank = layer.lora.rank;
    for (int64_t r = 0; r < rank;) {
      const int64_t count = std::min(rank - r, kDepth - filled);
      PackWeightColumns<E>(DenseView(layer.lora.factors[strip.branch].a, rank, p.in), r, count,
                           strip.column, strip.width, panel + filled * kPanelWidth);
      r += count;
      filled += count;
      if (filled % 2 != 0) {  // an odd rank; of bf16 the second of the pair is zero already
        E* const row = panel + filled * kPanelWidth;
        if (kPair == 1) std::fill(row, row + kPanelWidth, E{0});
        ++filled;
      }
      if (filled == kDepth) multiply();
    }
  }
  if (filled > 0) multiply();
}

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
