#include "common/model/ops.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "common/base/status.h"
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

void RopeTable::EnsurePositions(int64_t count) {
  if (count <= positions_) return;
  cosine_.resize(static_cast<size_t>(count * rope_dim()));
  sine_.resize(cosine_.size());
  for (int64_t position = positions_; position < count; ++position) {
    for (size_t i = 0; i < frequencies_.size(); ++i) {
      const double angle = static_cast<double>(position) * static_cast<double>(frequencies_[i]);
      const size_t at = static_cast<size_t>(position * rope_dim()) + 2 * i;
      cosine_[at] = cosine_[at + 1] = static_cast<float>(std::cos(angle));
      sine_[at + 1] = static_cast<float>(std::sin(angle));
      sine_[at] = -sine_[at + 1];
    }
  }
  positions_ = count;
}

namespace {

using RopeKernel = void (*)(const float*, const float*, int64_t, float*);

void RotateRows(const RopeTable& table, const RopeShape& shape, RopeKernel kernel, float* x,
                ThreadPool& pool) {
  const int64_t width = shape.heads * shape.head_dim;
  ForEachRows(shape.batch * shape.length, width, pool, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t position = shape.past + i % shape.length;
      for (int64_t head = 0; head < shape.heads; ++head) {
        kernel(table.cosine(position), table.sine(position), table.rope_dim(),
               x + i * width + head * shape.head_dim);
      }
    }
  });
}

}  // namespace

void RopeForward(const RopeTable& table, const RopeShape& shape, float* x, ThreadPool& pool) {
  RotateRows(table, shape, RopeRow, x, pool);
}

void RopeBackward(const RopeTable& table, const RopeShape& shape, float* dx, ThreadPool& pool) {
  RotateRows(table, shape, RopeRowBackward, dx, pool);
}

void SwiGluForward(const float* gate, const float* up, int64_t t, int64_t n, float* y,
                   ThreadPool& pool) {
  ForEachRows(t, 2 * n, pool, [&](int64_t begin, int64_t end) {
    SwiGluRow(gate + begin * n, up + begin * n, (end - begin) * n, y + begin * n);
  });
}

void SwiGluBackward(float* gate, const float* up, int64_t t, int64_t n, float* dy,
                    ThreadPool& pool) {
  ForEachRows(t, 2 * n, pool, [&](int64_t begin, int64_t end) {
    const int64_t at = begin * n;
    SwiGluRowBackward(gate + at, up + at, dy + at, (end - begin) * n, gate + at, dy + at);
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

void EmbeddingForward(const WeightMatrix& table, absl::Span<const TokenId> tokens, float* y,
                      ThreadPool& pool) {
  ForEachRows(static_cast<int64_t>(tokens.size()), table.cols, pool,
              [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) {
                  const TokenId token = tokens[static_cast<size_t>(i)];
                  Dequantize(table.type, table.Row(token), table.cols, y + i * table.cols);
                }
              });
}

void EmbeddingBackward(absl::Span<const TokenId> tokens, int64_t channels, const float* dy,
                       float* dtable, ThreadPool& pool) {
  constexpr int64_t kColumns = 64;
  pool.ParallelFor((channels + kColumns - 1) / kColumns, [&](int64_t block) {
    const int64_t begin = block * kColumns;
    const int64_t width = std::min(kColumns, channels - begin);
    for (size_t i = 0; i < tokens.size(); ++i) {
      RowAdd(dy + static_cast<int64_t>(i) * channels + begin, width,
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
