// Attention over a cache. A few new tokens: tasks are a key/value head and a chunk of the past, so
// that one sequence with few heads keeps all threads busy; each gives a softmax of its own, and
// these are weighted by their sums in the end (Flash-Decoding, Dao et al. 2023). Many new tokens:
// the past is decoded once, and attention is that of a batch.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/base/status.h"
#include "common/model/kv_cache.h"
#include "common/tensor/row_ops.h"

namespace fedge {
namespace {

constexpr int64_t kFewQueries = 4;
constexpr int64_t kChunk = 128;  // keys of a task; a multiple of the vectors
// Below this many queries of one key head it does not pay to transpose the keys.
constexpr int64_t kMinTransposed = 3;

struct Call {
  const AttentionShape& shape;
  ConstRows q, k, v;
  const KvLayer& cache;
  int64_t first = 0;        // token that some query sees
  int64_t past_chunks = 0;  // after them comes one with the new tokens

  int64_t group() const { return shape.heads / shape.kv_heads; }
  int64_t chunks() const { return past_chunks + 1; }
  int64_t queries() const { return shape.length * shape.heads; }
};

// What the chunks give, [chunk][query][head]: log of the sum of exp(scores), -inf for none seen,
// and the weighted mean of the values.
struct Parts {
  float* lse;
  float* out;
};

// A chunk's keys or values of one head.
struct ChunkRows {
  const float* data;
  int64_t stride;
};

// Scratch of one task, floats.
struct TaskScratch {
  float *rows, *transposed, *scores;

