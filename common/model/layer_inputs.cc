#include "common/model/layer_inputs.h"

#include <algorithm>

#include "common/base/status.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

constexpr int64_t kValuesPerTask = 1 << 14;

// body(first, last) over pieces of [0, size).
template <typename Body>
void ForEachPiece(int64_t size, ThreadPool& pool, const Body& body) {
  pool.ParallelFor((size + kValuesPerTask - 1) / kValuesPerTask, [&](int64_t i) {
    body(i * kValuesPerTask, std::min(size, (i + 1) * kValuesPerTask));
  });
}

}  // namespace

void LayerInputs::BeginForward(int64_t size) {
  size_ = size;
  first_exact_ = exact_.size();
}

void LayerInputs::BeginGradient(int64_t size, size_t first_exact) {
  FEDGE_CHECK(first_exact <= exact_.size());
  size_ = size;
  first_exact_ = first_exact;
}

float* LayerInputs::Make(size_t i) {
  const bool exact = i >= first_exact_ && i < exact_.size();
  return (exact ? exact_[i] : stream_[i % 2]).Get(size_);
}

void LayerInputs::Keep(size_t i) {
  if (i >= first_exact_) return;
  if (rounded_sizes_[i] < size_) {
    rounded_[i].reset();  // first, so that both never exist at once
    rounded_[i].reset(new uint16_t[static_cast<size_t>(size_)]);
    rounded_sizes_[i] = size_;
  }
  const float* const from = stream_[i % 2].data();
  uint16_t* const to = rounded_[i].get();
  ForEachPiece(size_, pool_, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) to[k] = FloatToBfloat16(from[k]);
  });
}

const float* LayerInputs::Restore(size_t i) {
  if (i >= first_exact_) return exact_[i].data();
  const uint16_t* const from = rounded_[i].get();
  float* const to = stream_[0].Get(size_);
  ForEachPiece(size_, pool_, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) to[k] = Bfloat16ToFloat(from[k]);
  });
  return to;
}

int64_t LayerInputs::Bytes(int64_t size, int64_t layers, int64_t first_exact) {
  return size * (2 * 4 + first_exact * 2 + (layers - first_exact) * 4);
}

}  // namespace fedge
