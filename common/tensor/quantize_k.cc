// The K types: 256 values in sub-blocks whose scales (and minima) are small integers times one f16.
//
// A sub-block is fitted by weighted least squares: for some twenty step sizes around the one that
// spans its range, the values are rounded to codes, and for fixed codes the best scale and minimum
// are the solution of a 2x2 system; the best of the fits is refined by repeating the two steps.
// Large values weigh more: their error matters more in a dot product. Once the scales are integers,
// the neighbours of each are tried with the codes they imply.
//
// Plain loops over fixed numbers of lanes, compiled once per SIMD target (Highway's
// foreach_target); sums have a fixed tree and the build forbids contraction of a * b + c. So all
// targets write the same bytes.
#include "common/tensor/quantize_k.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/base/status.h"
#include "common/tensor/quantize.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/tensor/quantize_k.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {

// To the nearest integer, ties to even, for magnitudes below 2^22; vectorizes where std::rint does
// not. Larger ones come out as large and are clamped by the callers.
inline float RoundToInteger(float value) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  return (value + kShift) - kShift;
}

template <int kLanes>
float TreeSum(float* lanes) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

template <int kLanes>
float SumOfProducts(const float* a, const float* b) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = a[i] * b[i];
  return TreeSum<kLanes>(lanes);
}

// sum w (scale * q + offset - x)^2
template <int kLanes>
float WeightedError(const float* x, const float* w, const float* q, float scale, float offset) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const float error = scale * q[i] + offset - x[i];
    lanes[i] = w[i] * error * error;
  }
  return TreeSum<kLanes>(lanes);
}

// The nearest codes in [low, high] to (x - offset) * inverse.
template <int kLanes>
void RoundToCodes(const float* x, float offset, float inverse, float low, float high, float* q) {
  for (int i = 0; i < kLanes; ++i) {
    const float code = RoundToInteger((x[i] - offset) * inverse);
    q[i] = std::min(std::max(code, low), high);
  }
}

// ---- Q4_K, Q5_K: 8 sub-blocks of 32, value = scale * q - min with scale, min >= 0.

constexpr int kSub = 32;

struct Fit {
  float scale = 0;
  float min = 0;
  float error = 0;
};

// A sub-block: values, weights and the sums that no candidate changes.
struct SubBlock {
  explicit SubBlock(const float* values) : x(values) {
    float squares = SumOfProducts<kSub>(x, x);
    const float typical = std::sqrt(squares / kSub);
    for (int i = 0; i < kSub; ++i) w[i] = typical + std::fabs(x[i]);
    for (int i = 0; i < kSub; ++i) wx[i] = w[i] * x[i];
    float lanes[kSub];
    std::copy(w, w + kSub, lanes);
    sum_w = TreeSum<kSub>(lanes);
    std::copy(wx, wx + kSub, lanes);
    sum_wx = TreeSum<kSub>(lanes);
    // The minimum is subtracted and cannot be negative: values above 0 count from 0.
    low = std::min(*std::min_element(x, x + kSub), 0.0f);
    high = std::max(*std::max_element(x, x + kSub), 0.0f);
  }

  // The best scale and minimum for given codes, and their error. False when the codes are no fit.
  bool Solve(const float* q, Fit* fit) const {
    float wq[kSub];
    for (int i = 0; i < kSub; ++i) wq[i] = w[i] * q[i];
    const float sum_wqq = SumOfProducts<kSub>(wq, q);
    const float sum_wqx = SumOfProducts<kSub>(wx, q);
    const float sum_wq = TreeSum<kSub>(wq);
    const float determinant = sum_w * sum_wqq - sum_wq * sum_wq;
    float scale = 0;
    float offset = 1;
    if (determinant > 0) {
      scale = (sum_w * sum_wqx - sum_wx * sum_wq) / determinant;
      offset = (sum_wqq * sum_wx - sum_wq * sum_wqx) / determinant;
    }
    if (offset > 0) {
      if (!(sum_wqq > 0)) return false;
      scale = sum_wqx / sum_wqq;
      offset = 0;
    }
    if (!(scale > 0)) return false;
    fit->scale = scale;
    fit->min = -offset;
    fit->error = WeightedError<kSub>(x, w, q, scale, offset);
    return true;
  }

  const float* x;
  float w[kSub];
  float wx[kSub];
  float sum_w;
  float sum_wx;
  float low;
  float high;
};

Fit FitSubBlock(const SubBlock& block, float top) {
  Fit best;
  best.min = -block.low;  // scale 0: all values equal
  const float range = block.high - block.low;
  const float span = top / range;
  if (!(range > 0) || !std::isfinite(span)) return best;
  float q[kSub];
  bool found = false;
  const auto consider = [&](float offset, float inverse) {
    RoundToCodes<kSub>(block.x, offset, inverse, 0.0f, top, q);
    Fit fit;
    if (!block.Solve(q, &fit) || (found && !(fit.error < best.error))) return false;
    best = fit;
    found = true;
    return true;
  };
  for (int step = -10; step <= 10; ++step) {
    consider(block.low, (top + 0.1f * static_cast<float>(step)) / range);
  }
  for (int i = 0; i < 3 && found && consider(-best.min, 1.0f / best.scale); ++i) {
  }
  return best;
}

