#include "common/tensor/row_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/tensor/row_ops.cc"
#include <hwy/foreach_target.h>  // must come before highway.h

#include <hwy/contrib/math/math-inl.h>

#include "common/tensor/vector-inl.h"

FEDGE_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {

// A whole vector at index i of a row.
struct Whole {
  int64_t i;
  HWY_INLINE V Get(const float* p) const { return hn::LoadU(D(), p + i); }
  HWY_INLINE V GetOr(const float* p, float) const { return Get(p); }
  HWY_INLINE void Put(V v, float* p) const { hn::StoreU(v, D(), p + i); }
};

// The last `count` values of a row, fewer than a vector; missing lanes read as zero or a filler.
struct Part {
  int64_t i;
  int64_t count;
  HWY_INLINE V Get(const float* p) const { return LoadPart(p + i, count); }
  HWY_INLINE V GetOr(const float* p, float filler) const {
    const auto mask = hn::FirstN(D(), static_cast<size_t>(count));
    return hn::IfThenElse(mask, Get(p), hn::Set(D(), filler));
  }
  HWY_INLINE void Put(V v, float* p) const { StorePart(v, p + i, count); }
};

template <class Body>
HWY_INLINE void EachVector(int64_t n, const Body& body) {
  const int64_t step = LaneCount();
  int64_t i = 0;
  for (; i + step <= n; i += step) body(Whole{i});
  if (i < n) body(Part{i, n - i});
}

HWY_INLINE float Sum(V v) { return hn::GetLane(hn::SumOfLanes(D(), v)); }

float Dot(const float* a, const float* b, int64_t n) {
  const D d;
  const int64_t step = LaneCount();
  V sum0 = hn::Zero(d), sum1 = hn::Zero(d), sum2 = hn::Zero(d), sum3 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 4 * step <= n; i += 4 * step) {
    sum0 = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum0);
    sum1 = hn::MulAdd(hn::LoadU(d, a + i + step), hn::LoadU(d, b + i + step), sum1);
    sum2 = hn::MulAdd(hn::LoadU(d, a + i + 2 * step), hn::LoadU(d, b + i + 2 * step), sum2);
    sum3 = hn::MulAdd(hn::LoadU(d, a + i + 3 * step), hn::LoadU(d, b + i + 3 * step), sum3);
  }
  EachVector(n - i,
             [&](auto at) FEDGE_ATTR { sum0 = hn::MulAdd(at.Get(a + i), at.Get(b + i), sum0); });
  return Sum(hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3)));
}

void Axpy(float s, const float* x, int64_t n, float* y) {
  const V factor = hn::Set(D(), s);
  EachVector(n, [&](auto at) FEDGE_ATTR { at.Put(hn::MulAdd(factor, at.Get(x), at.Get(y)), y); });
}

void Add(const float* x, int64_t n, float* y) {
  EachVector(n, [&](auto at) FEDGE_ATTR { at.Put(hn::Add(at.Get(x), at.Get(y)), y); });
}

void Scale(float s, int64_t n, float* x) {
  const V factor = hn::Set(D(), s);
  EachVector(n, [&](auto at) FEDGE_ATTR { at.Put(hn::Mul(factor, at.Get(x)), x); });
}

float RmsNorm(const float* x, const float* weight, int64_t n, float epsilon, float* y) {
  const float mean = Dot(x, x, n) / static_cast<float>(n);
  const float inv = 1.0f / std::sqrt(mean + epsilon);
  const V factor = hn::Set(D(), inv);
  EachVector(n, [&](auto at)
                    FEDGE_ATTR { at.Put(hn::Mul(hn::Mul(at.Get(x), factor), at.Get(weight)), y); });
  return inv;
}

// dx += inv * (w dy - x * inv^2 * mean(w dy x))
void RmsNormBackward(const float* x, const float* weight, float inv, const float* dy, int64_t n,
                     float* dx) {
  V sum = hn::Zero(D());
  EachVector(n, [&](auto at) FEDGE_ATTR {
    sum = hn::MulAdd(hn::Mul(at.Get(weight), at.Get(dy)), at.Get(x), sum);
  });
  const V factor = hn::Set(D(), inv);
  const V pull = hn::Set(D(), -inv * inv * inv * Sum(sum) / static_cast<float>(n));
  EachVector(n, [&](auto at) FEDGE_ATTR {
    const V direct = hn::MulAdd(hn::Mul(at.Get(weight), at.Get(dy)), factor, at.Get(dx));
    at.Put(hn::MulAdd(pull, at.Get(x), direct), dx);
  });
}

