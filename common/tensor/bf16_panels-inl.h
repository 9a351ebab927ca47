// Decoding straight into bf16: the same values as a decoder's, rounded. Of 4-bit codes the sixteen
// possible values are rounded once for a block, and a permutation picks 32 of them at a time.
// Included once per SIMD target, empty where FEDGE_BF16_TARGET is 0.
#if defined(FEDGE_COMMON_TENSOR_BF16_PANELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FEDGE_COMMON_TENSOR_BF16_PANELS_INL_H_
#undef FEDGE_COMMON_TENSOR_BF16_PANELS_INL_H_
#else
#define FEDGE_COMMON_TENSOR_BF16_PANELS_INL_H_
#endif

#include "common/tensor/block_decoders-inl.h"
#include "common/tensor/micro_kernel-inl.h"

FEDGE_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {
#if FEDGE_BF16_TARGET

HWY_INLINE __m512i RoundToBf16(V low, V high) {  // round to nearest even
  return (__m512i)_mm512_cvtne2ps_pbh(high.raw, low.raw);
}

// Two vectors in one -> pairs of their lanes.
HWY_INLINE __m512i PairsOf(V even, V odd) {
  HWY_ALIGN static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                    21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                    11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), RoundToBf16(even, odd));
}

// --- One row: out[i] = value begin + i.

struct StoreBf16 {
  Bf16* to;
  HWY_INLINE void operator()(int64_t i, V v) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), (__m256i)_mm512_cvtneps_pbh(v.raw));
  }
};

template <class Decoder>
HWY_INLINE void DecodeRow(const Decoder& decoder, const uint8_t* row, int64_t begin, int64_t count,
                          Bf16* out) {
  StoreBf16 sink{out};
  decoder.Decode(row, begin, count, sink);
}

// A table twice, so that the fifth bit of an index does not matter.
HWY_INLINE __m512i Twice(const Nibbles& n) { return RoundToBf16(n.table(), n.table()); }

HWY_INLINE void DecodeRow(const DecoderQ4_0&, const uint8_t* row, int64_t begin, int64_t count,
                          Bf16* out) {
  const uint8_t* block = row + begin / 32 * 18;
  for (int64_t i = 0; i < count; i += 32, block += 18) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 2));
    const __m512i index = _mm512_cvtepu8_epi16(_mm256_set_m128i(_mm_srli_epi16(codes, 4), codes));
    const __m512i table = Twice(DecoderQ4_0::OfBlock(block));
    _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(index, table));
  }
}

HWY_INLINE void DecodeRow(const DecoderQ4_K&, const uint8_t* row, int64_t begin, int64_t count,
                          Bf16* out) {
  for (int64_t i = 0; i < count; i += 64) {
    const DecoderQ4_K::Group group(row, begin + i);
    const __m512i index =
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(group.codes)));
    _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(index, Twice(group.Low())));
    _mm512_storeu_si512(out + i + 32,
                        _mm512_permutexvar_epi16(_mm512_srli_epi16(index, 4), Twice(group.High())));
  }
}

// --- Two rows, interleaved: out[i] = {value begin + i of the first, of the second}.

// With the values of the first row in `first` already.
struct StorePairs {
  const float* first;
  Bf16* to;
  HWY_INLINE void operator()(int64_t i, V v) const {
    _mm512_storeu_si512(to + 2 * i, PairsOf(hn::LoadU(D(), first + i), v));
  }
};

struct RowPair {
  const uint8_t* first;
  const uint8_t* second;
};

template <class Decoder>
HWY_INLINE void DecodePairs(const Decoder& decoder, const RowPair& rows, int64_t begin,
                            int64_t count, float* buffer, Bf16* out) {
  StoreFloats floats{buffer};
  decoder.Decode(rows.first, begin, count, floats);
  StorePairs pairs{buffer, out};
  decoder.Decode(rows.second, begin, count, pairs);
}

// The low and the high nibbles of 16 bytes of each row. A table holds the first row's values and
// then the second's.
struct PairTables {
  __m512i low, high;
};
HWY_INLINE void StoreNibblePairs(const uint8_t* first, const uint8_t* second,
                                 const PairTables& tables, Bf16* low, Bf16* high) {
  const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(second));
  const __m512i codes =
      _mm512_cvtepu8_epi16(_mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b)));
  const __m512i mask = _mm512_set1_epi16(15), second_half = _mm512_set1_epi32(0x100000);
  constexpr int kAndOr = 0xEA;  // (codes & mask) | second_half
  const __m512i low_index = _mm512_ternarylogic_epi32(codes, mask, second_half, kAndOr);
  const __m512i high_index = _mm512_or_si512(_mm512_srli_epi16(codes, 4), second_half);
  _mm512_storeu_si512(low, _mm512_permutexvar_epi16(low_index, tables.low));
  _mm512_storeu_si512(high, _mm512_permutexvar_epi16(high_index, tables.high));
}

HWY_INLINE void DecodePairs(const DecoderQ4_0&, const RowPair& rows, int64_t begin, int64_t count,
                            float*, Bf16* out) {
  const uint8_t* a = rows.first + begin / 32 * 18;
  const uint8_t* b = rows.second + begin / 32 * 18;
  for (int64_t i = 0; i < count; i += 32, a += 18, b += 18) {
    const __m512i table =
        RoundToBf16(DecoderQ4_0::OfBlock(a).table(), DecoderQ4_0::OfBlock(b).table());
    StoreNibblePairs(a + 2, b + 2, {table, table}, out + 2 * i, out + 2 * i + 32);
  }
}

HWY_INLINE void DecodePairs(const DecoderQ4_K&, const RowPair& rows, int64_t begin, int64_t count,
                            float*, Bf16* out) {
  for (int64_t i = 0; i < count; i += 64) {
    const DecoderQ4_K::Group a(rows.first, begin + i), b(rows.second, begin + i);
    const PairTables tables = {RoundToBf16(a.Low().table(), b.Low().table()),
                               RoundToBf16(a.High().table(), b.High().table())};
    Bf16* const to = out + 2 * i;
    StoreNibblePairs(a.codes, b.codes, tables, to, to + 64);
    StoreNibblePairs(a.codes + 16, b.codes + 16, tables, to + 32, to + 96);
  }
}

#endif  // FEDGE_BF16_TARGET
}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
