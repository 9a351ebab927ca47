#include "common/tensor/vector_product.h"

#include <algorithm>
#include <vector>

#include "common/tensor/row_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/tensor/vector_product.cc"
#include <hwy/foreach_target.h>  // must come before highway.h

#include "common/tensor/block_decoders-inl.h"

FEDGE_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {

// Sums for each row of x, so that an addition does not wait for the one before; as many for one row
// as for four, since their order is part of the result.
#if HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr int kSums = 4;
#else
constexpr int kSums = 2;
#endif

template <int T>
struct DotRows {
  const float* x[T];
  int64_t n;
  V sum[T][kSums];

  HWY_INLINE void operator()(int64_t i, V v) {
    for (int t = 0; t < T; ++t) {
      const V next = hn::MulAdd(LoadPart(x[t] + i, n - i), v, sum[t][0]);
      for (int k = 0; k + 1 < kSums; ++k) sum[t][k] = sum[t][k + 1];
      sum[t][kSums - 1] = next;
    }
  }
  HWY_INLINE float Sum(int t) const {
    V total = sum[t][0];
    for (int k = 1; k < kSums; ++k) total = hn::Add(total, sum[t][k]);
    return hn::GetLane(hn::SumOfLanes(D(), total));
  }
};

template <int T>
void DotWeightRows(const WeightMatrix& w, int64_t begin, int64_t end, const float* x, float scale,
                   float* y) {
  const int64_t row_bytes = RowBytes(w.type, w.cols);
  WithDecoder(w.type, [&](auto decoder) FEDGE_ATTR {
    for (int64_t r = begin; r < end; ++r) {
      DotRows<T> dots;
      dots.n = w.cols;
      for (int t = 0; t < T; ++t) {
        dots.x[t] = x + t * w.cols;
        for (V& sum : dots.sum[t]) sum = hn::Zero(D());
      }
      decoder.Decode(w.data + r * row_bytes, 0, w.cols, dots);
      for (int t = 0; t < T; ++t) y[t * w.rows + r] = scale * dots.Sum(t);
    }
  });
}

// y[t][r] = scale * dot(x[t], W[r]) for the rows r of W in [begin, end).
void DotWeight(const WeightMatrix& w, int64_t begin, int64_t end, const float* x, int64_t rows,
               float scale, float* y) {
  switch (rows) {
    case 1:
      return DotWeightRows<1>(w, begin, end, x, scale, y);
    case 2:
      return DotWeightRows<2>(w, begin, end, x, scale, y);
    case 3:
      return DotWeightRows<3>(w, begin, end, x, scale, y);
    default:
      return DotWeightRows<4>(w, begin, end, x, scale, y);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedge {
namespace {

HWY_EXPORT(DotWeight);

// Multiply-adds of a task: some ten microseconds.
constexpr int64_t kTaskWork = int64_t{1} << 17;

struct VectorTask {
  const ForwardLayer* layer;
  int64_t begin, end;
};

}  // namespace

void ForwardVectors(absl::Span<const ForwardLayer> layers, const float* x, const LinearRows& rows,
                    Accumulate accumulate, ThreadPool& pool) {
  const int64_t in = layers[0].w.cols;
  std::vector<VectorTask> tasks;
  for (const ForwardLayer& layer : layers) {
    int64_t first = 0;
    for (size_t i = 0; i < layer.lora.factors.size() && layer.lora.rank > 0; ++i) {
      for (int64_t t = first; t < rows.ends[i]; ++t) {
        for (int64_t r = 0; r < layer.lora.rank; ++r) {
          layer.u[t * layer.lora.rank + r] =
              RowDot(layer.lora.factors[i].a + r * in, x + t * in, in);
        }
      }
      first = rows.ends[i];
    }
    const int64_t block = std::clamp<int64_t>(kTaskWork / std::max<int64_t>(1, in), 16, 1024);
    for (int64_t n = 0; layer.y != nullptr && n < layer.w.rows; n += block) {
      tasks.push_back({&layer, n, std::min(n + block, layer.w.rows)});
    }
  }
  const auto dot = HWY_DYNAMIC_DISPATCH(DotWeight);
  pool.ParallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t index) {
    const ForwardLayer& layer = *tasks[static_cast<size_t>(index)].layer;
    const int64_t begin = tasks[static_cast<size_t>(index)].begin;
    const int64_t count = tasks[static_cast<size_t>(index)].end - begin;
    const int64_t out = layer.w.rows;
    std::vector<float> old;
    if (accumulate == Accumulate::kYes) {
      for (int64_t t = 0; t < rows.t; ++t) {
        old.insert(old.end(), layer.y + t * out + begin, layer.y + t * out + begin + count);
      }
    }
    dot(layer.w, begin, begin + count, x, rows.t, layer.scale, layer.y);
    size_t branch = 0;
    for (int64_t t = 0; t < rows.t; ++t) {
      float* const y = layer.y + t * out + begin;
      if (layer.bias != nullptr) RowAdd(layer.bias + begin, count, y);
      if (!old.empty()) RowAdd(old.data() + t * count, count, y);
      if (layer.lora.rank == 0) continue;
      while (t >= rows.ends[branch]) ++branch;
      for (int64_t r = 0; r < layer.lora.rank; ++r) {
        RowAxpy(layer.lora.scale * layer.u[t * layer.lora.rank + r],
                layer.lora.factors[branch].bt + r * out + begin, count, y);
      }
    }
  });
}

}  // namespace fedge
#endif  // HWY_ONCE