void RmsNormWeightGradient(const float* x, float inv, const float* dy, int64_t n, float* dweight) {
  const V factor = hn::Set(D(), inv);
  EachVector(n, [&](auto at) FEDGE_ATTR {
    at.Put(hn::MulAdd(hn::Mul(at.Get(dy), factor), at.Get(x), at.Get(dweight)), dweight);
  });
}

// Pairs never straddle vectors: n is even and so is every vector longer than one lane.
#if HWY_TARGET == HWY_SCALAR
void Rope(const float* cosine, const float* sine, int64_t n, float* x) {
  for (int64_t i = 0; i < n; i += 2) {
    const float a = x[i], b = x[i + 1];
    x[i] = a * cosine[i] + b * sine[i];
    x[i + 1] = b * cosine[i + 1] + a * sine[i + 1];
  }
}

void RopeBackward(const float* cosine, const float* sine, int64_t n, float* dx) {
  for (int64_t i = 0; i < n; i += 2) {
    const float a = dx[i], b = dx[i + 1];
    dx[i] = a * cosine[i] - b * sine[i];
    dx[i + 1] = b * cosine[i + 1] - a * sine[i + 1];
  }
}
#else
void Rope(const float* cosine, const float* sine, int64_t n, float* x) {
  EachVector(n, [&](auto at) FEDGE_ATTR {
    const V value = at.Get(x);
    const V turned = hn::Mul(hn::Reverse2(D(), value), at.Get(sine));
    at.Put(hn::MulAdd(value, at.Get(cosine), turned), x);
  });
}

void RopeBackward(const float* cosine, const float* sine, int64_t n, float* dx) {
  EachVector(n, [&](auto at) FEDGE_ATTR {
    const V value = at.Get(dx);
    const V turned = hn::Mul(hn::Reverse2(D(), value), at.Get(sine));
    at.Put(hn::MulSub(value, at.Get(cosine), turned), dx);
  });
}
#endif

// 1 / (1 + exp(-x)); the bound keeps exp finite where the result is 0 anyway.
HWY_INLINE V Sigmoid(V x) {
  const D d;
  const V one = hn::Set(d, 1.0f);
  const V e = hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 88.0f)));
  return hn::Div(one, hn::Add(one, e));
}

void SwiGlu(const float* gate, const float* up, int64_t n, float* y) {
  EachVector(n, [&](auto at) FEDGE_ATTR {
    const V g = at.Get(gate);
    at.Put(hn::Mul(hn::Mul(g, Sigmoid(g)), at.Get(up)), y);
  });
}

// silu'(g) = s (1 + g (1 - s)), s = sigmoid(g)
void SwiGluBackward(const float* gate, const float* up, const float* dy, int64_t n, float* dgate,
                    float* dup) {
  const V one = hn::Set(D(), 1.0f);
  EachVector(n, [&](auto at) FEDGE_ATTR {
    const V g = at.Get(gate);
    const V grad = at.Get(dy);
    const V s = Sigmoid(g);
    const V slope = hn::Mul(s, hn::MulAdd(g, hn::Sub(one, s), one));
    at.Put(hn::Mul(hn::Mul(grad, at.Get(up)), slope), dgate);
    at.Put(hn::Mul(grad, hn::Mul(g, s)), dup);
  });
}

// Vocabularies are long, so partial sums of this many values are added up in double.
constexpr int64_t kSumChunk = 4096;
constexpr float kVeryNegative = -1e30f;  // exp of it is 0

HWY_INLINE float MaxOf(const float* x, int64_t n) {
  V max = hn::Set(D(), kVeryNegative);
  EachVector(n, [&](auto at) FEDGE_ATTR { max = hn::Max(max, at.GetOr(x, kVeryNegative)); });
  return hn::GetLane(hn::MaxOfLanes(D(), max));
}

// Sum of exp(scale * x - shift), which also goes to `out` unless that is null.
template <bool kStore>
HWY_INLINE double ExpSum(const float* x, float scale, float shift, int64_t n, float* out) {
  const D d;
  const V factor = hn::Set(d, scale);
  const V offset = hn::Set(d, shift);
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kSumChunk) {
    V sum = hn::Zero(d);
    EachVector(std::min(kSumChunk, n - begin), [&](auto at) FEDGE_ATTR {
      const V value = at.GetOr(x + begin, kVeryNegative);
      const V e = hn::Exp(d, hn::MulSub(value, factor, offset));
      sum = hn::Add(sum, e);
      if (kStore) at.Put(e, out + begin);
    });
    total += static_cast<double>(Sum(sum));
  }
  return total;
}

