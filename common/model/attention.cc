// Attention over blocks of queries. A task is one sequence and one key/value head: it serves the
// group of query heads that share it, in order, so that its gradients are summed in one order. When
// there are too few of these for the threads, all threads work on one: on blocks of queries, and
// then on ranges of the keys whose gradients these blocks add to, in the same order.
#include <algorithm>
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

// Whether sequences and key heads leave threads idle that could share one of them.
bool SharesHeads(const AttentionShape& s, const ThreadPool& pool) {
  const int64_t tasks = s.batch * s.kv_heads, threads = pool.threads();
  return tasks % threads != 0 && tasks < 4 * threads && s.length > kQueryBlock;
}

// What one task works on: the query heads that share one key/value head of one sequence. Keys
// before `first_key`, which no query sees, are left out of its scratch memory.
struct HeadViews {
  HeadViews(const AttentionShape& s, int64_t task)
      : batch(task / s.kv_heads),
        kv_head(task % s.kv_heads),
        group(s.heads / s.kv_heads),
        keys(s.past + s.length),
        first_key(FirstKey(s, 0)),
        padded_keys(PaddedKeys(s)),
        shape(s) {}

  // The first key that the query block at `begin` scores, a multiple of kKeyMultiple.
  static int64_t FirstKey(const AttentionShape& s, int64_t begin) {
    if (s.window == 0) return 0;
    const int64_t key = std::max<int64_t>(0, s.past + begin - s.window + 1);
    return key / kKeyMultiple * kKeyMultiple;
  }
  static int64_t PaddedKeys(const AttentionShape& s) {
    return RoundUp(s.past + s.length - FirstKey(s, 0), kKeyMultiple);
  }

  int64_t head(int64_t g) const { return kv_head * group + g; }
  int64_t QueryRow(int64_t row) const { return batch * shape.length + row; }
  // Where row i of query head g is in a matrix of the queries, keys or values.
  template <typename RowsView>
  auto* Query(const RowsView& q, int64_t g, int64_t row) const {
    return q.data + QueryRow(row) * q.stride + head(g) * shape.head_dim;
  }
  template <typename RowsView>
  auto* Key(const RowsView& k, int64_t row) const {
    return k.data + (batch * keys + row) * k.stride + kv_head * shape.head_dim;
  }
  int64_t LseOffset(int64_t g, int64_t row) const { return QueryRow(row) * shape.heads + head(g); }

  int64_t batch, kv_head, group, keys, first_key, padded_keys;
  const AttentionShape& shape;
};

// One block of queries of one head, and the keys [first, end) that some of them sees.
struct Block {
  static int64_t Count(const AttentionShape& s) {
    return (s.length + kQueryBlock - 1) / kQueryBlock * (s.heads / s.kv_heads);
  }
  // The index-th of a group's blocks, in the order of their sums.
  Block(const HeadViews& view, int64_t index)
      : Block(view, index / (Count(view.shape) / view.group),
              index % (Count(view.shape) / view.group) * kQueryBlock) {}
  Block(const HeadViews& view, int64_t g_in, int64_t begin_in)
      : g(g_in),
        begin(begin_in),
        rows(std::min(kQueryBlock, view.shape.length - begin_in)),
        first(HeadViews::FirstKey(view.shape, begin_in)),
        end(view.shape.past + begin_in + rows),
        past(view.shape.past),
        window(view.shape.window) {}

  int64_t keys() const { return end - first; }
  // The scores of row r that count: [from, to) of its keys.
  int64_t To(int64_t r) const { return past + begin + r + 1 - first; }
  int64_t From(int64_t r) const { return window == 0 ? 0 : std::max<int64_t>(0, To(r) - window); }

  int64_t g, begin, rows, first, end, past, window;
};

// xt [head_dim, padded_keys] = the head's keys or values from first_key on, transposed, padded with
// zeros.
void TransposeHead(const HeadViews& view, ConstRows x, float* xt) {
  const int64_t count = view.keys - view.first_key;
  for (int64_t d = 0; d < view.shape.head_dim; ++d) {
    std::fill(xt + d * view.padded_keys + count, xt + (d + 1) * view.padded_keys, 0.0f);
  }
  Transpose(view.Key(x, view.first_key), x.stride, count, view.shape.head_dim, xt,
            view.padded_keys);
}

