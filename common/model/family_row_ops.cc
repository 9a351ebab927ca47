#include "common/model/family_row_ops.h"

#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/model/family_row_ops.cc"
#include <hwy/foreach_target.h>  // must come before highway.h

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// A whole vector at index i of a row.
struct Whole {
  int64_t i;
  HWY_INLINE V Get(const float* p) const { return hn::LoadU(D(), p + i); }
  HWY_INLINE void Put(V v, float* p) const { hn::StoreU(v, D(), p + i); }
};

// The last `count` values of a row, fewer than a vector; missing lanes read as zero.
struct Part {
  int64_t i;
  int64_t count;
  HWY_INLINE V Get(const float* p) const {
    HWY_ALIGN float lanes[hn::MaxLanes(D())] = {};
    std::memcpy(lanes, p + i, static_cast<size_t>(count) * sizeof(float));
    return hn::Load(D(), lanes);
  }
  HWY_INLINE void Put(V v, float* p) const {
    HWY_ALIGN float lanes[hn::MaxLanes(D())];
    hn::Store(v, D(), lanes);
    std::memcpy(p + i, lanes, static_cast<size_t>(count) * sizeof(float));
  }
};

template <class Body>
HWY_INLINE void EachVector(int64_t n, const Body& body) {
  const int64_t step = static_cast<int64_t>(hn::Lanes(D()));
  int64_t i = 0;
  for (; i + step <= n; i += step) body(Whole{i});
  if (i < n) body(Part{i, n - i});
}

// `direction` 1 turns, -1 turns back.
HWY_INLINE void Turn(const float* cosine, const float* sine, float direction, int64_t n, float* x) {
  float* const y = x + n / 2;
  const V sign = hn::Set(D(), direction);
  EachVector(n / 2, [&](auto at) HWY_ATTR {
    const V c = at.Get(cosine);
    const V s = hn::Mul(at.Get(sine), sign);
    const V a = at.Get(x);
    const V b = at.Get(y);
    at.Put(hn::MulSub(a, c, hn::Mul(b, s)), x);
    at.Put(hn::MulAdd(b, c, hn::Mul(a, s)), y);
  });
}

void RopeHalves(const float* cosine, const float* sine, int64_t n, float* x) {
  Turn(cosine, sine, 1, n, x);
}

void RopeHalvesBackward(const float* cosine, const float* sine, int64_t n, float* dx) {
  Turn(cosine, sine, -1, n, dx);
}

// sqrt(2 / pi) and the cubic's coefficient.
constexpr float kGeluScale = 0.7978845608028654f;
constexpr float kGeluCubic = 0.044715f;

// tanh of gelu's inner polynomial.
HWY_INLINE V GeluTanh(V x, V square) {
  const D d;
  const V inner = hn::MulAdd(square, hn::Set(d, kGeluScale * kGeluCubic), hn::Set(d, kGeluScale));
  return hn::Tanh(d, hn::Mul(x, inner));
}

void GeluGlu(const float* gate, const float* up, int64_t n, float* y) {
  const V half = hn::Set(D(), 0.5f);
  EachVector(n, [&](auto at) HWY_ATTR {
    const V g = at.Get(gate);
    const V half_g = hn::Mul(half, g);
    const V gelu = hn::MulAdd(half_g, GeluTanh(g, hn::Mul(g, g)), half_g);
    at.Put(hn::Mul(gelu, at.Get(up)), y);
  });
}

// gelu'(g) = (1 + t) / 2 + g / 2 (1 - t^2) u', t = tanh(u), u' = scale (1 + 3 cubic g^2)
void GeluGluBackward(const float* gate, const float* up, const float* dy, int64_t n, float* dgate,
                     float* dup) {
  const D d;
  const V half = hn::Set(d, 0.5f);
  const V one = hn::Set(d, 1.0f);
  const V scale = hn::Set(d, kGeluScale);
  const V cubic = hn::Set(d, 3 * kGeluScale * kGeluCubic);
  EachVector(n, [&](auto at) HWY_ATTR {
    const V g = at.Get(gate);
    const V u = at.Get(up);
    const V grad = at.Get(dy);
    const V square = hn::Mul(g, g);
    const V t = GeluTanh(g, square);
    const V half_g = hn::Mul(half, g);
    const V gelu = hn::MulAdd(half_g, t, half_g);
    const V inner = hn::MulAdd(square, cubic, scale);
    const V bend = hn::Mul(hn::Mul(half_g, hn::NegMulAdd(t, t, one)), inner);
    const V slope = hn::MulAdd(half, hn::Add(one, t), bend);
    at.Put(hn::Mul(hn::Mul(grad, u), slope), dgate);
    at.Put(hn::Mul(grad, gelu), dup);
  });
}

void SoftCap(float cap, int64_t n, float* x) {
  const D d;
  const V inverse = hn::Set(d, 1 / cap);
  const V factor = hn::Set(d, cap);
  EachVector(n, [&](auto at) HWY_ATTR {
    at.Put(hn::Mul(factor, hn::Tanh(d, hn::Mul(at.Get(x), inverse))), x);
  });
}

void SoftCapBackward(float cap, const float* y, int64_t n, float* dx) {
  const D d;
  const V inverse = hn::Set(d, 1 / cap);
  const V one = hn::Set(d, 1.0f);
  EachVector(n, [&](auto at) HWY_ATTR {
    const V t = hn::Mul(at.Get(y), inverse);
    at.Put(hn::Mul(at.Get(dx), hn::NegMulAdd(t, t, one)), dx);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedge {

HWY_EXPORT(RopeHalves);
HWY_EXPORT(RopeHalvesBackward);
HWY_EXPORT(GeluGlu);
HWY_EXPORT(GeluGluBackward);
HWY_EXPORT(SoftCap);
HWY_EXPORT(SoftCapBackward);

void RopeHalvesRow(const float* cosine, const float* sine, int64_t n, float* x) {
  HWY_DYNAMIC_DISPATCH(RopeHalves)(cosine, sine, n, x);
}

void RopeHalvesRowBackward(const float* cosine, const float* sine, int64_t n, float* dx) {
  HWY_DYNAMIC_DISPATCH(RopeHalvesBackward)(cosine, sine, n, dx);
}

void GeluGluRow(const float* gate, const float* up, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(GeluGlu)(gate, up, n, y);
}

void GeluGluRowBackward(const float* gate, const float* up, const float* dy, int64_t n,
                        float* dgate, float* dup) {
  HWY_DYNAMIC_DISPATCH(GeluGluBackward)(gate, up, dy, n, dgate, dup);
}

void SoftCapRow(float cap, int64_t n, float* x) { HWY_DYNAMIC_DISPATCH(SoftCap)(cap, n, x); }

void SoftCapRowBackward(float cap, const float* y, int64_t n, float* dx) {
  HWY_DYNAMIC_DISPATCH(SoftCapBackward)(cap, y, n, dx);
}

}  // namespace fedge
#endif  // HWY_ONCE