double LogSumExp(const float* x, float scale, int64_t n) {
  const float shift = scale * MaxOf(x, n);
  return static_cast<double>(shift) + std::log(ExpSum<false>(x, scale, shift, n, nullptr));
}

double Softmax(float scale, float out_scale, int64_t n, float* x) {
  const float shift = scale * MaxOf(x, n);
  const double sum = ExpSum<true>(x, scale, shift, n, x);
  Scale(static_cast<float>(static_cast<double>(out_scale) / sum), n, x);
  return static_cast<double>(shift) + std::log(sum);
}

void Exp(float scale, float shift, int64_t n, float* x) {
  const D d;
  const V factor = hn::Set(d, scale);
  const V offset = hn::Set(d, shift);
  EachVector(
      n, [&](auto at) FEDGE_ATTR { at.Put(hn::Exp(d, hn::MulSub(at.Get(x), factor, offset)), x); });
}

void SoftmaxBackward(const float* p, float delta, float scale, int64_t n, float* dp) {
  const V offset = hn::Set(D(), delta);
  const V factor = hn::Set(D(), scale);
  EachVector(n, [&](auto at) FEDGE_ATTR {
    at.Put(hn::Mul(hn::Mul(at.Get(p), factor), hn::Sub(at.Get(dp), offset)), dp);
  });
}

#if HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr int64_t kRows = 6, kVectors = 4;  // 24 of 32 registers hold c
#else
constexpr int64_t kRows = 4, kVectors = 2;  // 8 of 16
#endif

