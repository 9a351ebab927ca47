// The decoders are plain loops compiled once per SIMD target (Highway's foreach_target); the
// compiler vectorizes them. All arithmetic is elementwise, so every target gives the same bits.
#include "common/tensor/quantize.h"

#include <cstring>

#include "common/base/status.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/tensor/quantize.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {

// Mapped tensors need not be aligned to their element.
inline uint16_t LoadU16(const uint8_t* bytes) {
  uint16_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}
inline float LoadHalf(const uint8_t* bytes) { return HalfToFloat(LoadU16(bytes)); }

void DecodeF16(const uint8_t* HWY_RESTRICT blocks, int64_t count, float* HWY_RESTRICT out) {
  for (int64_t i = 0; i < count; ++i) out[i] = LoadHalf(blocks + 2 * i);
}

void DecodeBF16(const uint8_t* HWY_RESTRICT blocks, int64_t count, float* HWY_RESTRICT out) {
  for (int64_t i = 0; i < count; ++i) out[i] = Bfloat16ToFloat(LoadU16(blocks + 2 * i));
}

void DecodeQ4_0(const uint8_t* HWY_RESTRICT blocks, int64_t count, float* HWY_RESTRICT out) {
  for (const float* const end = out + count; out != end; blocks += 18, out += 32) {
    const float d = LoadHalf(blocks);
    const uint8_t* const qs = blocks + 2;
    for (int j = 0; j < 16; ++j) out[j] = static_cast<float>((qs[j] & 15) - 8) * d;
    for (int j = 0; j < 16; ++j) out[j + 16] = static_cast<float>((qs[j] >> 4) - 8) * d;
  }
}

void DecodeQ4_1(const uint8_t* HWY_RESTRICT blocks, int64_t count, float* HWY_RESTRICT out) {
  for (const float* const end = out + count; out != end; blocks += 20, out += 32) {
    const float d = LoadHalf(blocks);
    const float m = LoadHalf(blocks + 2);
    const uint8_t* const qs = blocks + 4;
    for (int j = 0; j < 16; ++j) out[j] = static_cast<float>(qs[j] & 15) * d + m;
    for (int j = 0; j < 16; ++j) out[j + 16] = static_cast<float>(qs[j] >> 4) * d + m;
  }
}

void DecodeQ5_0(const uint8_t* HWY_RESTRICT blocks, int64_t count, float* HWY_RESTRICT out) {
  for (const float* const end = out + count; out != end; blocks += 22, out += 32) {
    const float d = LoadHalf(blocks);
    uint32_t high;
    std::memcpy(&high, blocks + 2, sizeof(high));
    const uint8_t* const qs = blocks + 6;
    for (uint32_t j = 0; j < 16; ++j) {
      const uint32_t q = (qs[j] & 15u) | ((high >> j & 1u) << 4);
      out[j] = static_cast<float>(static_cast<int32_t>(q) - 16) * d;
    }
    for (uint32_t j = 0; j < 16; ++j) {
      const uint32_t q = (qs[j] >> 4) | ((high >> (j + 16) & 1u) << 4);
      out[j + 16] = static_cast<float>(static_cast<int32_t>(q) - 16) * d;
    }
  }
}

void DecodeQ5_1(const uint8_t* HWY_RESTRICT blocks, int64_t count, float* HWY_RESTRICT out) {
  for (const float* const end = out + count; out != end; blocks += 24, out += 32) {
    const float d = LoadHalf(blocks);
    const float m = LoadHalf(blocks + 2);
    uint32_t high;
    std::memcpy(&high, blocks + 4, sizeof(high));
    const uint8_t* const qs = blocks + 8;
    for (uint32_t j = 0; j < 16; ++j) {
      const uint32_t q = (qs[j] & 15u) | ((high >> j & 1u) << 4);
      out[j] = static_cast<float>(static_cast<int32_t>(q)) * d + m;
    }
    for (uint32_t j = 0; j < 16; ++j) {
      const uint32_t q = (qs[j] >> 4) | ((high >> (j + 16) & 1u) << 4);
      out[j + 16] = static_cast<float>(static_cast<int32_t>(q)) * d + m;
    }
  }
}

void DecodeQ8_0(const uint8_t* HWY_RESTRICT blocks, int64_t count, float* HWY_RESTRICT out) {
  for (const float* const end = out + count; out != end; blocks += 34, out += 32) {
    const float d = LoadHalf(blocks);
    const uint8_t* const qs = blocks + 2;
    for (int j = 0; j < 32; ++j) out[j] = static_cast<float>(static_cast<int8_t>(qs[j])) * d;
  }
}

// The 6-bit scale and minimum of sub-block `j` of 8: the first four stand in the low 6 bits of
// bytes 0-3 and 4-7; of the last four the low nibbles stand in bytes 8-11 and the two high bits
// on top of bytes 0-7.
struct ScaleMin {
  float scale;
  float min;
};
inline ScaleMin ScaleMinOf(const uint8_t* packed, int j) {
  if (j < 4) {
    return {static_cast<float>(packed[j] & 63), static_cast<float>(packed[j + 4] & 63)};
  }
  return {static_cast<float>((packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4)),
          static_cast<float>((packed[j + 4] >> 4) | ((packed[j] >> 6) << 4))};
}

