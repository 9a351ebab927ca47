// Decoding quantized rows into vector registers, for kernels that do something else with the values
// than store them as fp32. Included once per SIMD target; see quantize.h for the formats. The
// values are the same bits as Dequantize's.
#if defined(FEDGE_COMMON_TENSOR_BLOCK_DECODERS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FEDGE_COMMON_TENSOR_BLOCK_DECODERS_INL_H_
#undef FEDGE_COMMON_TENSOR_BLOCK_DECODERS_INL_H_
#else
#define FEDGE_COMMON_TENSOR_BLOCK_DECODERS_INL_H_
#endif

#include <algorithm>

#include "common/tensor/dtype.h"
#include "common/tensor/quantize.h"
#include "common/tensor/vector-inl.h"

FEDGE_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {

using DI = hn::RebindToSigned<D>;
using VI = hn::Vec<DI>;
using D8 = hn::Rebind<uint8_t, D>;
using DS8 = hn::Rebind<int8_t, D>;

HWY_INLINE float HalfAt(const uint8_t* bytes) {
  uint16_t half;
  std::memcpy(&half, bytes, sizeof(half));
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
#else
  return HalfToFloat(half);
#endif
}

HWY_INLINE VI BytesAt(const uint8_t* p) { return hn::PromoteTo(DI(), hn::LoadU(D8(), p)); }
HWY_INLINE VI SignedBytesAt(const uint8_t* p) {
  return hn::PromoteTo(DI(), hn::LoadU(DS8(), reinterpret_cast<const int8_t*>(p)));
}
HWY_INLINE VI Low4(VI bytes) { return hn::And(bytes, hn::Set(DI(), 15)); }

// The value of each 4-bit code q: scale * (q - 8), or scale * q - min. On AVX-512 sixteen results
// fit a register, and decoding is one permutation (of the low 4 bits of each lane).
class Nibbles {
 public:
  static HWY_INLINE Nibbles Centered(float scale) {
    Nibbles n;
#if FEDGE_BF16_TARGET
    n.table_ = hn::Mul(hn::ConvertTo(D(), hn::Iota(DI(), -8)), hn::Set(D(), scale));
#else
    n.scale_ = hn::Set(D(), scale);
    n.offset_ = hn::Set(DI(), 8);
    n.min_ = hn::Zero(D());
#endif
    return n;
  }
  static HWY_INLINE Nibbles WithMin(float scale, float min) {
    Nibbles n;
#if FEDGE_BF16_TARGET
    n.table_ = hn::Sub(hn::Mul(hn::ConvertTo(D(), hn::Iota(DI(), 0)), hn::Set(D(), scale)),
                       hn::Set(D(), min));
#else
    n.scale_ = hn::Set(D(), scale);
    n.offset_ = hn::Zero(DI());
    n.min_ = hn::Set(D(), min);
#endif
    return n;
  }
  // Of the low 4 bits of `bytes`; the other bits of a byte may hold anything.
  HWY_INLINE V Values(VI bytes) const {
#if FEDGE_BF16_TARGET
    return V{_mm512_permutexvar_ps(bytes.raw, table_.raw)};
#else
    const V q = hn::ConvertTo(D(), hn::Sub(Low4(bytes), offset_));
    return hn::Sub(hn::Mul(q, scale_), min_);
#endif
  }
#if FEDGE_BF16_TARGET
  HWY_INLINE V table() const { return table_; }  // by code
#endif

 private:
#if FEDGE_BF16_TARGET
  V table_;
#else
  V scale_, min_;
  VI offset_;
#endif
};

// Where decoded vectors go.
struct StoreFloats {
  float* to;
  HWY_INLINE void operator()(int64_t i, V v) const { hn::StoreU(v, D(), to + i); }
};

// Each decoder: kUnit, the multiple at which a range of a row may begin and end, and
//   Decode(row, begin, count, sink)   calls sink(i, v) with the values begin + i .. of each vector.

struct DecoderQ4_0 {
  static constexpr int64_t kUnit = 32;
  static HWY_INLINE Nibbles OfBlock(const uint8_t* block) {
    return Nibbles::Centered(HalfAt(block));
  }
  template <class Sink>
  static HWY_INLINE void Decode(const uint8_t* row, int64_t begin, int64_t count, Sink& sink) {
    const int64_t lanes = LaneCount();
    const uint8_t* block = row + begin / 32 * 18;
    for (int64_t i = 0; i < count; i += 32, block += 18) {
      const Nibbles nibbles = OfBlock(block);
      for (int64_t j = 0; j < 16; j += lanes) sink(i + j, nibbles.Values(BytesAt(block + 2 + j)));
      for (int64_t j = 0; j < 16; j += lanes) {
        sink(i + 16 + j, nibbles.Values(hn::ShiftRight<4>(BytesAt(block + 2 + j))));
      }
    }
  }
};

struct DecoderQ5_0 {
  static constexpr int64_t kUnit = 32;
  template <class Sink>
  static HWY_INLINE void Decode(const uint8_t* row, int64_t begin, int64_t count, Sink& sink) {
    const int64_t lanes = LaneCount();
    const uint8_t* block = row + begin / 32 * 22;
    for (int64_t i = 0; i < count; i += 32, block += 22) {
      const V d = hn::Set(D(), HalfAt(block));
      uint32_t tops;
      std::memcpy(&tops, block + 2, sizeof(tops));
      for (int64_t j = 0; j < 16; j += lanes) {
        const VI bytes = BytesAt(block + 6 + j);
        sink(i + j, hn::Mul(Value(Low4(bytes), tops >> j), d));
        sink(i + 16 + j, hn::Mul(Value(hn::ShiftRight<4>(bytes), tops >> (16 + j)), d));
      }
    }
  }

 private:
  // Bit j of `tops` is the fifth of lane j.
  static HWY_INLINE V Value(VI low, uint32_t tops) {
    const VI bits = hn::Shr(hn::Set(DI(), static_cast<int32_t>(tops)), hn::Iota(DI(), 0));
    const VI top = hn::And(hn::ShiftLeft<4>(bits), hn::Set(DI(), 16));
    return hn::ConvertTo(D(), hn::Sub(hn::Or(low, top), hn::Set(DI(), 16)));
  }
};

struct DecoderQ8_0 {
  static constexpr int64_t kUnit = 32;
  template <class Sink>
  static HWY_INLINE void Decode(const uint8_t* row, int64_t begin, int64_t count, Sink& sink) {
    const int64_t lanes = LaneCount();
    const uint8_t* block = row + begin / 32 * 34;
    for (int64_t i = 0; i < count; i += 32, block += 34) {
      const V d = hn::Set(D(), HalfAt(block));
      for (int64_t j = 0; j < 32; j += lanes) {
        sink(i + j, hn::Mul(hn::ConvertTo(D(), SignedBytesAt(block + 2 + j)), d));
      }
    }
  }
};

struct DecoderQ4_K {
  static constexpr int64_t kUnit = 64;
  // 64 values: the low, then the high nibbles of 32 bytes.
  struct Group {
    const uint8_t* block;
    int index;  // in the block
    const uint8_t* codes;

    HWY_INLINE Group(const uint8_t* row, int64_t begin)
        : block(row + begin / 256 * 144),
          index(static_cast<int>(begin / 64 % 4)),
          codes(block + 16 + 32 * index) {}
    HWY_INLINE Nibbles Low() const { return OfSubBlock(block, 2 * index); }
    HWY_INLINE Nibbles High() const { return OfSubBlock(block, 2 * index + 1); }
  };

  template <class Sink>
  static HWY_INLINE void Decode(const uint8_t* row, int64_t begin, int64_t count, Sink& sink) {
    const int64_t lanes = LaneCount();
    for (int64_t i = 0; i < count; i += 64) {
      const Group group(row, begin + i);
      const Nibbles low = group.Low(), high = group.High();
      for (int64_t j = 0; j < 32; j += lanes) {
        const VI bytes = BytesAt(group.codes + j);
        sink(i + j, low.Values(bytes));
        sink(i + 32 + j, high.Values(hn::ShiftRight<4>(bytes)));
      }
    }
  }

 private:
  // 6-bit scale and minimum of sub-block j; the packing is explained at ScaleMinOf in quantize.cc.
  static HWY_INLINE Nibbles OfSubBlock(const uint8_t* block, int j) {
    const uint8_t* const p = block + 4;
    const int scale = j < 4 ? p[j] & 63 : (p[j + 4] & 15) | (p[j - 4] >> 6) << 4;
    const int min = j < 4 ? p[j + 4] & 63 : p[j + 4] >> 4 | (p[j] >> 6) << 4;
    return Nibbles::WithMin(HalfAt(block) * static_cast<float>(scale),
                            HalfAt(block + 2) * static_cast<float>(min));
  }
};

struct DecoderQ6_K {
  static constexpr int64_t kUnit = 64;
  template <class Sink>
  static HWY_INLINE void Decode(const uint8_t* row, int64_t begin, int64_t count, Sink& sink) {
    for (int64_t i = 0; i < count; i += 64) {
      const uint8_t* const block = row + (begin + i) / 256 * 210;
      const int64_t quarter = (begin + i) / 64 % 4;
      if (quarter % 2 == 0) {
        Quarter<0>(block, quarter / 2, i, sink);
      } else {
        Quarter<1>(block, quarter / 2, i, sink);
      }
    }
  }

 private:
  // 64 values: the low (kOdd = 0) or high nibbles of 64 bytes, above them two bits each of 32
  // bytes.
  template <int kOdd, class Sink>
  static HWY_INLINE void Quarter(const uint8_t* block, int64_t half, int64_t i, Sink& sink) {
    const int64_t lanes = LaneCount();
    const float d = HalfAt(block + 208);
    const uint8_t* const ql = block + 64 * half;
    const uint8_t* const qh = block + 128 + 32 * half;
    const uint8_t* const scales = block + 192 + 8 * half + 4 * kOdd;
    const VI top = hn::Set(DI(), 0x30);
    for (int64_t part = 0; part < 2; ++part) {
      const V low_scale = hn::Set(D(), d * static_cast<float>(static_cast<int8_t>(scales[part])));
      const V high_scale =
          hn::Set(D(), d * static_cast<float>(static_cast<int8_t>(scales[2 + part])));
      for (int64_t j = 16 * part; j < 16 * part + 16; j += lanes) {
        const VI bits = BytesAt(qh + j);
        const VI low_top = hn::And(kOdd ? bits : hn::ShiftLeft<4>(bits), top);
        const VI high_top = hn::And(kOdd ? hn::ShiftRight<2>(bits) : hn::ShiftLeft<2>(bits), top);
        sink(i + j, hn::Mul(Value(Part<kOdd>(BytesAt(ql + j)), low_top), low_scale));
        sink(i + 32 + j, hn::Mul(Value(Part<kOdd>(BytesAt(ql + 32 + j)), high_top), high_scale));
      }
    }
  }
  template <int kOdd>
  static HWY_INLINE VI Part(VI bytes) {
    return kOdd ? hn::ShiftRight<4>(bytes) : Low4(bytes);
  }
  static HWY_INLINE V Value(VI low, VI high) {
    return hn::ConvertTo(D(), hn::Sub(hn::Or(low, high), hn::Set(DI(), 32)));
  }
};

struct DecoderF32 {
  static constexpr int64_t kUnit = 1;
  template <class Sink>
  static HWY_INLINE void Decode(const uint8_t* row, int64_t begin, int64_t count, Sink& sink) {
    const float* const values = reinterpret_cast<const float*>(row) + begin;
    const int64_t lanes = LaneCount();
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) sink(i, hn::LoadU(D(), values + i));
    if (i < count) sink(i, LoadPart(values + i, count - i));
  }
};

