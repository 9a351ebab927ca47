// Packing: parts of a weight or of activations, laid out for the micro-kernels. Included once per
// SIMD target.
#if defined(FEDGE_COMMON_TENSOR_PANELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FEDGE_COMMON_TENSOR_PANELS_INL_H_
#undef FEDGE_COMMON_TENSOR_PANELS_INL_H_
#else
#define FEDGE_COMMON_TENSOR_PANELS_INL_H_
#endif

#include "common/tensor/bf16_panels-inl.h"
#include "common/tensor/block_decoders-inl.h"
#include "common/tensor/micro_kernel-inl.h"

FEDGE_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {

// A part of a weight's rows, and where the part lies that will be packed after it: the processor
// does not foresee that, since the pieces are short.
struct WeightPart {
  const uint8_t* first;  // of row `row0`
  int64_t row_bytes;
  int64_t piece_offset, piece_bytes;  // in a row
  int64_t ahead;                      // bytes to the next part

  WeightPart(const WeightMatrix& w, int64_t row0, int64_t begin, int64_t count)
      : row_bytes(RowBytes(w.type, w.cols)) {
    const int64_t bytes = BlockBytes(w.type), elements = BlockElements(w.type);
    first = w.data + row0 * row_bytes;
    piece_offset = begin * bytes / elements;
    piece_bytes = count * bytes / elements;
    ahead = piece_bytes;
  }
  HWY_INLINE const uint8_t* Row(int64_t r) const {
    const uintptr_t next = reinterpret_cast<uintptr_t>(first) +
                           static_cast<uintptr_t>(r * row_bytes + piece_offset + ahead);
    for (int64_t i = 0; i < piece_bytes; i += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(next + static_cast<uintptr_t>(i)), 0, 2);
    }
    return first + r * row_bytes;
  }
};

// --- A weight's rows as they are: the operand whose elements are broadcast.
// out [rows][stride], columns past `depth` up to the next vector are zero.
template <class E>
HWY_NOINLINE void PackRows(DType type, const WeightPart& part, int64_t rows, int64_t k0,
                           int64_t depth, int64_t stride, E* out) {
  WithDecoder(type, [&](auto decoder) FEDGE_ATTR {
    for (int64_t r = 0; r < rows; ++r) {
#if FEDGE_BF16_TARGET
      if constexpr (ElementTraits<E>::kPair == 2) {
        DecodeRow(decoder, part.Row(r), k0, depth, out + r * stride);
        continue;
      }
#endif
      if constexpr (ElementTraits<E>::kPair == 1) {
        StoreFloats sink{out + r * stride};
        decoder.Decode(part.Row(r), k0, depth, sink);
      }
    }
  });
}

template <class E>
void PackWeightRows(const WeightMatrix& w, int64_t row0, int64_t rows, int64_t k0, int64_t depth,
                    int64_t stride, E* out) {
  PackRows<E>(w.type, WeightPart(w, row0, k0, depth), rows, k0, depth, stride, out);
}

// --- A weight's rows as the operand that is read in vectors: W[n0 .. n0 + depth)[c0 .. c0 +
// width). out: fp32 [depth][stride], bf16 [ceil(depth / 2)][stride][2], zero past the last column
// up to the next vector and in the odd row.
inline constexpr int64_t kPanelWidth = 64;
#if FEDGE_BF16_TARGET
// Two rows of bf16, one after the other every 32 values -> pairs.
HWY_INLINE void InterleaveRows(const Bf16* first, const Bf16* second, int64_t width, Bf16* out) {
  HWY_ALIGN static constexpr uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                  11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int64_t j = 0; j < width; j += 32) {
    const __m512i a = _mm512_loadu_si512(first + j), b = _mm512_loadu_si512(second + j);
    _mm512_storeu_si512(out + 2 * j, _mm512_permutex2var_epi16(a, low, b));
    _mm512_storeu_si512(out + 2 * j + 32, _mm512_permutex2var_epi16(a, high, b));
  }
}
#endif