  static int64_t Size(const Call& call) {
    const int64_t dim = call.shape.head_dim;
    return kChunk * (call.cache.row_stride() + dim + call.group());
  }
};

ChunkRows RowsOf(const Call& call, int64_t head, int64_t begin, int64_t count, bool keys,
                 float* to) {
  if (begin >= call.shape.past) {
    const ConstRows& rows = keys ? call.k : call.v;
    return {rows.data + (begin - call.shape.past) * rows.stride + head * call.shape.head_dim,
            rows.stride};
  }
  keys ? call.cache.ReadKeys(head, begin, count, to)
       : call.cache.ReadValues(head, begin, count, to);
  return {to, call.cache.row_stride()};
}

// scores [group][kChunk] of one query's heads.
void Score(const Call& call, const float* query, const ChunkRows& keys, int64_t count,
           const TaskScratch& mine) {
  const int64_t dim = call.shape.head_dim, group = call.group();
  if (call.shape.length * group < kMinTransposed) {
    for (int64_t g = 0; g < group; ++g) {
      for (int64_t j = 0; j < count; ++j) {
        mine.scores[g * kChunk + j] = RowDot(query + g * dim, keys.data + j * keys.stride, dim);
      }
    }
    return;
  }
  SmallMatMulShape product;
  product.m = group;
  product.n = count;
  product.k = dim;
  product.a_row = dim;
  product.b_row = product.c_row = kChunk;
  SmallMatMul(product, query, mine.transposed, mine.scores);
}

void AttendChunk(const Call& call, int64_t head, int64_t chunk, const TaskScratch& mine,
                 const Parts& parts) {
  const AttentionShape& s = call.shape;
  const int64_t group = call.group();
  const bool fresh = chunk == call.past_chunks;
  const int64_t begin = fresh ? s.past : call.first + chunk * kChunk;
  const int64_t end = fresh ? s.past + s.length : std::min(begin + kChunk, s.past);
  const ChunkRows keys = RowsOf(call, head, begin, end - begin, true, mine.rows);
  if (s.length * group >= kMinTransposed) {
    Transpose(keys.data, keys.stride, end - begin, s.head_dim, mine.transposed, kChunk);
  }
  // The values take the keys' place once all queries have scored them.
  float* const lse = parts.lse + chunk * call.queries() + head * group;
  for (int64_t r = 0; r < s.length; ++r) {
    float* const scores = mine.scores + r * group * kChunk;
    const int64_t from =
        s.window == 0 ? 0 : std::max<int64_t>(0, s.past + r - s.window + 1 - begin);
    const int64_t to = std::min(end, s.past + r + 1) - begin;
    Score(call, call.q.data + r * call.q.stride + head * group * s.head_dim, keys, end - begin,
          {mine.rows, mine.transposed, scores});
    for (int64_t g = 0; g < group; ++g) {
      float* const row = scores + g * kChunk;
      const bool seen = from < to;
      lse[r * s.heads + g] = seen
                                 ? static_cast<float>(SoftmaxRow(s.scale, 1, to - from, row + from))
                                 : -std::numeric_limits<float>::infinity();
      std::fill(row, row + (seen ? from : end - begin), 0.0f);
      std::fill(row + std::max(from, to), row + (end - begin), 0.0f);
    }
  }
  const ChunkRows values = RowsOf(call, head, begin, end - begin, false, mine.rows);
  SmallMatMulShape product;
  product.m = group;
  product.n = s.head_dim;
  product.k = end - begin;
  product.a_row = kChunk;
  product.b_row = values.stride;
  product.c_row = s.head_dim;
  for (int64_t r = 0; r < s.length; ++r) {
    const int64_t query = chunk * call.queries() + r * s.heads + head * group;
    SmallMatMul(product, mine.scores + r * group * kChunk, values.data,
                parts.out + query * s.head_dim);
  }
}

// The chunks' parts of one query and head, in their order.
void Combine(const Call& call, const Parts& parts, int64_t query, float* out, float* lse) {
  const int64_t dim = call.shape.head_dim, queries = call.queries();
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t c = 0; c < call.chunks(); ++c) {
    largest = std::max(largest, parts.lse[c * queries + query]);
  }
  float sum = 0;
  for (int64_t c = 0; c < call.chunks(); ++c) {
    sum += std::exp(parts.lse[c * queries + query] - largest);
  }
  std::fill(out, out + dim, 0.0f);
  for (int64_t c = 0; c < call.chunks(); ++c) {
    const float weight = std::exp(parts.lse[c * queries + query] - largest) / sum;
    if (weight > 0) RowAxpy(weight, parts.out + (c * queries + query) * dim, dim, out);
  }
  *lse = largest + std::log(sum);
}

void AttendFew(const Call& call, float* out, float* lse, FloatBuffer& scratch, ThreadPool& pool) {
  const AttentionShape& s = call.shape;
  const int64_t per_task = TaskScratch::Size(call) + (s.length - 1) * call.group() * kChunk;
  const int64_t tasks = s.kv_heads * call.chunks();
  const int64_t slots = std::min<int64_t>(tasks, pool.threads());
  const int64_t parts_size = call.chunks() * call.queries();
  float* const memory = scratch.Get(parts_size * (s.head_dim + 1) + slots * per_task);
  const Parts parts = {memory, memory + parts_size};
  float* const mine = parts.out + parts_size * s.head_dim;
  ForEachSlot(tasks, pool, [&](int64_t slot, int64_t task) {
    float* const rows = mine + slot * per_task;
    float* const transposed = rows + kChunk * call.cache.row_stride();
    AttendChunk(call, task % s.kv_heads, task / s.kv_heads,
                {rows, transposed, transposed + kChunk * s.head_dim}, parts);
  });
  for (int64_t i = 0; i < call.queries(); ++i) {
    Combine(call, parts, i, out + i * s.head_dim, lse + i);
  }
}

// The past from the cache and the new rows, one below the other.
void AttendMany(const Call& call, float* out, float* lse, FloatBuffer& scratch, ThreadPool& pool) {
  const AttentionShape& s = call.shape;
  const int64_t past = s.past - call.first, keys = past + s.length;
  const int64_t width = s.kv_heads * s.head_dim;
  std::vector<float> joined(static_cast<size_t>(2 * keys * width));
  float* const all_keys = joined.data();
  float* const all_values = all_keys + keys * width;
  constexpr int64_t kRows = 64;
  const int64_t pieces = (past + kRows - 1) / kRows;
  pool.ParallelFor(2 * s.kv_heads * pieces, [&](int64_t task) {
    const int64_t head = task / 2 % s.kv_heads, begin = task / 2 / s.kv_heads * kRows;
    const int64_t count = std::min(kRows, past - begin), stride = call.cache.row_stride();
    std::vector<float> rows(static_cast<size_t>(count * stride));
    task % 2 == 0 ? call.cache.ReadKeys(head, call.first + begin, count, rows.data())
                  : call.cache.ReadValues(head, call.first + begin, count, rows.data());
    float* const to = (task % 2 == 0 ? all_keys : all_values) + begin * width + head * s.head_dim;
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(rows.data() + i * stride, s.head_dim, to + i * width);
    }
  });
  ForEachRows(s.length, width, pool, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::copy_n(call.k.data + i * call.k.stride, width, all_keys + (past + i) * width);
      std::copy_n(call.v.data + i * call.v.stride, width, all_values + (past + i) * width);
    }
  });
  AttentionShape joined_shape = s;
  joined_shape.past = past;
  AttentionForward(joined_shape, call.q, {all_keys, width}, {all_values, width}, out, lse, scratch,
                   pool);
}

}  // namespace

void CachedAttention(const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v,
                     const KvLayer& cache, float* out, float* lse, FloatBuffer& scratch,
                     ThreadPool& pool) {
  FEDGE_CHECK(shape.batch == 1, "a cache serves one sequence, not ", shape.batch);
  Call call = {shape, q, k, v, cache};
  if (shape.window > 0) call.first = std::max<int64_t>(0, shape.past - shape.window + 1);
  call.past_chunks = (shape.past - call.first + kChunk - 1) / kChunk;
  if (shape.past > 0 && shape.length < kFewQueries) {
    AttendFew(call, out, lse, scratch, pool);
  } else if (shape.past > 0) {
    AttendMany(call, out, lse, scratch, pool);
  } else {
    AttentionForward(shape, q, k, v, out, lse, scratch, pool);
  }
}

}  // namespace fedge
