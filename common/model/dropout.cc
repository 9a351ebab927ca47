#include "common/model/dropout.h"

#include <algorithm>

namespace fedge {
namespace {

constexpr int64_t kRowsPerTask = 16;

// The mask of one row: 32 random bits for each column.
class RowMask {
 public:
  RowMask(const Dropout& dropout, uint64_t stream, int64_t row)
      : threshold_(static_cast<uint32_t>(double{dropout.rate} * 0x1p32)),
        factor_(1 / (1 - dropout.rate)) {
    const auto sequence =
        static_cast<uint64_t>(dropout.first_sequence + row / dropout.sequence_length);
    const auto position = static_cast<uint64_t>(row % dropout.sequence_length);
    uint64_t h = Mix(dropout.seed ^ Mix(stream));
    h = Mix(h ^ Mix(sequence << 32 | position));
    seed_ = static_cast<uint32_t>(h >> 32);
  }

  // 0 or 1 / (1 - rate)
  float Factor(int64_t column) const {
    uint32_t h = seed_ + static_cast<uint32_t>(column) * 0x9e3779b1u;  // MurmurHash3's finalizer
    h = (h ^ h >> 16) * 0x85ebca6bu;
    h = (h ^ h >> 13) * 0xc2b2ae35u;
    return (h ^ h >> 16) >= threshold_ ? factor_ : 0.0f;
  }

 private:
  static uint64_t Mix(uint64_t x) {  // SplitMix64's finalizer
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }

  uint32_t seed_;
  uint32_t threshold_;
  float factor_;
};

template <typename Body>
void ForEachRow(int64_t rows, ThreadPool& pool, const Body& body) {
  pool.ParallelFor((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    const int64_t end = std::min(rows, (task + 1) * kRowsPerTask);
    for (int64_t row = task * kRowsPerTask; row < end; ++row) body(row);
  });
}

}  // namespace

void DropValues(const Dropout& dropout, uint64_t stream, const float* x, int64_t rows,
                int64_t width, float* y, ThreadPool& pool) {
  ForEachRow(rows, pool, [&](int64_t row) {
    const RowMask mask(dropout, stream, row);
    for (int64_t i = row * width; i < (row + 1) * width; ++i) {
      y[i] = x[i] * mask.Factor(i - row * width);
    }
  });
}

void AddDroppedGradient(const Dropout& dropout, uint64_t stream, const float* dy, int64_t rows,
                        int64_t width, float* dx, ThreadPool& pool) {
  ForEachRow(rows, pool, [&](int64_t row) {
    const RowMask mask(dropout, stream, row);
    for (int64_t i = row * width; i < (row + 1) * width; ++i) {
      dx[i] += dy[i] * mask.Factor(i - row * width);
    }
  });
}

}  // namespace fedge