// out [rows, padded_keys] = x_block * xt over the block's keys (rounded up).
void TimesTransposed(const HeadViews& view, const Block& block, const float* x_block,
                     int64_t x_stride, const float* xt, float* out) {
  SmallMatMulShape shape;
  shape.m = block.rows;
  shape.n = RoundUp(block.keys(), kKeyMultiple);
  shape.k = view.shape.head_dim;
  shape.a_row = x_stride;
  shape.b_row = shape.c_row = view.padded_keys;
  SmallMatMul(shape, x_block, xt + (block.first - view.first_key), out);
}

// out rows = weights [rows, keys] * head rows of x
void TimesHead(const HeadViews& view, const Block& block, const float* weights, ConstRows x,
               float* out, int64_t out_stride) {
  SmallMatMulShape shape;
  shape.m = block.rows;
  shape.n = view.shape.head_dim;
  shape.k = block.keys();
  shape.a_row = view.padded_keys;
  shape.b_row = x.stride;
  shape.c_row = out_stride;
  SmallMatMul(shape, weights, view.Key(x, block.first), out);
}

// Rows of keys.
struct KeyRange {
  int64_t begin, end;
};

// head rows of dx += weights^T [keys, rows] * x_block, for the block's keys in `range`
void AddTransposedTimes(const HeadViews& view, const Block& block, const KeyRange& range,
                        const float* weights, const float* x_block, int64_t x_stride, Rows dx) {
  const int64_t begin = std::max(range.begin, block.first);
  SmallMatMulShape shape;
  shape.m = std::min(range.end, block.end) - begin;
  if (shape.m <= 0) return;
  shape.n = view.shape.head_dim;
  shape.k = block.rows;
  shape.a_row = 1;
  shape.a_col = view.padded_keys;
  shape.b_row = x_stride;
  shape.c_row = dx.stride;
  shape.accumulate = true;
  SmallMatMul(shape, weights + (begin - block.first), x_block, view.Key(dx, begin));
}

// The weights of keys that a row does not see.
void ClearUnseen(const Block& block, int64_t r, float* row) {
  std::fill(row, row + block.From(r), 0.0f);
  std::fill(row + block.To(r), row + block.keys(), 0.0f);
}

struct ForwardCall {
  ConstRows q, k, v;
  Rows out;
  float* lse;
};

// `kt` is null when there are too few queries to transpose keys for.
void ForwardBlock(const HeadViews& view, const Block& block, const ForwardCall& call,
                  const float* kt, float* scores) {
  const AttentionShape& s = view.shape;
  if (kt != nullptr) {
    TimesTransposed(view, block, view.Query(call.q, block.g, block.begin), call.q.stride, kt,
                    scores);
  }
  for (int64_t r = 0; r < block.rows; ++r) {
    float* const row = scores + r * view.padded_keys;
    const int64_t from = block.From(r);
    const int64_t to = block.To(r);
    if (kt == nullptr) {
      const float* const query = view.Query(call.q, block.g, block.begin + r);
      for (int64_t j = from; j < to; ++j) {
        row[j] = RowDot(query, view.Key(call.k, block.first + j), s.head_dim);
      }
    }
    call.lse[view.LseOffset(block.g, block.begin + r)] =
        static_cast<float>(SoftmaxRow(s.scale, 1, to - from, row + from));
    ClearUnseen(block, r, row);
  }
  TimesHead(view, block, scores, call.v, view.Query(call.out, block.g, block.begin),
            call.out.stride);
}

// Pieces of scratch memory of one backward task.
struct BackwardScratch {
  float *kt, *vt, *p, *ds;
};

struct BackwardCall {
  const AttentionForwardValues& forward;
  ConstRows out, dout;
  const AttentionGradients& gradients;
};

