// Attention over blocks of queries. A task is one sequence and one key/value head: it serves the
// group of query heads that share it, in order, so that its gradients are summed in one order.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "common/base/status.h"
#include "common/model/ops.h"
#include "common/tensor/row_ops.h"

namespace fedge {
namespace {

constexpr int64_t kQueryBlock = 32;
constexpr int64_t kKeyMultiple = 16;  // score rows are padded to whole vectors
// Below this many queries it does not pay to transpose all keys.
constexpr int64_t kFewQueries = 4;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Runs task(slot, i) for i in [0, count); `slot` < pool.threads() is used by one task at a time and
// owns a piece of scratch memory.
template <typename Task>
void ForEachTask(int64_t count, ThreadPool& pool, const Task& task) {
  std::atomic<int64_t> next{0};
  pool.ParallelFor(std::min<int64_t>(count, pool.threads()), [&](int64_t slot) {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) task(slot, i);
  });
}

// The views of one task: row i of a query head at q + i * q_stride, of the key head at
// k + i * kv_stride.
struct HeadViews {
  HeadViews(const AttentionShape& s, int64_t task)
      : batch(task / s.kv_heads),
        kv_head(task % s.kv_heads),
        group(s.heads / s.kv_heads),
        q_stride(s.heads * s.head_dim),
        kv_stride(s.kv_heads * s.head_dim),
        keys(s.past + s.length),
        padded_keys(RoundUp(keys, kKeyMultiple)),
        kv_offset(batch * keys * kv_stride + kv_head * s.head_dim),
        length(s.length),
        heads(s.heads),
        head_dim(s.head_dim) {}

  int64_t head(int64_t g) const { return kv_head * group + g; }
  int64_t QueryOffset(int64_t g, int64_t row) const {
    return (batch * length + row) * q_stride + head(g) * head_dim;
  }
  int64_t LseOffset(int64_t g, int64_t row) const {
    return (batch * length + row) * heads + head(g);
  }

  int64_t batch, kv_head, group, q_stride, kv_stride, keys, padded_keys, kv_offset;
  int64_t length, heads, head_dim;
};

// xt [head_dim, padded_keys] = the head's keys or values, transposed, padded with zeros.
void TransposeHead(const HeadViews& view, const float* x, float* xt) {
  for (int64_t d = 0; d < view.head_dim; ++d) {
    std::fill(xt + d * view.padded_keys + view.keys, xt + (d + 1) * view.padded_keys, 0.0f);
  }
  Transpose(x + view.kv_offset, view.kv_stride, view.keys, view.head_dim, xt, view.padded_keys);
}

// out [rows, padded_keys] = x_block * xt over the first `keys` keys (rounded up).
void TimesTransposed(const HeadViews& view, const float* x_block, int64_t rows, int64_t keys,
                     const float* xt, float* out) {
  SmallMatMulShape shape;
  shape.m = rows;
  shape.n = RoundUp(keys, kKeyMultiple);
  shape.k = view.head_dim;
  shape.a_row = view.q_stride;
  shape.b_row = shape.c_row = view.padded_keys;
  SmallMatMul(shape, x_block, xt, out);
}

// out rows (stride q_stride) = weights [rows, keys] * head rows of x
void TimesHead(const HeadViews& view, const float* weights, int64_t rows, int64_t keys,
               const float* x, float* out) {
  SmallMatMulShape shape;
  shape.m = rows;
  shape.n = view.head_dim;
  shape.k = keys;
  shape.a_row = view.padded_keys;
  shape.b_row = view.kv_stride;
  shape.c_row = view.q_stride;
  SmallMatMul(shape, weights, x + view.kv_offset, out);
}

// head rows of dx += weights^T [keys, rows] * x_block
void AddTransposedTimes(const HeadViews& view, const float* weights, int64_t rows, int64_t keys,
                        const float* x_block, float* dx) {
  SmallMatMulShape shape;
  shape.m = keys;
  shape.n = view.head_dim;
  shape.k = rows;
  shape.a_row = 1;
  shape.a_col = view.padded_keys;
  shape.b_row = view.q_stride;
  shape.c_row = view.kv_stride;
  shape.accumulate = true;
  SmallMatMul(shape, weights, x_block, dx + view.kv_offset);
}

void ForwardBlock(const AttentionShape& s, const HeadViews& view, int64_t g, int64_t begin,
                  const float* q, const float* k, const float* kt, const float* v, float* scores,
                  float* out, float* lse) {
  const int64_t rows = std::min(kQueryBlock, s.length - begin);
  const int64_t keys = s.past + begin + rows;
  const float* const q_block = q + view.QueryOffset(g, begin);
  if (kt != nullptr) {
    TimesTransposed(view, q_block, rows, keys, kt, scores);
  } else {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < keys; ++j) {
        scores[r * view.padded_keys + j] = RowDot(
            q_block + r * view.q_stride, k + view.kv_offset + j * view.kv_stride, s.head_dim);
      }
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    float* const row = scores + r * view.padded_keys;
    const int64_t seen = s.past + begin + r + 1;
    lse[view.LseOffset(g, begin + r)] = static_cast<float>(SoftmaxRow(s.scale, 1, seen, row));
    std::fill(row + seen, row + keys, 0.0f);
  }
  TimesHead(view, scores, rows, keys, v, out + view.QueryOffset(g, begin));
}

