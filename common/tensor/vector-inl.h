// What the kernels of every SIMD target share: tags, partial vectors, transposes. Included once per
// target by files that use Highway's foreach_target.h.
#if defined(FEDGE_COMMON_TENSOR_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FEDGE_COMMON_TENSOR_VECTOR_INL_H_
#undef FEDGE_COMMON_TENSOR_VECTOR_INL_H_
#else
#define FEDGE_COMMON_TENSOR_VECTOR_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

// Highway 1.0.3 has no bf16 dot product: on AVX-512 our kernels are compiled with it enabled. GCC
// emits such instructions for the intrinsics only, and those run only where HasBFloat16Dot().
#undef FEDGE_BF16_TARGET
#undef FEDGE_BEFORE_NAMESPACE
#undef FEDGE_ATTR  // before the brace of a lambda
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
#define FEDGE_BF16_TARGET 1
#define FEDGE_BEFORE_NAMESPACE() \
  HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16") static_assert(true, "For requiring semicolon")
#define FEDGE_ATTR __attribute__((target(HWY_TARGET_STR ",avx512bf16")))
#else
#define FEDGE_BF16_TARGET 0
#define FEDGE_BEFORE_NAMESPACE() HWY_BEFORE_NAMESPACE()
#define FEDGE_ATTR HWY_ATTR
#endif

FEDGE_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

HWY_INLINE int64_t LaneCount() { return static_cast<int64_t>(hn::Lanes(D())); }

// The first `count` lanes, the others zero; reads nothing else.
HWY_INLINE V LoadPart(const float* from, int64_t count) {
  if (count >= LaneCount()) return hn::LoadU(D(), from);
#if HWY_TARGET <= HWY_AVX3
  return hn::MaskedLoad(hn::FirstN(D(), static_cast<size_t>(std::max<int64_t>(0, count))), D(),
                        from);
#else
  HWY_ALIGN float lanes[hn::MaxLanes(D())] = {};
  if (count > 0) std::memcpy(lanes, from, static_cast<size_t>(count) * sizeof(float));
  return hn::Load(D(), lanes);
#endif
}

HWY_INLINE void StorePart(V v, float* to, int64_t count) {
  if (count >= LaneCount()) return hn::StoreU(v, D(), to);
#if HWY_TARGET <= HWY_AVX3
  hn::BlendedStore(v, hn::FirstN(D(), static_cast<size_t>(std::max<int64_t>(0, count))), D(), to);
#else
  HWY_ALIGN float lanes[hn::MaxLanes(D())];
  hn::Store(v, D(), lanes);
  if (count > 0) std::memcpy(to, lanes, static_cast<size_t>(count) * sizeof(float));
#endif
}

#if HWY_TARGET == HWY_SCALAR
HWY_INLINE void TransposeSquare(V*) {}
#else
// Transposes 4x4 squares within each 128-bit block of four vectors.
HWY_INLINE void TransposeInBlocks(V* r) {
  const D d;
  const hn::RepartitionToWide<D> wide;
  const auto low01 = hn::BitCast(wide, hn::InterleaveLower(d, r[0], r[1]));
  const auto high01 = hn::BitCast(wide, hn::InterleaveUpper(d, r[0], r[1]));
  const auto low23 = hn::BitCast(wide, hn::InterleaveLower(d, r[2], r[3]));
  const auto high23 = hn::BitCast(wide, hn::InterleaveUpper(d, r[2], r[3]));
  r[0] = hn::BitCast(d, hn::InterleaveLower(wide, low01, low23));
  r[1] = hn::BitCast(d, hn::InterleaveUpper(wide, low01, low23));
  r[2] = hn::BitCast(d, hn::InterleaveLower(wide, high01, high23));
  r[3] = hn::BitCast(d, hn::InterleaveUpper(wide, high01, high23));
}

// In place: lane j of r[i] goes to lane i of r[j]; r has as many vectors as a vector has lanes.
HWY_INLINE void TransposeSquare(V* r) {
  const D d;
  constexpr size_t kLanes = hn::MaxLanes(D());
  for (size_t i = 0; i < kLanes; i += 4) TransposeInBlocks(r + i);
  if constexpr (kLanes == 8) {
    for (size_t i = 0; i < 4; ++i) {
      const V low = r[i], high = r[i + 4];
      r[i] = hn::ConcatLowerLower(d, high, low);
      r[i + 4] = hn::ConcatUpperUpper(d, high, low);
    }
  }
  if constexpr (kLanes == 16) {
    for (size_t i = 0; i < 4; ++i) {
      // Blocks of r[i + 4g] are (g, 0) .. (g, 3); wanted: (0, b) .. (3, b) in r[i + 4b].
      const V even01 = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(r[i + 4]), r[i]);
      const V odd01 = hn::OddEvenBlocks(r[i + 4], hn::SwapAdjacentBlocks(r[i]));
      const V even23 = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(r[i + 12]), r[i + 8]);
      const V odd23 = hn::OddEvenBlocks(r[i + 12], hn::SwapAdjacentBlocks(r[i + 8]));
      r[i] = hn::ConcatLowerLower(d, even23, even01);
      r[i + 4] = hn::ConcatLowerLower(d, odd23, odd01);
      r[i + 8] = hn::ConcatUpperUpper(d, even23, even01);
      r[i + 12] = hn::ConcatUpperUpper(d, odd23, odd01);
    }
  }
}
#endif  // HWY_TARGET != HWY_SCALAR

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
