#include "common/model/ops.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>

#include "common/base/status.h"
#include "common/model/family_row_ops.h"
#include "common/tensor/quantize.h"
#include "common/tensor/row_ops.h"

namespace fedge {

void FloatBuffer::Free::operator()(float* p) const { std::free(p); }

float* FloatBuffer::Get(int64_t count) {
  if (count > capacity_) {
    constexpr size_t kLine = 64;
    const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + kLine - 1) / kLine * kLine;
    data_.reset();
    data_.reset(static_cast<float*>(std::aligned_alloc(kLine, bytes)));
    FEDGE_CHECK(data_ != nullptr, "out of memory for ", bytes, " bytes of activations");
    capacity_ = count;
  }
  return data_.get();
}

void ForEachRows(int64_t rows, int64_t row_cost, ThreadPool& pool,
                 const std::function<void(int64_t, int64_t)>& body) {
  constexpr int64_t kBlockCost = 16384;  // enough work to be worth a task
  const int64_t block = std::max<int64_t>(1, kBlockCost / std::max<int64_t>(1, row_cost));
  const int64_t blocks = (rows + block - 1) / block;
  pool.ParallelFor(blocks, [&](int64_t i) { body(i * block, std::min(rows, (i + 1) * block)); });
}

void ForEachSlot(int64_t count, ThreadPool& pool,
                 const std::function<void(int64_t, int64_t)>& task) {
  // Each slot begins with a part of its own: the same rows as in loops before and after, mostly.
  const int64_t slots = std::min<int64_t>(count, pool.threads());
  std::vector<std::atomic<bool>> taken(static_cast<size_t>(count));
  pool.ParallelFor(slots, [&](int64_t slot) {
    const int64_t first = slot * count / slots;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t i = (first + k) % count;
      if (!taken[static_cast<size_t>(i)].exchange(true)) task(slot, i);
    }
  });
}

void RmsNormForward(const float* x, const float* weight, int64_t t, int64_t channels, float epsilon,
                    float* y, float* inv, ThreadPool& pool) {
  ForEachRows(t, channels, pool, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      inv[i] = RmsNormRow(x + i * channels, weight, channels, epsilon, y + i * channels);
    }
  });
}

void RmsNormBackward(const float* x, const float* weight, const float* inv, const float* dy,
                     int64_t t, int64_t channels, float* dx, float* dweight, ThreadPool& pool) {
  ForEachRows(t, 2 * channels, pool, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i * channels;
      RmsNormRowBackward(x + row, weight, inv[i], dy + row, channels, dx + row);
    }
  });
  if (dweight == nullptr) return;
  // Columns are split, so that each weight's sum over the rows has one order.
  constexpr int64_t kColumns = 64;
  pool.ParallelFor((channels + kColumns - 1) / kColumns, [&](int64_t block) {
    const int64_t begin = block * kColumns;
    const int64_t width = std::min(kColumns, channels - begin);
    for (int64_t i = 0; i < t; ++i) {
      const int64_t at = i * channels + begin;
      RmsNormRowWeightGradient(x + at, inv[i], dy + at, width, dweight + begin);
    }
  });
}

void HeadNormForward(const HeadShape& shape, const float* x, const float* weight, float epsilon,
                     float* y, float* inv, ThreadPool& pool) {
  const int64_t n = shape.head_dim;
  ForEachRows(shape.rows, shape.heads * n, pool, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t h = 0; h < shape.heads; ++h) {
        const int64_t at = i * shape.heads + h;
        inv[at] = RmsNormRow(x + i * shape.stride + h * n, weight, n, epsilon, y + at * n);
      }
    }
  });
}

