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

// --- du = s dy B: dot products of rows of dy with rows of B^T -----------------------------------

#if HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr int kDotRows = 6;
#else
constexpr int kDotRows = 2;
#endif
constexpr int kDotRanks = 4;

// out[i * out_stride + j] = scale * dot(a_i, b_j) over n.
template <class E>
struct Dots {
  const E* a;  // blocks of kMaxDepth columns, `a_block` apart; fp32: one after the other
  int64_t a_stride, a_block;
  const E* b;
  int64_t b_stride;
  int64_t n;
  float scale;
  float* out;
  int64_t out_stride;
};

template <int T, int R>
HWY_INLINE void AddDots(const Dots<float>& d, int64_t n0, int64_t count, V (*sum)[R]) {
  const int64_t lanes = LaneCount();
  const float* const a = d.a + n0 / kMaxDepth * d.a_block;
  const float* const b = d.b + n0;
  V row[R];
  int64_t k = 0;
  for (; k + lanes <= count; k += lanes) {
    for (int j = 0; j < R; ++j) row[j] = hn::LoadU(D(), b + j * d.b_stride + k);
    for (int i = 0; i < T; ++i) {
      const V value = hn::LoadU(D(), a + i * d.a_stride + k);
      for (int j = 0; j < R; ++j) sum[i][j] = hn::MulAdd(value, row[j], sum[i][j]);
    }
  }
  if (k == count) return;
  for (int j = 0; j < R; ++j) row[j] = LoadPart(b + j * d.b_stride + k, count - k);
  for (int i = 0; i < T; ++i) {
    const V value = LoadPart(a + i * d.a_stride + k, count - k);
    for (int j = 0; j < R; ++j) sum[i][j] = hn::MulAdd(value, row[j], sum[i][j]);
  }
}

#if FEDGE_BF16_TARGET
// Rows are padded with zeros to whole vectors.
template <int T, int R>
HWY_INLINE void AddDots(const Dots<Bf16>& d, int64_t n0, int64_t count, V (*sum)[R]) {
  const Bf16* const a = d.a + n0 / kMaxDepth * d.a_block;
  const Bf16* const b = d.b + n0;
  for (int64_t k = 0; k < count; k += 32) {
    __m512bh row[R];
    for (int j = 0; j < R; ++j) row[j] = (__m512bh)_mm512_loadu_si512(b + j * d.b_stride + k);
    for (int i = 0; i < T; ++i) {
      const __m512bh value = (__m512bh)_mm512_loadu_si512(a + i * d.a_stride + k);
      for (int j = 0; j < R; ++j) sum[i][j].raw = _mm512_dpbf16_ps(sum[i][j].raw, value, row[j]);
    }
  }
}
#endif

template <int T, int R, class E>
HWY_INLINE void DotTile(const Dots<E>& d) {
  V sum[T][R];
  for (int i = 0; i < T; ++i) {
    for (int j = 0; j < R; ++j) sum[i][j] = hn::Zero(D());
  }
  for (int64_t n = 0; n < d.n; n += kMaxDepth) AddDots<T>(d, n, std::min(kMaxDepth, d.n - n), sum);
  for (int i = 0; i < T; ++i) {
    for (int j = 0; j < R; ++j) {
      d.out[i * d.out_stride + j] = d.scale * hn::GetLane(hn::SumOfLanes(D(), sum[i][j]));
    }
  }
}

template <int T, class E>
HWY_NOINLINE void DotRanks(Dots<E> d, int64_t rank) {
  for (; rank >= kDotRanks; rank -= kDotRanks) {
    DotTile<T, kDotRanks>(d);
    d.b += kDotRanks * d.b_stride;
    d.out += kDotRanks;
  }
  for (; rank > 0; --rank) {
    DotTile<T, 1>(d);
    d.b += d.b_stride;
    ++d.out;
  }
}