// c [R, N vectors] at column j; R rows of a.
template <int R, int N>
HWY_INLINE void Block(const SmallMatMulShape& s, const float* HWY_RESTRICT a,
                      const float* HWY_RESTRICT b, float* HWY_RESTRICT c) {
  const D d;
  const int64_t lanes = LaneCount();
  V sum[R][N];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < N; ++v) {
      sum[r][v] = s.accumulate ? hn::LoadU(d, c + r * s.c_row + v * lanes) : hn::Zero(d);
    }
  }
  for (int64_t l = 0; l < s.k; ++l) {
    V row[N];
    for (int v = 0; v < N; ++v) row[v] = hn::LoadU(d, b + l * s.b_row + v * lanes);
    for (int r = 0; r < R; ++r) {
      const V factor = hn::Set(d, a[r * s.a_row + l * s.a_col]);
      for (int v = 0; v < N; ++v) sum[r][v] = hn::MulAdd(factor, row[v], sum[r][v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < N; ++v) hn::StoreU(sum[r][v], d, c + r * s.c_row + v * lanes);
  }
}

// The columns that do not fill a vector.
HWY_INLINE void TailColumns(const SmallMatMulShape& s, int64_t j, const float* a, const float* b,
                            float* c) {
  const Part part{j, s.n - j};
  for (int64_t r = 0; r < s.m; ++r) {
    V sum = s.accumulate ? part.Get(c + r * s.c_row) : hn::Zero(D());
    for (int64_t l = 0; l < s.k; ++l) {
      sum = hn::MulAdd(hn::Set(D(), a[r * s.a_row + l * s.a_col]), part.Get(b + l * s.b_row), sum);
    }
    part.Put(sum, c + r * s.c_row);
  }
}

template <int N>
HWY_INLINE void Columns(const SmallMatMulShape& s, const float* a, const float* b, float* c) {
  int64_t i = 0;
  for (; i + kRows <= s.m; i += kRows) {
    Block<kRows, N>(s, a + i * s.a_row, b, c + i * s.c_row);
  }
  for (; i + 2 <= s.m; i += 2) Block<2, N>(s, a + i * s.a_row, b, c + i * s.c_row);
  for (; i < s.m; ++i) Block<1, N>(s, a + i * s.a_row, b, c + i * s.c_row);
}

void Multiply(const SmallMatMulShape& s, const float* a, const float* b, float* c) {
  const int64_t lanes = LaneCount();
  int64_t j = 0;
  for (; j + kVectors * lanes <= s.n; j += kVectors * lanes) Columns<kVectors>(s, a, b + j, c + j);
  for (; j + 2 * lanes <= s.n; j += 2 * lanes) Columns<2>(s, a, b + j, c + j);
  for (; j + lanes <= s.n; j += lanes) Columns<1>(s, a, b + j, c + j);
  if (j < s.n) TailColumns(s, j, a, b, c);
}

void TransposeSquares(const float* x, int64_t x_stride, int64_t rows, int64_t cols, float* out,
                      int64_t out_stride) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  V square[kLanes];
  for (int64_t i0 = 0; i0 < rows; i0 += kLanes) {
    const int64_t height = std::min(kLanes, rows - i0);
    for (int64_t j0 = 0; j0 < cols; j0 += kLanes) {
      const int64_t width = std::min(kLanes, cols - j0);
      for (int64_t i = 0; i < kLanes; ++i) {
        square[i] = LoadPart(x + (i0 + i) * x_stride + j0, i < height ? width : 0);
      }
      TransposeSquare(square);
      for (int64_t j = 0; j < width; ++j) {
        StorePart(square[j], out + (j0 + j) * out_stride + i0, height);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedge {

HWY_EXPORT(Dot);
HWY_EXPORT(Axpy);
HWY_EXPORT(Add);
HWY_EXPORT(Scale);
HWY_EXPORT(RmsNorm);
HWY_EXPORT(RmsNormBackward);
HWY_EXPORT(RmsNormWeightGradient);
HWY_EXPORT(Rope);
HWY_EXPORT(RopeBackward);
HWY_EXPORT(SwiGlu);
HWY_EXPORT(SwiGluBackward);
HWY_EXPORT(LogSumExp);
HWY_EXPORT(Softmax);
HWY_EXPORT(Exp);
HWY_EXPORT(SoftmaxBackward);
HWY_EXPORT(Multiply);
HWY_EXPORT(TransposeSquares);

float RowDot(const float* a, const float* b, int64_t n) {
  return HWY_DYNAMIC_DISPATCH(Dot)(a, b, n);
}

void RowAdd(const float* x, int64_t n, float* y) { HWY_DYNAMIC_DISPATCH(Add)(x, n, y); }

void RowAxpy(float s, const float* x, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(Axpy)(s, x, n, y);
}

void RowScale(float s, int64_t n, float* x) { HWY_DYNAMIC_DISPATCH(Scale)(s, n, x); }

float RmsNormRow(const float* x, const float* weight, int64_t n, float epsilon, float* y) {
  return HWY_DYNAMIC_DISPATCH(RmsNorm)(x, weight, n, epsilon, y);
}

void RmsNormRowBackward(const float* x, const float* weight, float inv, const float* dy, int64_t n,
                        float* dx) {
  HWY_DYNAMIC_DISPATCH(RmsNormBackward)(x, weight, inv, dy, n, dx);
}

void RmsNormRowWeightGradient(const float* x, float inv, const float* dy, int64_t n,
                              float* dweight) {
  HWY_DYNAMIC_DISPATCH(RmsNormWeightGradient)(x, inv, dy, n, dweight);
}

void RopeRow(const float* cosine, const float* sine, int64_t n, float* x) {
  HWY_DYNAMIC_DISPATCH(Rope)(cosine, sine, n, x);
}

void RopeRowBackward(const float* cosine, const float* sine, int64_t n, float* dx) {
  HWY_DYNAMIC_DISPATCH(RopeBackward)(cosine, sine, n, dx);
}

void SwiGluRow(const float* gate, const float* up, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(SwiGlu)(gate, up, n, y);
}

void SwiGluRowBackward(const float* gate, const float* up, const float* dy, int64_t n, float* dgate,
                       float* dup) {
  HWY_DYNAMIC_DISPATCH(SwiGluBackward)(gate, up, dy, n, dgate, dup);
}

double LogSumExpRow(const float* x, float scale, int64_t n) {
  return HWY_DYNAMIC_DISPATCH(LogSumExp)(x, scale, n);
}

double SoftmaxRow(float scale, float out_scale, int64_t n, float* x) {
  return HWY_DYNAMIC_DISPATCH(Softmax)(scale, out_scale, n, x);
}

void ExpRow(float scale, float shift, int64_t n, float* x) {
  HWY_DYNAMIC_DISPATCH(Exp)(scale, shift, n, x);
}

void SoftmaxRowBackward(const float* p, float delta, float scale, int64_t n, float* dp) {
  HWY_DYNAMIC_DISPATCH(SoftmaxBackward)(p, delta, scale, n, dp);
}

void Transpose(const float* x, int64_t x_stride, int64_t rows, int64_t cols, float* out,
               int64_t out_stride) {
  HWY_DYNAMIC_DISPATCH(TransposeSquares)(x, x_stride, rows, cols, out, out_stride);
}

void SmallMatMul(const SmallMatMulShape& shape, const float* a, const float* b, float* c) {
  HWY_DYNAMIC_DISPATCH(Multiply)(shape, a, b, c);
}

}  // namespace fedge
#endif  // HWY_ONCE