void HeadNormBackward(const HeadShape& shape, const float* x, const float* weight, const float* inv,
                      float* dy, float* dweight, ThreadPool& pool) {
  const int64_t n = shape.head_dim;
  if (dweight != nullptr) {  // before dy is gone; columns are split, as in RmsNormBackward
    constexpr int64_t kColumns = 16;
    pool.ParallelFor((n + kColumns - 1) / kColumns, [&](int64_t block) {
      const int64_t begin = block * kColumns;
      const int64_t width = std::min(kColumns, n - begin);
      for (int64_t i = 0; i < shape.rows * shape.heads; ++i) {
        const int64_t at = i / shape.heads * shape.stride + i % shape.heads * n + begin;
        RmsNormRowWeightGradient(x + at, inv[i], dy + at, width, dweight + begin);
      }
    });
  }
  ForEachRows(shape.rows, 2 * shape.heads * n, pool, [&](int64_t begin, int64_t end) {
    std::vector<float> dx(static_cast<size_t>(n));
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t h = 0; h < shape.heads; ++h) {
        const int64_t at = i * shape.stride + h * n;
        std::fill(dx.begin(), dx.end(), 0.0f);
        RmsNormRowBackward(x + at, weight, inv[i * shape.heads + h], dy + at, n, dx.data());
        std::copy(dx.begin(), dx.end(), dy + at);
      }
    }
  });
}

void RopeTable::EnsurePositions(int64_t count) {
  if (count <= positions_) return;
  cosine_.resize(static_cast<size_t>(count * width()));
  sine_.resize(cosine_.size());
  const double magnitude = static_cast<double>(frequencies_.magnitude);
  for (int64_t position = positions_; position < count; ++position) {
    float* const cosine = cosine_.data() + position * width();
    float* const sine = sine_.data() + position * width();
    for (size_t i = 0; i < frequencies_.theta.size(); ++i) {
      const double angle =
          static_cast<double>(position) * static_cast<double>(frequencies_.theta[i]);
      const float c = static_cast<float>(magnitude * std::cos(angle));
      const float s = static_cast<float>(magnitude * std::sin(angle));
      if (pairs_ == RopePairs::kAdjacent) {
        cosine[2 * i] = cosine[2 * i + 1] = c;
        sine[2 * i] = -s;
        sine[2 * i + 1] = s;
      } else {
        cosine[i] = c;
        sine[i] = s;
      }
    }
  }
  positions_ = count;
}

namespace {

using RopeKernel = void (*)(const float*, const float*, int64_t, float*);

void RotateRows(const RopeTable& table, const RopePositions& positions, const HeadShape& shape,
                RopeKernel kernel, float* x, ThreadPool& pool) {
  ForEachRows(shape.rows, shape.heads * shape.head_dim, pool, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t position = positions.past + i % positions.length;
      for (int64_t head = 0; head < shape.heads; ++head) {
        kernel(table.cosine(position), table.sine(position), table.rope_dim(),
               x + i * shape.stride + head * shape.head_dim);
      }
    }
  });
}

}  // namespace

void RopeForward(const RopeTable& table, const RopePositions& positions, const HeadShape& shape,
                 float* x, ThreadPool& pool) {
  const bool adjacent = table.pairs() == RopePairs::kAdjacent;
  RotateRows(table, positions, shape, adjacent ? RopeRow : RopeHalvesRow, x, pool);
}

void RopeBackward(const RopeTable& table, const RopePositions& positions, const HeadShape& shape,
                  float* dx, ThreadPool& pool) {
  const bool adjacent = table.pairs() == RopePairs::kAdjacent;
  RotateRows(table, positions, shape, adjacent ? RopeRowBackward : RopeHalvesRowBackward, dx, pool);
}

namespace {

// Runs body(offset in gate and up, offset in the contiguous matrix, values) over rows, or over runs
// of rows where nothing lies between them.
template <typename Body>
void ForEachGateRun(const GateShape& shape, ThreadPool& pool, const Body& body) {
  ForEachRows(shape.t, 2 * shape.n, pool, [&](int64_t begin, int64_t end) {
    if (shape.stride == shape.n) {
      body(begin * shape.n, begin * shape.n, (end - begin) * shape.n);
      return;
    }
    for (int64_t i = begin; i < end; ++i) body(i * shape.stride, i * shape.n, shape.n);
  });
}

}  // namespace