// p, ds and dq of a block.
void DifferentiateScores(const HeadViews& view, const Block& block, const BackwardCall& call,
                         const BackwardScratch& mine) {
  const AttentionShape& s = view.shape;
  const AttentionForwardValues& f = call.forward;
  const float* const q = view.Query(f.q, block.g, block.begin);
  const float* const dout = view.Query(call.dout, block.g, block.begin);
  TimesTransposed(view, block, q, f.q.stride, mine.kt, mine.p);
  TimesTransposed(view, block, dout, call.dout.stride, mine.vt, mine.ds);
  for (int64_t r = 0; r < block.rows; ++r) {
    float* const p_row = mine.p + r * view.padded_keys;
    float* const ds_row = mine.ds + r * view.padded_keys;
    const int64_t from = block.From(r);
    const int64_t seen = block.To(r) - from;
    const int64_t query = block.begin + r;
    ExpRow(s.scale, f.lse[view.LseOffset(block.g, query)], seen, p_row + from);
    const float delta = RowDot(view.Query(call.dout, block.g, query),
                               view.Query(call.out, block.g, query), s.head_dim);
    SoftmaxRowBackward(p_row + from, delta, s.scale, seen, ds_row + from);
    ClearUnseen(block, r, p_row);
    ClearUnseen(block, r, ds_row);
  }
  const AttentionGradients& g = call.gradients;
  TimesHead(view, block, mine.ds, f.k, view.Query(g.dq, block.g, block.begin), g.dq.stride);
}

// dk and dv of the keys in `range` += a block's part.
void AddKeyGradients(const HeadViews& view, const Block& block, const KeyRange& range,
                     const BackwardCall& call, const BackwardScratch& mine) {
  const ConstRows& q = call.forward.q;
  const AttentionGradients& g = call.gradients;
  AddTransposedTimes(view, block, range, mine.ds, view.Query(q, block.g, block.begin), q.stride,
                     g.dk);
  AddTransposedTimes(view, block, range, mine.p, view.Query(call.dout, block.g, block.begin),
                     call.dout.stride, g.dv);
}

// Ready for the first block of a head.
void BeginBackward(const HeadViews& view, const BackwardCall& call, const BackwardScratch& mine) {
  TransposeHead(view, call.forward.k, mine.kt);
  TransposeHead(view, call.forward.v, mine.vt);
  for (int64_t i = 0; i < view.shape.length; ++i) {
    std::fill_n(view.Key(call.gradients.dk, i), view.shape.head_dim, 0.0f);
    std::fill_n(view.Key(call.gradients.dv, i), view.shape.head_dim, 0.0f);
  }
}

// One head by all threads; scratch(i) is a thread's, the first one's transposes are everyone's.
template <typename Scratch>
void BackwardTogether(const HeadViews& view, const BackwardCall& call, const Scratch& scratch,
                      ThreadPool& pool) {
  const BackwardScratch shared = scratch(0);
  BeginBackward(view, call, shared);
  const auto mine = [&](int64_t i) {
    BackwardScratch result = scratch(i);
    result.kt = shared.kt;
    result.vt = shared.vt;
    return result;
  };
  const int64_t blocks = Block::Count(view.shape), threads = pool.threads();
  for (int64_t first = 0; first < blocks; first += threads) {
    const int64_t count = std::min(threads, blocks - first);
    int64_t begin = view.keys, end = 0;
    for (int64_t i = 0; i < count; ++i) {
      const Block block(view, first + i);
      begin = std::min(begin, block.first);
      end = std::max(end, block.end);
    }
    pool.ParallelFor(count, [&](int64_t i) {
      DifferentiateScores(view, Block(view, first + i), call, mine(i));
    });
    const int64_t parts = std::clamp<int64_t>((end - begin) / kKeyMultiple, 1, threads);
    pool.ParallelFor(parts, [&](int64_t part) {
      const KeyRange range = {begin + (end - begin) * part / parts,
                              begin + (end - begin) * (part + 1) / parts};
      for (int64_t i = 0; i < count; ++i) {
        AddKeyGradients(view, Block(view, first + i), range, call, mine(i));
      }
    });
  }
}