struct IntegerScales {
  float d = 0;  // as f16 holds it
  float dmin = 0;
  int scale[8] = {};
  int min[8] = {};
};

// The scale and minimum next to those of the fit (in units of d and dmin) with the least error.
void ChooseIntegers(const SubBlock& block, float top, int sub, IntegerScales* scales) {
  const int scale = scales->scale[sub];
  const int min = scales->min[sub];
  float best = 0;
  bool found = false;
  float q[kSub];
  for (int s = std::max(scale - 1, 0); s <= std::min(scale + 1, 63); ++s) {
    for (int m = std::max(min - 1, 0); m <= std::min(min + 1, 63); ++m) {
      const float step = scales->d * static_cast<float>(s);
      const float offset = -scales->dmin * static_cast<float>(m);
      RoundToCodes<kSub>(block.x, offset, step > 0 ? 1.0f / step : 0.0f, 0.0f, top, q);
      const float error = WeightedError<kSub>(block.x, block.w, q, step, offset);
      if (found && !(error < best)) continue;
      best = error;
      found = true;
      scales->scale[sub] = s;
      scales->min[sub] = m;
    }
  }
}

// d as f16 holds it; 0 where its inverse is no number.
inline float HalfStep(float d) {
  const float step = HalfToFloat(FloatToHalf(d));
  return step > 0 && std::isfinite(1.0f / step) ? step : 0.0f;
}

inline void StoreHalf(float value, uint8_t* out) {
  const uint16_t half = FloatToHalf(value);
  std::memcpy(out, &half, sizeof(half));
}

// The first four scales and minima take the low 6 bits of bytes 0-3 and 4-7; of the last four the
// low nibbles share bytes 8-11 and the two high bits stand on top of bytes 0-7.
void PackScales(const IntegerScales& scales, uint8_t* out) {
  for (int j = 0; j < 4; ++j) {
    const int s = scales.scale[j + 4];
    const int m = scales.min[j + 4];
    out[j] = static_cast<uint8_t>(scales.scale[j] | (s >> 4) << 6);
    out[j + 4] = static_cast<uint8_t>(scales.min[j] | (m >> 4) << 6);
    out[j + 8] = static_cast<uint8_t>((s & 15) | (m & 15) << 4);
  }
}

void EncodeScaleMin(bool five_bits, const float* x, uint8_t* out) {
  const float top = five_bits ? 31.0f : 15.0f;
  Fit fits[8];
  float max_scale = 0;
  float max_min = 0;
  for (int sub = 0; sub < 8; ++sub) {
    fits[sub] = FitSubBlock(SubBlock(x + sub * kSub), top);
    max_scale = std::max(max_scale, fits[sub].scale);
    max_min = std::max(max_min, fits[sub].min);
  }
  IntegerScales scales;
  scales.d = HalfStep(max_scale / 63.0f);
  scales.dmin = HalfStep(max_min / 63.0f);
  uint8_t codes[kSuperBlock];
  for (int sub = 0; sub < 8; ++sub) {
    const auto units = [](float value, float unit) {
      return unit > 0 ? std::min(63, static_cast<int>(RoundToInteger(value / unit))) : 0;
    };
    scales.scale[sub] = units(fits[sub].scale, scales.d);
    scales.min[sub] = units(fits[sub].min, scales.dmin);
    const SubBlock block(x + sub * kSub);
    ChooseIntegers(block, top, sub, &scales);
    const float step = scales.d * static_cast<float>(scales.scale[sub]);
    const float offset = -scales.dmin * static_cast<float>(scales.min[sub]);
    float q[kSub];
    RoundToCodes<kSub>(block.x, offset, step > 0 ? 1.0f / step : 0.0f, 0.0f, top, q);
    for (int i = 0; i < kSub; ++i) codes[sub * kSub + i] = static_cast<uint8_t>(q[i]);
  }
  StoreHalf(scales.d, out);
  StoreHalf(scales.dmin, out + 2);
  PackScales(scales, out + 4);
  uint8_t* const qh = out + 16;
  uint8_t* const qs = out + (five_bits ? 48 : 16);
  if (five_bits) {
    std::memset(qh, 0, 32);
    for (int i = 0; i < kSuperBlock; ++i) {
      qh[i % 32] = static_cast<uint8_t>(qh[i % 32] | (codes[i] >> 4) << (i / 32));
    }
  }
  for (int i = 0; i < kSuperBlock / 2; ++i) {  // 64 values: 32 low nibbles, then 32 high ones
    const uint8_t* const pair = codes + i / 32 * 64 + i % 32;
    qs[i] = static_cast<uint8_t>((pair[0] & 15) | (pair[32] & 15) << 4);
  }
}

// ---- Q6_K: 16 sub-blocks of 16, value = d * scale * q with q in [-32, 31] and a signed scale.