void GateForward(const GateShape& shape, const float* gate, const float* up, float* y,
                 ThreadPool& pool) {
  const auto row = shape.function == GateFunction::kSilu ? SwiGluRow : GeluGluRow;
  ForEachGateRun(shape, pool, [&](int64_t at, int64_t y_at, int64_t count) {
    row(gate + at, up + at, count, y + y_at);
  });
}

void GateBackward(const GateShape& shape, float* gate, float* up, const float* dy,
                  ThreadPool& pool) {
  const auto row = shape.function == GateFunction::kSilu ? SwiGluRowBackward : GeluGluRowBackward;
  ForEachGateRun(shape, pool, [&](int64_t at, int64_t dy_at, int64_t count) {
    row(gate + at, up + at, dy + dy_at, count, gate + at, up + at);
  });
}

void SoftCapForward(float cap, int64_t t, int64_t n, float* x, ThreadPool& pool) {
  ForEachRows(t, 4 * n, pool, [&](int64_t begin, int64_t end) {
    SoftCapRow(cap, (end - begin) * n, x + begin * n);
  });
}

void SoftCapBackward(float cap, const float* y, int64_t t, int64_t n, float* dx, ThreadPool& pool) {
  ForEachRows(t, 2 * n, pool, [&](int64_t begin, int64_t end) {
    SoftCapRowBackward(cap, y + begin * n, (end - begin) * n, dx + begin * n);
  });
}

void CrossEntropyForward(const float* logits, const TokenId* targets, int64_t t, int64_t vocabulary,
                         double* nats, ThreadPool& pool) {
  ForEachRows(t, 4 * vocabulary, pool, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* const row = logits + i * vocabulary;
      nats[i] = LogSumExpRow(row, 1, vocabulary) - static_cast<double>(row[targets[i]]);
    }
  });
}

void CrossEntropyForwardBackward(float* logits, const TokenId* targets, int64_t t,
                                 int64_t vocabulary, const float* grad_scale, double* nats,
                                 ThreadPool& pool) {
  ForEachRows(t, 4 * vocabulary, pool, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* const row = logits + i * vocabulary;
      const double target = static_cast<double>(row[targets[i]]);
      nats[i] = SoftmaxRow(1, grad_scale[i], vocabulary, row) - target;
      row[targets[i]] -= grad_scale[i];
    }
  });
}

void EmbeddingForward(const WeightMatrix& table, absl::Span<const TokenId> tokens, float scale,
                      float* y, ThreadPool& pool) {
  ForEachRows(static_cast<int64_t>(tokens.size()), table.cols, pool,
              [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) {
                  const TokenId token = tokens[static_cast<size_t>(i)];
                  float* const row = y + i * table.cols;
                  Dequantize(table.type, table.Row(token), table.cols, row);
                  if (scale != 1) RowScale(scale, table.cols, row);
                }
              });
}

void EmbeddingBackward(absl::Span<const TokenId> tokens, int64_t channels, float scale,
                       const float* dy, float* dtable, ThreadPool& pool) {
  constexpr int64_t kColumns = 64;
  pool.ParallelFor((channels + kColumns - 1) / kColumns, [&](int64_t block) {
    const int64_t begin = block * kColumns;
    const int64_t width = std::min(kColumns, channels - begin);
    for (size_t i = 0; i < tokens.size(); ++i) {
      RowAxpy(scale, dy + static_cast<int64_t>(i) * channels + begin, width,
              dtable + tokens[i] * channels + begin);
    }
  });
}

void AddForward(const float* x, int64_t n, float* y, ThreadPool& pool) {
  constexpr int64_t kBlock = 16384;
  pool.ParallelFor((n + kBlock - 1) / kBlock, [&](int64_t i) {
    const int64_t begin = i * kBlock;
    RowAdd(x + begin, std::min(kBlock, n - begin), y + begin);
  });
}

}  // namespace fedge