template <class E>
void DotRows(Dots<E> d, int64_t rows, int64_t rank) {
  for (; rows >= kDotRows; rows -= kDotRows) {
    DotRanks<kDotRows>(d, rank);
    d.a += kDotRows * d.a_stride;
    d.out += kDotRows * d.out_stride;
  }
  for (; rows > 0; --rows) {
    DotRanks<1>(d, rank);
    d.a += d.a_stride;
    d.out += d.out_stride;
  }
}

// For rows of one branch.
inline void ComputeDu(const BackwardLayer& layer, size_t branch, int64_t begin, int64_t end) {
  const int64_t out = layer.w.rows, rank = layer.lora.rank;
  const Dots<float> dots = {layer.dy + begin * out,
                            out,
                            kMaxDepth,
                            layer.lora.factors[branch].bt,
                            out,
                            out,
                            layer.lora.scale,
                            layer.du + begin * rank,
                            rank};
  DotRows(dots, end - begin, rank);
}

// --- dA += du^T x and dB += s u^T dy -------------------------------------------------------------

// Rows of an fp32 sum over tokens that are done before the next: what is read of x or dy stays in
// the first cache for the layers that share it.
constexpr int64_t kTokenDepth = 64;

inline bool Wants(const BackwardLayer& layer, size_t i, size_t branch, const ColumnsTask& task) {
  if (layer.lora.rank == 0 || layer.gradient.empty()) return false;
  if (task.kind == ColumnsTask::kFactorA) return layer.gradient[branch].a != nullptr;
  return i == task.layer && layer.gradient[branch].bt != nullptr;
}

// gradient [rank, width] += scale * left^T right for the tokens [begin, end) of a branch.
inline void AddFactorGradient(const BackwardPlan& p, const ColumnsTask& task, size_t branch,
                              int64_t begin, int64_t end) {
  const bool of_a = task.kind == ColumnsTask::kFactorA;
  for (size_t i = 0; i < p.layers.size(); ++i) {
    const BackwardLayer& layer = p.layers[i];
    if (!Wants(layer, i, branch, task)) continue;
    Strip<float> s;
    s.a = (of_a ? layer.du : layer.u) + begin * layer.lora.rank;
    s.a_row_stride = 1;
    s.a_depth_stride = layer.lora.rank;
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

// dy and the branches' operands that follow from it, for rows of one branch; few enough rows that
// they stay in the cache in between.
inline void RoundAndComputeDu(const BackwardPlan& p, size_t index, size_t branch, int64_t begin,
                              int64_t end) {
  const BackwardLayer& layer = p.layers[index];
  const RoundedLayer& rounded = p.rounded[index];
  const int64_t out = layer.w.rows, rank = layer.lora.rank;
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t n = 0; n < out; n += kMaxDepth) {
      RoundRow(layer.dy + i * out + n, std::min(kMaxDepth, out - n),
               rounded.dy + (n / kMaxDepth * p.rows.t + i) * rounded.dy_stride);
    }
  }
  if (rank == 0) return;
  const Dots<Bf16> dots = {rounded.dy + begin * rounded.dy_stride,
                           rounded.dy_stride,
                           p.rows.t * rounded.dy_stride,
                           rounded.bt + static_cast<int64_t>(branch) * rank * rounded.bt_stride,
                           rounded.bt_stride,
                           out,
                           layer.lora.scale,
                           layer.du + begin * rank,
                           rank};
  DotRows(dots, end - begin, rank);
  for (int64_t i = begin; i < end; ++i) {
    Bf16* const du = rounded.du + i * rounded.du_stride;
    RoundRow(layer.du + i * rank, rank, du);
    const int64_t column = i + static_cast<int64_t>(branch);
    for (int64_t r = 0; r < rank; ++r) rounded.du_t[r * rounded.t_stride + column] = du[r];
    for (int64_t r = 0; r < rank; ++r) {
      rounded.u_t[r * rounded.t_stride + column] = FloatToBfloat16(layer.u[i * rank + r]);
    }
  }
}