// Pieces of scratch memory of one backward task.
struct BackwardScratch {
  float *kt, *vt, *p, *ds;
};

void BackwardBlock(const AttentionShape& s, const HeadViews& view, int64_t g, int64_t begin,
                   const AttentionForwardValues& f, const float* dout, const BackwardScratch& mine,
                   float* dq, float* dk, float* dv) {
  const int64_t rows = std::min(kQueryBlock, s.length - begin);
  const int64_t keys = begin + rows;
  const int64_t at = view.QueryOffset(g, begin);
  TimesTransposed(view, f.q + at, rows, keys, mine.kt, mine.p);
  TimesTransposed(view, dout + at, rows, keys, mine.vt, mine.ds);
  for (int64_t r = 0; r < rows; ++r) {
    float* const p_row = mine.p + r * view.padded_keys;
    float* const ds_row = mine.ds + r * view.padded_keys;
    const int64_t seen = begin + r + 1;
    const int64_t query = at + r * view.q_stride;
    ExpRow(s.scale, f.lse[view.LseOffset(g, begin + r)], seen, p_row);
    const float delta = RowDot(dout + query, f.out + query, s.head_dim);
    SoftmaxRowBackward(p_row, delta, s.scale, seen, ds_row);
    std::fill(p_row + seen, p_row + keys, 0.0f);
    std::fill(ds_row + seen, ds_row + keys, 0.0f);
  }
  TimesHead(view, mine.ds, rows, keys, f.k, dq + at);
  AddTransposedTimes(view, mine.ds, rows, keys, f.q + at, dk);
  AddTransposedTimes(view, mine.p, rows, keys, dout + at, dv);
}

void CheckShape(const AttentionShape& s) {
  FEDGE_CHECK(s.kv_heads > 0 && s.heads % s.kv_heads == 0, s.heads, " heads, ", s.kv_heads);
  FEDGE_CHECK(s.past == 0 || s.batch == 1, "a cache serves one sequence");
}

}  // namespace

void AttentionForward(const AttentionShape& shape, const float* q, const float* k, const float* v,
                      float* out, float* lse, FloatBuffer& scratch, ThreadPool& pool) {
  CheckShape(shape);
  const int64_t padded = RoundUp(shape.past + shape.length, kKeyMultiple);
  const bool few = shape.length < kFewQueries;
  const int64_t kt_size = few ? 0 : shape.head_dim * padded;
  const int64_t slot_size = kt_size + kQueryBlock * padded;
  float* const memory = scratch.Get(slot_size * pool.threads());
  ForEachTask(shape.batch * shape.kv_heads, pool, [&](int64_t slot, int64_t task) {
    const HeadViews view(shape, task);
    float* const kt = few ? nullptr : memory + slot * slot_size;
    float* const scores = memory + slot * slot_size + kt_size;
    if (!few) TransposeHead(view, k, kt);
    for (int64_t g = 0; g < view.group; ++g) {
      for (int64_t begin = 0; begin < shape.length; begin += kQueryBlock) {
        ForwardBlock(shape, view, g, begin, q, k, kt, v, scores, out, lse);
      }
    }
  });
}

void AttentionBackward(const AttentionShape& shape, const AttentionForwardValues& forward,
                       const float* dout, float* dq, float* dk, float* dv, FloatBuffer& scratch,
                       ThreadPool& pool) {
  CheckShape(shape);
  FEDGE_CHECK(shape.past == 0, "no gradient through a cache");
  const int64_t padded = RoundUp(shape.length, kKeyMultiple);
  const int64_t slot_size = 2 * (shape.head_dim + kQueryBlock) * padded;
  float* const memory = scratch.Get(slot_size * pool.threads());
  ForEachTask(shape.batch * shape.kv_heads, pool, [&](int64_t slot, int64_t task) {
    const HeadViews view(shape, task);
    BackwardScratch mine;
    mine.kt = memory + slot * slot_size;
    mine.vt = mine.kt + shape.head_dim * padded;
    mine.p = mine.vt + shape.head_dim * padded;
    mine.ds = mine.p + kQueryBlock * padded;
    TransposeHead(view, forward.k, mine.kt);
    TransposeHead(view, forward.v, mine.vt);
    for (int64_t i = 0; i < shape.length; ++i) {
      const int64_t row = view.kv_offset + i * view.kv_stride;
      std::fill(dk + row, dk + row + shape.head_dim, 0.0f);
      std::fill(dv + row, dv + row + shape.head_dim, 0.0f);
    }
    for (int64_t g = 0; g < view.group; ++g) {
      for (int64_t begin = 0; begin < shape.length; begin += kQueryBlock) {
        BackwardBlock(shape, view, g, begin, forward, dout, mine, dq, dk, dv);
      }
    }
  });
}

}  // namespace fedge