constexpr int kSmall = 16;

// Half way between plain and squared weights: the large values lead, the others still count.
void SmallWeights(const float* x, float* w) {
  const float mean = SumOfProducts<kSmall>(x, x) / kSmall;
  for (int i = 0; i < kSmall; ++i) w[i] = mean + x[i] * x[i];
}

// The signed scale of the best fit; 0 for zeros.
float FitSymmetric(const float* x, const float* w) {
  float largest = 0;
  for (int i = 0; i < kSmall; ++i) {
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  }
  if (largest == 0 || !std::isfinite(33.0f / largest)) return 0;
  float wx[kSmall];
  for (int i = 0; i < kSmall; ++i) wx[i] = w[i] * x[i];
  float best = 0;
  float best_error = 0;
  bool found = false;
  float q[kSmall];
  const auto consider = [&](float inverse) {
    RoundToCodes<kSmall>(x, 0.0f, inverse, -32.0f, 31.0f, q);
    float wq[kSmall];
    for (int i = 0; i < kSmall; ++i) wq[i] = w[i] * q[i];
    const float sum_wqq = SumOfProducts<kSmall>(wq, q);
    if (!(sum_wqq > 0)) return;
    const float scale = SumOfProducts<kSmall>(wx, q) / sum_wqq;
    const float error = WeightedError<kSmall>(x, w, q, scale, 0.0f);
    if (found && !(error < best_error)) return;
    best = scale;
    best_error = error;
    found = true;
  };
  for (int step = -10; step <= 10; ++step) {
    consider(-(32.0f + 0.1f * static_cast<float>(step)) / largest);
  }
  if (best != 0 && std::isfinite(1.0f / best)) consider(1.0f / best);
  return best;
}

void EncodeQ6(const float* x, uint8_t* out) {
  float w[kSuperBlock];
  float fits[16];
  float largest = 0;
  for (int sub = 0; sub < 16; ++sub) {
    SmallWeights(x + sub * kSmall, w + sub * kSmall);
    fits[sub] = FitSymmetric(x + sub * kSmall, w + sub * kSmall);
    if (std::fabs(fits[sub]) > std::fabs(largest)) largest = fits[sub];
  }
  std::memset(out, 0, 210);
  // The largest scale becomes -128, the end of int8 that reaches further.
  const float d = HalfToFloat(FloatToHalf(largest / -128.0f));
  if (d == 0 || !std::isfinite(1.0f / d)) return;
  uint8_t codes[kSuperBlock];
  for (int sub = 0; sub < 16; ++sub) {
    const float* const values = x + sub * kSmall;
    const int nearest =
        static_cast<int>(std::clamp(RoundToInteger(fits[sub] / d), -128.0f, 127.0f));
    float best = 0;
    bool found = false;
    float q[kSmall];
    for (int s = std::max(nearest - 1, -128); s <= std::min(nearest + 1, 127); ++s) {
      const float step = d * static_cast<float>(s);
      RoundToCodes<kSmall>(values, 0.0f, s != 0 ? 1.0f / step : 0.0f, -32.0f, 31.0f, q);
      const float error = WeightedError<kSmall>(values, w + sub * kSmall, q, step, 0.0f);
      if (found && !(error < best)) continue;
      best = error;
      found = true;
      out[192 + sub] = static_cast<uint8_t>(static_cast<int8_t>(s));
      for (int i = 0; i < kSmall; ++i) {
        codes[sub * kSmall + i] = static_cast<uint8_t>(static_cast<int>(q[i]) + 32);
      }
    }
  }
  StoreHalf(d, out + 208);
  // Quarter k of a half: nibble k/2 of ql[32 * (k & 1) + j], bits 2k of qh[j].
  for (int i = 0; i < kSuperBlock; ++i) {
    const int half = i / 128, k = i % 128 / 32, j = i % 32;
    uint8_t& low = out[64 * half + 32 * (k & 1) + j];
    uint8_t& high = out[128 + 32 * half + j];
    low = static_cast<uint8_t>(low | (codes[i] & 15) << (4 * (k >> 1)));
    high = static_cast<uint8_t>(high | (codes[i] >> 4) << (2 * k));
  }
}

void EncodeK(DType type, const float* values, int64_t count, uint8_t* out) {
  for (int64_t i = 0; i < count; i += kSuperBlock, out += BlockBytes(type)) {
    if (type == DType::kQ6_K) {
      EncodeQ6(values + i, out);
    } else {
      EncodeScaleMin(type == DType::kQ5_K, values + i, out);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedge {

HWY_EXPORT(EncodeK);

void EncodeSuperBlocks(DType type, const float* values, int64_t count, uint8_t* out) {
  FEDGE_CHECK(count % kSuperBlock == 0, count);
  FEDGE_CHECK(type == DType::kQ4_K || type == DType::kQ5_K || type == DType::kQ6_K,
              DTypeName(type));
  if (count > 0) HWY_DYNAMIC_DISPATCH(EncodeK)(type, values, count, out);
}

}  // namespace fedge
#endif  // HWY_ONCE