template <class E>
HWY_NOINLINE void PackWeightColumns(const WeightMatrix& w, int64_t n0, int64_t depth, int64_t c0,
                                    int64_t width, E* out) {
  WeightPart part(w, n0, c0, width);
  part.ahead = depth * part.row_bytes;
  if constexpr (ElementTraits<E>::kPair == 1) {
    PackRows<float>(w.type, part, depth, c0, width, kPanelWidth, out);
  }
#if FEDGE_BF16_TARGET
  if constexpr (ElementTraits<E>::kPair == 2) {
    WithDecoder(w.type, [&](auto decoder) FEDGE_ATTR {
      HWY_ALIGN float buffer[kPanelWidth];
      int64_t n = 0;
      for (; n + 1 < depth; n += 2) {
        const RowPair rows = {part.Row(n), part.Row(n + 1)};
        DecodePairs(decoder, rows, c0, width, buffer, out + n * kPanelWidth);
      }
      if (n == depth) return;
      StoreFloats last{buffer};
      decoder.Decode(part.Row(n), c0, width, last);
      StorePairs pairs{buffer, out + n * kPanelWidth};
      for (int64_t j = 0; j < width; j += LaneCount()) pairs(j, hn::Zero(D()));
    });
  }
#endif
}

// --- Rows of activations, transposed: x [rows, depth], `stride` apart -> [depth][width], of bf16
// [ceil(depth / 2)][width][2]; width is a multiple of the vector, lanes past `rows` are zero.
template <class E, bool kWhole>
HWY_INLINE void PackSquare(const float* x, int64_t stride, int64_t rows, int64_t depth,
                           int64_t width, E* out) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  V square[kLanes];
  const auto load = [&](int64_t i, int64_t k) FEDGE_ATTR {
    if (kWhole) return hn::LoadU(D(), x + i * stride + k);
    return i < rows ? LoadPart(x + i * stride + k, depth - k) : hn::Zero(D());
  };
  if constexpr (ElementTraits<E>::kPair == 1) {
    for (int64_t i = 0; i < kLanes; ++i) square[i] = load(i, 0);
    TransposeSquare(square);
    const int64_t count = kWhole ? kLanes : std::min(kLanes, depth);
    for (int64_t i = 0; i < count; ++i) hn::StoreU(square[i], D(), out + i * width);
  }
#if FEDGE_BF16_TARGET
  if constexpr (ElementTraits<E>::kPair == 2) {
    for (int64_t i = 0; i < kLanes; ++i) {
      square[i].raw = _mm512_castsi512_ps(RoundToBf16(load(i, 0), load(i, kLanes)));
    }
    TransposeSquare(square);
    const int64_t pairs = kWhole ? kLanes : std::min(kLanes, (depth + 1) / 2);
    for (int64_t i = 0; i < pairs; ++i) _mm512_storeu_ps(out + i * width * 2, square[i].raw);
  }
#endif
}

template <class E>
HWY_NOINLINE void PackTransposed(const float* x, int64_t stride, int64_t rows, int64_t depth,
                                 int64_t width, E* out) {
  constexpr int64_t kPair = ElementTraits<E>::kPair;
  constexpr int64_t kLanes = hn::MaxLanes(D());
  for (int64_t g = 0; g < width; g += kLanes) {
    for (int64_t k = 0; k < depth; k += kLanes * kPair) {
      const float* const from = x + g * stride + k;
      E* const to = out + k * width + g * kPair;
      if (rows - g >= kLanes && depth - k >= kLanes * kPair) {
        PackSquare<E, true>(from, stride, rows - g, depth - k, width, to);
      } else {
        PackSquare<E, false>(from, stride, rows - g, depth - k, width, to);
      }
    }
  }
}

#if FEDGE_BF16_TARGET
// --- Rows of activations as they are, rounded; zeros after `count` up to a multiple of 32.
HWY_NOINLINE inline void RoundRow(const float* x, int64_t count, Bf16* out) {
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    _mm512_storeu_si512(out + i, RoundToBf16(hn::LoadU(D(), x + i), hn::LoadU(D(), x + i + 16)));
  }
  if (i == count) return;
  _mm512_storeu_si512(
      out + i, RoundToBf16(LoadPart(x + i, count - i), LoadPart(x + i + 16, count - i - 16)));
}
#endif

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