// Any type, a super-block at a time through memory.
struct DecoderOfAny {
  DType type;
  template <class Sink>
  HWY_INLINE void Decode(const uint8_t* row, int64_t begin, int64_t count, Sink& sink) const {
    constexpr int64_t kBuffer = 256;
    const int64_t block = BlockElements(type);
    const int64_t lanes = LaneCount();
    HWY_ALIGN float values[kBuffer + hn::MaxLanes(D())];
    for (int64_t i = 0; i < count;) {
      const int64_t skipped = (begin + i) % block;
      const int64_t wanted = std::min(kBuffer - skipped, count - i);
      const int64_t decoded = (skipped + wanted + block - 1) / block * block;
      Dequantize(type, row + RowBytes(type, begin + i - skipped), decoded, values);
      for (int64_t j = 0; j < wanted; j += lanes) {
        sink(i + j, LoadPart(values + skipped + j, wanted - j));
      }
      i += wanted;
    }
  }
};

// Calls body(decoder).
template <class Body>
HWY_INLINE void WithDecoder(DType type, const Body& body) {
  if (type == DType::kF32) return body(DecoderF32());
  if (type == DType::kQ4_0) return body(DecoderQ4_0());
  if (type == DType::kQ5_0) return body(DecoderQ5_0());
  if (type == DType::kQ8_0) return body(DecoderQ8_0());
  if (type == DType::kQ4_K) return body(DecoderQ4_K());
  if (type == DType::kQ6_K) return body(DecoderQ6_K());
  body(DecoderOfAny{type});
}

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