// Rows [t, t + depth) and columns [c, c + kPanelWidth) of the rounded dy, in pairs of rows.
inline void PackRoundedColumns(const BackwardPlan& p, const RoundedLayer& rounded, int64_t t,
                               int64_t depth, int64_t c, Bf16* out) {
  HWY_ALIGN static constexpr Bf16 kZeros[kPanelWidth] = {};
  const Bf16* const from =
      rounded.dy + (c / kMaxDepth * p.rows.t + t) * rounded.dy_stride + c % kMaxDepth;
  const int64_t width = std::min(kPanelWidth, rounded.dy_stride - c % kMaxDepth);
  for (int64_t i = 0; i < depth; i += 2) {
    const Bf16* const first = from + i * rounded.dy_stride;
    InterleaveRows(first, i + 1 < depth ? first + rounded.dy_stride : kZeros, width,
                   out + i * kPanelWidth);
  }
}

inline void AddFactorGradientBf16(const BackwardPlan& p, const ColumnsTask& task, size_t branch,
                                  int64_t begin, int64_t end) {
  const bool of_a = task.kind == ColumnsTask::kFactorA;
  const int64_t depth = end - begin;
  Bf16* const panel = ThreadPanel().Get<Bf16>(kMaxDepth * kPanelWidth);
  for (int64_t c = task.column_begin; c < task.column_end; c += kPanelWidth) {
    const int64_t width = std::min(kPanelWidth, task.column_end - c);
    if (of_a) {
      PackWeightColumns<Bf16>(DenseView(p.x, p.rows.t, p.in), begin, depth, c, width, panel);
    } else {
      PackRoundedColumns(p, p.rounded[task.layer], begin, depth, c, panel);
    }
    for (size_t i = 0; i < p.layers.size(); ++i) {
      const BackwardLayer& layer = p.layers[i];
      if (!Wants(layer, i, branch, task)) continue;
      const RoundedLayer& rounded = p.rounded[i];
      Strip<Bf16> s;
      s.a = (of_a ? rounded.du_t : rounded.u_t) + begin + static_cast<int64_t>(branch);
      s.a_row_stride = rounded.t_stride;
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

// --- dx += du A, for the rows and one strip of columns -------------------------------------------

template <class E>
void AddBranchProduct(const BackwardPlan& p, const ColumnsTask& task, size_t index, int64_t c,
                      int64_t width) {
  constexpr int64_t kPair = ElementTraits<E>::kPair;
  constexpr int64_t kDepth = ElementTraits<E>::kDepth;
  const BackwardLayer& layer = p.layers[index];
  const int64_t rank = layer.lora.rank;
  E* const panel = ThreadPanel().Get<E>(kDepth * kPanelWidth);
  const auto add = [&](size_t branch, int64_t from, int64_t to) FEDGE_ATTR {
    const WeightMatrix a = DenseView(layer.lora.factors[branch].a, rank, p.in);
    for (int64_t r = 0; r < rank; r += kDepth) {
      const int64_t depth = std::min(kDepth, rank - r);
      PackWeightColumns<E>(a, r, depth, c, width, panel);
      Strip<E> s;
      if constexpr (kPair == 1) {
        s.a = layer.du + from * rank + r;
        s.a_row_stride = rank;
      } else {
        s.a = p.rounded[index].du + from * p.rounded[index].du_stride + r;
        s.a_row_stride = p.rounded[index].du_stride;
      }
      s.b_stride = kPanelWidth * kPair;
      s.depth = (depth + kPair - 1) / kPair;
      s.c_stride = p.in;
      s.add_to_c = true;
      for (int64_t j = 0; j < width; j += StripLanes()) {
        s.b = panel + j * kPair;
        s.c = p.dx + from * p.in + c + j;
        RunRaggedStrip(std::min(StripLanes(), width - j), s, to - from);
      }
    }
  };
  ForEachBranch(p.rows, task.row_begin, task.row_end, add);
}

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
