// Packing: parts of a weight or of activations, laid out for the micro-kernels. Included once per
// SIMD target.
#if defined(FEDGE_COMMON_TENSOR_PANELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FEDGE_COMMON_TENSOR_PANELS_INL_H_
#undef FEDGE_COMMON_TENSOR_PANELS_INL_H_
#else
#define FEDGE_COMMON_TENSOR_PANELS_INL_H_
#endif

#include "common/tensor/block_decoders-inl.h"
#include "common/tensor/micro_kernel-inl.h"

FEDGE_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {

// Where decoded vectors go.
struct StoreFloats {
  float* to;
  HWY_INLINE void operator()(int64_t i, V v) const { hn::StoreU(v, D(), to + i); }
};

#if FEDGE_BF16_TARGET
HWY_INLINE __m512i RoundToBf16(V low, V high) {  // round to nearest even
  return (__m512i)_mm512_cvtne2ps_pbh(high.raw, low.raw);
}
struct StoreBf16 {
  Bf16* to;
  HWY_INLINE void operator()(int64_t i, V v) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), (__m256i)_mm512_cvtneps_pbh(v.raw));
  }
};
#endif

// --- A weight's rows as they are: the operand whose elements are broadcast.
// out [rows][stride], columns past `depth` up to the next vector are zero.
template <class E>
HWY_NOINLINE void PackWeightRows(const WeightMatrix& w, int64_t row0, int64_t rows, int64_t k0,
                                 int64_t depth, int64_t stride, E* out) {
  const int64_t row_bytes = RowBytes(w.type, w.cols);
  WithDecoder(w.type, [&](auto decoder) FEDGE_ATTR {
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* const row = w.data + (row0 + r) * row_bytes;
#if FEDGE_BF16_TARGET
      if constexpr (ElementTraits<E>::kPair == 2) {
        StoreBf16 sink{out + r * stride};
        decoder.Decode(row, k0, depth, sink);
        continue;
      }
#endif
      if constexpr (ElementTraits<E>::kPair == 1) {
        StoreFloats sink{out + r * stride};
        decoder.Decode(row, k0, depth, sink);
      }
    }
  });
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
  if constexpr (ElementTraits<E>::kPair == 1) {
    PackWeightRows<float>(w, n0, depth, c0, width, kPanelWidth, out);
  }
#if FEDGE_BF16_TARGET
  if constexpr (ElementTraits<E>::kPair == 2) {
    const int64_t row_bytes = RowBytes(w.type, w.cols);
    WithDecoder(w.type, [&](auto decoder) FEDGE_ATTR {
      HWY_ALIGN Bf16 rows[2][kPanelWidth] = {};
      for (int64_t n = 0; n < depth; n += 2) {
        const uint8_t* const row = w.data + (n0 + n) * row_bytes;
        StoreBf16 first{rows[0]}, second{rows[1]};
        decoder.Decode(row, c0, width, first);
        if (n + 1 < depth) {
          decoder.Decode(row + row_bytes, c0, width, second);
        } else {
          std::memset(rows[1], 0, sizeof(rows[1]));
        }
        InterleaveRows(rows[0], rows[1], kPanelWidth, out + n * kPanelWidth);
      }
    });
  }
#endif
}

// --- Rows of activations, transposed: x [rows, depth], `stride` apart -> [depth][width], of bf16
// [ceil(depth / 2)][width][2]; width is a multiple of the vector, lanes past `rows` are zero.
HWY_INLINE void LoadSquare(const float* x, int64_t stride, int64_t rows, int64_t columns, V* out) {
  const int64_t lanes = LaneCount();
  for (int64_t i = 0; i < lanes; ++i) {
    out[i] = i < rows ? LoadPart(x + i * stride, columns) : hn::Zero(D());
  }
}

template <class E>
HWY_NOINLINE void PackTransposed(const float* x, int64_t stride, int64_t rows, int64_t depth,
                                 int64_t width, E* out) {
  const int64_t lanes = LaneCount();
  V square[hn::MaxLanes(D())];
  for (int64_t g = 0; g < width; g += lanes) {
    const float* const from = x + g * stride;
    if constexpr (ElementTraits<E>::kPair == 1) {
      for (int64_t k = 0; k < depth; k += lanes) {
        LoadSquare(from + k, stride, rows - g, depth - k, square);
        TransposeSquare(square);
        const int64_t count = std::min(lanes, depth - k);
        for (int64_t i = 0; i < count; ++i) {
          hn::StoreU(square[i], D(), out + (k + i) * width + g);
        }
      }
    }
#if FEDGE_BF16_TARGET
    if constexpr (ElementTraits<E>::kPair == 2) {
      for (int64_t k = 0; k < depth; k += 2 * lanes) {
        for (int64_t i = 0; i < lanes; ++i) {
          const float* const row = from + i * stride + k;
          const bool present = g + i < rows;
          const V low = present ? LoadPart(row, depth - k) : hn::Zero(D());
          const V high = present ? LoadPart(row + lanes, depth - k - lanes) : hn::Zero(D());
          square[i].raw = _mm512_castsi512_ps(RoundToBf16(low, high));
        }
        TransposeSquare(square);
        const int64_t pairs = std::min(lanes, (depth - k + 1) / 2);
        for (int64_t i = 0; i < pairs; ++i) {
          _mm512_storeu_ps(out + (k / 2 + i) * width * 2 + 2 * g, square[i].raw);
        }
      }
    }
#endif
  }
}

#if FEDGE_BF16_TARGET
// --- Rows of activations as they are, rounded: values past `count` up to an even count are zero.
HWY_NOINLINE inline void RoundRow(const float* x, int64_t count, Bf16* out) {
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    _mm512_storeu_si512(out + i, RoundToBf16(hn::LoadU(D(), x + i), hn::LoadU(D(), x + i + 16)));
  }
  if (i == count) return;
  HWY_ALIGN Bf16 last[32];
  _mm512_store_si512(last,
                     RoundToBf16(LoadPart(x + i, count - i), LoadPart(x + i + 16, count - i - 16)));
  std::memcpy(out + i, last, static_cast<size_t>((count - i + 1) / 2 * 2) * sizeof(Bf16));
}
#endif

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