void DecodeQ4_K(const uint8_t* HWY_RESTRICT blocks, int64_t count, float* HWY_RESTRICT out) {
  for (const float* const end = out + count; out != end; blocks += 144) {
    const float d = LoadHalf(blocks);
    const float dmin = LoadHalf(blocks + 2);
    const uint8_t* qs = blocks + 16;
    for (int group = 0; group < 4; ++group, qs += 32, out += 64) {
      const ScaleMin low = ScaleMinOf(blocks + 4, 2 * group);
      const ScaleMin high = ScaleMinOf(blocks + 4, 2 * group + 1);
      const float d1 = d * low.scale, m1 = dmin * low.min;
      const float d2 = d * high.scale, m2 = dmin * high.min;
      for (int j = 0; j < 32; ++j) out[j] = d1 * static_cast<float>(qs[j] & 15) - m1;
      for (int j = 0; j < 32; ++j) out[j + 32] = d2 * static_cast<float>(qs[j] >> 4) - m2;
    }
  }
}

void DecodeQ5_K(const uint8_t* HWY_RESTRICT blocks, int64_t count, float* HWY_RESTRICT out) {
  for (const float* const end = out + count; out != end; blocks += 176) {
    const float d = LoadHalf(blocks);
    const float dmin = LoadHalf(blocks + 2);
    const uint8_t* const qh = blocks + 16;
    const uint8_t* qs = blocks + 48;
    for (int group = 0; group < 4; ++group, qs += 32, out += 64) {
      const ScaleMin low = ScaleMinOf(blocks + 4, 2 * group);
      const ScaleMin high = ScaleMinOf(blocks + 4, 2 * group + 1);
      const float d1 = d * low.scale, m1 = dmin * low.min;
      const float d2 = d * high.scale, m2 = dmin * high.min;
      for (int j = 0; j < 32; ++j) {
        const int q = (qs[j] & 15) | ((qh[j] >> (2 * group) & 1) << 4);
        out[j] = d1 * static_cast<float>(q) - m1;
      }
      for (int j = 0; j < 32; ++j) {
        const int q = (qs[j] >> 4) | ((qh[j] >> (2 * group + 1) & 1) << 4);
        out[j + 32] = d2 * static_cast<float>(q) - m2;
      }
    }
  }
}

void DecodeQ6_K(const uint8_t* HWY_RESTRICT blocks, int64_t count, float* HWY_RESTRICT out) {
  for (const float* const end = out + count; out != end; blocks += 210) {
    const float d = LoadHalf(blocks + 208);
    for (int half = 0; half < 2; ++half, out += 128) {
      const uint8_t* const ql = blocks + 64 * half;
      const uint8_t* const qh = blocks + 128 + 32 * half;
      const uint8_t* const scales = blocks + 192 + 8 * half;
      // Quarter k (32 values): nibble k/2 of ql[32 * (k & 1) + j], bits 2k of qh[j].
      for (int k = 0; k < 4; ++k) {
        const uint8_t* const low = ql + 32 * (k & 1);
        const int low_shift = 4 * (k >> 1);
        for (int part = 0; part < 2; ++part) {
          const float scale = d * static_cast<float>(static_cast<int8_t>(scales[2 * k + part]));
          for (int j = 16 * part; j < 16 * part + 16; ++j) {
            const int q = ((low[j] >> low_shift) & 15) | ((qh[j] >> (2 * k) & 3) << 4);
            out[32 * k + j] = scale * static_cast<float>(q - 32);
          }
        }
      }
    }
  }
}

void Decode(DType type, const uint8_t* HWY_RESTRICT blocks, int64_t count,
            float* HWY_RESTRICT out) {
  switch (type) {
    case DType::kF32:
      std::memcpy(out, blocks, static_cast<size_t>(count) * sizeof(float));
      return;
    case DType::kF16:
      return DecodeF16(blocks, count, out);
    case DType::kBF16:
      return DecodeBF16(blocks, count, out);
    case DType::kQ4_0:
      return DecodeQ4_0(blocks, count, out);
    case DType::kQ4_1:
      return DecodeQ4_1(blocks, count, out);
    case DType::kQ5_0:
      return DecodeQ5_0(blocks, count, out);
    case DType::kQ5_1:
      return DecodeQ5_1(blocks, count, out);
    case DType::kQ8_0:
      return DecodeQ8_0(blocks, count, out);
    case DType::kQ4_K:
      return DecodeQ4_K(blocks, count, out);
    case DType::kQ5_K:
      return DecodeQ5_K(blocks, count, out);
    case DType::kQ6_K:
      return DecodeQ6_K(blocks, count, out);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedge {

HWY_EXPORT(Decode);

void Dequantize(DType type, const uint8_t* blocks, int64_t count, float* out) {
  FEDGE_CHECK(count >= 0 && count % BlockElements(type) == 0, count, " values of ",
              DTypeName(type));
  if (count > 0) HWY_DYNAMIC_DISPATCH(Decode)(type, blocks, count, out);
}

}  // namespace fedge
#endif  // HWY_ONCE