void CheckShape(const AttentionShape& s) {
  FEDGE_CHECK(s.kv_heads > 0 && s.heads % s.kv_heads == 0, s.heads, " heads, ", s.kv_heads);
  FEDGE_CHECK(s.past == 0 || s.batch == 1, "a cache serves one sequence");
  FEDGE_CHECK(s.window >= 0, "window ", s.window);
}

}  // namespace

void AttentionForward(const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v,
                      float* out, float* lse, FloatBuffer& scratch, ThreadPool& pool) {
  CheckShape(shape);
  const int64_t padded = HeadViews::PaddedKeys(shape);
  const bool few = shape.length < kFewQueries;
  const int64_t kt_size = few ? 0 : shape.head_dim * padded;
  const int64_t slot_size = kt_size + std::min(kQueryBlock, shape.length) * padded;
  float* const memory = scratch.Get(slot_size * pool.threads());
  const ForwardCall call = {q, k, v, {out, shape.heads * shape.head_dim}, lse};
  const int64_t tasks = shape.batch * shape.kv_heads, blocks = Block::Count(shape);
  const auto kt = [&](int64_t slot) { return few ? nullptr : memory + slot * slot_size; };
  const auto scores = [&](int64_t slot) { return memory + slot * slot_size + kt_size; };
  if (SharesHeads(shape, pool)) {
    for (int64_t task = 0; task < tasks; ++task) {
      const HeadViews view(shape, task);
      TransposeHead(view, k, kt(0));
      ForEachSlot(blocks, pool, [&](int64_t slot, int64_t i) {
        ForwardBlock(view, Block(view, i), call, kt(0), scores(slot));
      });
    }
    return;
  }
  ForEachSlot(tasks, pool, [&](int64_t slot, int64_t task) {
    const HeadViews view(shape, task);
    if (!few) TransposeHead(view, k, kt(slot));
    for (int64_t i = 0; i < blocks; ++i) {
      ForwardBlock(view, Block(view, i), call, kt(slot), scores(slot));
    }
  });
}

int64_t AttentionScratch(int64_t head_dim, int64_t length) {
  return 2 * (head_dim + kQueryBlock) * RoundUp(length, kKeyMultiple);
}

void AttentionBackward(const AttentionShape& shape, const AttentionForwardValues& forward,
                       const float* dout, const AttentionGradients& gradients, FloatBuffer& scratch,
                       ThreadPool& pool) {
  CheckShape(shape);
  FEDGE_CHECK(shape.past == 0, "no gradient through a cache");
  const int64_t padded = HeadViews::PaddedKeys(shape);
  const int64_t slot_size = AttentionScratch(shape.head_dim, shape.length);
  float* const memory = scratch.Get(slot_size * pool.threads());
  const int64_t width = shape.heads * shape.head_dim;
  const BackwardCall call = {forward, {forward.out, width}, {dout, width}, gradients};
  const auto mine = [&](int64_t slot) {
    BackwardScratch result;
    result.kt = memory + slot * slot_size;
    result.vt = result.kt + shape.head_dim * padded;
    result.p = result.vt + shape.head_dim * padded;
    result.ds = result.p + kQueryBlock * padded;
    return result;
  };
  const int64_t tasks = shape.batch * shape.kv_heads;
  if (SharesHeads(shape, pool)) {
    for (int64_t task = 0; task < tasks; ++task) {
      BackwardTogether(HeadViews(shape, task), call, mine, pool);
    }
    return;
  }
  ForEachSlot(tasks, pool, [&](int64_t slot, int64_t task) {
    const HeadViews view(shape, task);
    BeginBackward(view, call, mine(slot));
    for (int64_t i = 0; i < Block::Count(shape); ++i) {
      const Block block(view, i);
      DifferentiateScores(view, block, call, mine(slot));
      AddKeyGradients(view, block, {0, view.keys}, call, mine(slot));
    }
  });
}

}  // namespace fedge
