#include "common/training/block_moments.h"

#include <algorithm>
#include <bit>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/training/block_moments.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target, as Highway requires.
#include "hwy/highway.h"

#ifndef FEDGE_COMMON_TRAINING_BLOCK_MOMENTS_CODE_
#define FEDGE_COMMON_TRAINING_BLOCK_MOMENTS_CODE_
namespace fedge {
namespace {

// A magnitude x in [0, 1] becomes the upper bits of the fp32 x + offset, counted from those of the
// offset: logarithmic above it, linear below. 3 bits of mantissa stay.
constexpr int kCodeShift = 20;
constexpr uint32_t kNoiseMask = (uint32_t{1} << kCodeShift) - 1;
constexpr float kFirstOffset = 0x1p-15f;   // codes up to 121
constexpr float kSecondOffset = 0x1p-30f;  // codes up to 241
constexpr uint32_t kFirstOffsetBits = 112u << 23;
constexpr uint32_t kSecondOffsetBits = 97u << 23;

// One block's arrays.
struct BlockStep {
  size_t count;
  uint32_t noise;  // of the step and the block's place
  const float* gradient;
  float* values;
  uint8_t* m;
  uint8_t* v;
  float* m_scale;
  float* v_scale;
};

}  // namespace
}  // namespace fedge
#endif  // FEDGE_COMMON_TRAINING_BLOCK_MOMENTS_CODE_

HWY_BEFORE_NAMESPACE();
namespace fedge {
namespace {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D>
using U32 = hn::RebindToUnsigned<D>;

template <class D>
HWY_INLINE hn::Vec<U32<D>> LoadCodes(D, const uint8_t* codes) {
  return hn::PromoteTo(U32<D>(), hn::LoadU(hn::Rebind<uint8_t, D>(), codes));
}

template <class D>
HWY_INLINE hn::Vec<D> Magnitude(D d, hn::Vec<U32<D>> code, uint32_t offset_bits, float offset) {
  const auto bits = hn::Add(hn::ShiftLeft<kCodeShift>(code), hn::Set(U32<D>(), offset_bits));
  return hn::Sub(hn::BitCast(d, bits), hn::Set(d, offset));
}

template <class D>
HWY_INLINE hn::Vec<D> DecodeFirst(D d, const uint8_t* codes, hn::Vec<D> scale) {
  const U32<D> du;
  const auto code = LoadCodes(d, codes);
  const auto magnitude =
      Magnitude(d, hn::And(code, hn::Set(du, 127u)), kFirstOffsetBits, kFirstOffset);
  const auto sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(du, 128u)));
  return hn::Mul(hn::Or(magnitude, hn::BitCast(d, sign)), scale);
}

template <class D>
HWY_INLINE hn::Vec<D> DecodeSecond(D d, const uint8_t* codes, hn::Vec<D> scale) {
  return hn::Mul(Magnitude(d, LoadCodes(d, codes), kSecondOffsetBits, kSecondOffset), scale);
}

template <class D>
HWY_INLINE hn::Vec<U32<D>> Encode(D d, hn::Vec<D> x, hn::Vec<U32<D>> noise, uint32_t offset_bits,
                                  float offset) {
  const U32<D> du;
  const auto y = hn::Add(hn::Min(x, hn::Set(d, 1.0f)), hn::Set(d, offset));
  const auto above = hn::Sub(hn::BitCast(du, y), hn::Set(du, offset_bits));
  return hn::ShiftRight<kCodeShift>(hn::Add(above, noise));
}

template <class D>
HWY_INLINE void StoreCodes(D d, hn::Vec<U32<D>> codes, uint8_t* to) {
  const hn::RebindToSigned<D> di;
  hn::StoreU(hn::DemoteTo(hn::Rebind<uint8_t, D>(), hn::BitCast(di, codes)),
             hn::Rebind<uint8_t, D>(), to);
  (void)d;
}

// A hash of (step and block, place in the block): 32 random bits (MurmurHash3's finalizer).
template <class D>
HWY_INLINE hn::Vec<U32<D>> Noise(D, uint32_t seed, size_t i) {
  const U32<D> du;
  auto h = hn::Add(hn::Set(du, seed), hn::Iota(du, static_cast<uint32_t>(i)));
  h = hn::Mul(hn::Xor(h, hn::ShiftRight<16>(h)), hn::Set(du, 0x85ebca6bu));
  h = hn::Mul(hn::Xor(h, hn::ShiftRight<13>(h)), hn::Set(du, 0xc2b2ae35u));
  return hn::Xor(h, hn::ShiftRight<16>(h));
}

// The block's moments between decoding and encoding.
struct Moments {
  float m[BlockMoments::kBlock];
  float v[BlockMoments::kBlock];
  float m_max = 0;
  float v_max = 0;
};

template <class D>
HWY_INLINE void StepLanes(D d, const AdamWScalars& s, const BlockStep& block, size_t i,
                          Moments& moments) {
  const auto g = hn::LoadU(d, block.gradient + i);
  const auto old_m = DecodeFirst(d, block.m + i, hn::Set(d, *block.m_scale));
  const auto old_v = DecodeSecond(d, block.v + i, hn::Set(d, *block.v_scale));
  const auto m =
      hn::Add(hn::Mul(hn::Set(d, s.beta1), old_m), hn::Mul(hn::Set(d, s.one_minus_beta1), g));
  const auto v = hn::Add(hn::Mul(hn::Set(d, s.beta2), old_v),
                         hn::Mul(hn::Set(d, s.one_minus_beta2), hn::Mul(g, g)));
  const auto root = hn::Mul(hn::Sqrt(v), hn::Set(d, s.root_correction));
  const auto change =
      hn::Div(hn::Mul(hn::Set(d, s.step_size), m), hn::Add(root, hn::Set(d, s.epsilon)));
  const auto old = hn::Mul(hn::Set(d, s.decay), hn::LoadU(d, block.values + i));
  hn::StoreU(hn::Sub(old, change), d, block.values + i);
  hn::StoreU(m, d, moments.m + i);
  hn::StoreU(v, d, moments.v + i);
  moments.m_max = std::max(moments.m_max, hn::GetLane(hn::MaxOfLanes(d, hn::Abs(m))));
  moments.v_max = std::max(moments.v_max, hn::GetLane(hn::MaxOfLanes(d, v)));
}

template <class D>
HWY_INLINE void EncodeLanes(D d, const Moments& moments, float m_inverse, float v_inverse,
                            const BlockStep& block, size_t i) {
  const U32<D> du;
  const auto noise = Noise(d, block.noise, i);
  const auto m = hn::LoadU(d, moments.m + i);
  const auto sign = hn::ShiftLeft<7>(hn::ShiftRight<31>(hn::BitCast(du, m)));
  const auto first =
      Encode(d, hn::Mul(hn::Abs(m), hn::Set(d, m_inverse)), hn::And(noise, hn::Set(du, kNoiseMask)),
             kFirstOffsetBits, kFirstOffset);
  StoreCodes(d, hn::Or(first, sign), block.m + i);
  const auto second =
      Encode(d, hn::Mul(hn::LoadU(d, moments.v + i), hn::Set(d, v_inverse)),
             hn::ShiftRight<32 - kCodeShift>(noise), kSecondOffsetBits, kSecondOffset);
  StoreCodes(d, second, block.v + i);
}

void RunBlockStep(const AdamWScalars& scalars, const BlockStep& block) {
  const AdamWScalars s = scalars;  // a local copy: the stores below cannot change it
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> one;
  const size_t lanes = hn::Lanes(d);
  const size_t whole = block.count / lanes * lanes;
  Moments moments;
  for (size_t i = 0; i < whole; i += lanes) StepLanes(d, s, block, i, moments);
  for (size_t i = whole; i < block.count; ++i) StepLanes(one, s, block, i, moments);
  const float m_inverse = moments.m_max > 0 ? 1.0f / moments.m_max : 0.0f;
  const float v_inverse = moments.v_max > 0 ? 1.0f / moments.v_max : 0.0f;
  for (size_t i = 0; i < whole; i += lanes) {
    EncodeLanes(d, moments, m_inverse, v_inverse, block, i);
  }
  for (size_t i = whole; i < block.count; ++i) {
    EncodeLanes(one, moments, m_inverse, v_inverse, block, i);
  }
  *block.m_scale = moments.m_max;
  *block.v_scale = moments.v_max;
}

}  // namespace HWY_NAMESPACE
}  // namespace
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedge {
namespace {
HWY_EXPORT(RunBlockStep);

int64_t Blocks(int64_t size) { return (size + BlockMoments::kBlock - 1) / BlockMoments::kBlock; }

template <class T>
absl::string_view BytesOf(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

template <class T>
void ReadInto(ByteReader& reader, std::vector<T>& values) {
  const absl::string_view bytes = reader.ReadBytes(values.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
}

float MagnitudeOf(uint32_t code, uint32_t offset_bits, float offset) {
  return std::bit_cast<float>((code << kCodeShift) + offset_bits) - offset;
}

}  // namespace

BlockMoments::BlockMoments(int64_t size, int64_t position)
    : position_(position),
      m_(static_cast<size_t>(size)),
      v_(static_cast<size_t>(size)),
      m_scale_(static_cast<size_t>(Blocks(size))),
      v_scale_(static_cast<size_t>(Blocks(size))) {}

void BlockMoments::Step(const AdamWScalars& scalars, int64_t step, const float* gradient,
                        float* values) {
  for (size_t i = 0; i < m_scale_.size(); ++i) {
    const size_t begin = i * static_cast<size_t>(kBlock);
    BlockStep block;
    block.count = std::min(m_.size() - begin, static_cast<size_t>(kBlock));
    block.noise = static_cast<uint32_t>(static_cast<uint64_t>(position_) + begin) +
                  static_cast<uint32_t>(step) * 0x9e3779b1u;
    block.gradient = gradient + begin;
    block.values = values + begin;
    block.m = m_.data() + begin;
    block.v = v_.data() + begin;
    block.m_scale = &m_scale_[i];
    block.v_scale = &v_scale_[i];
    HWY_DYNAMIC_DISPATCH(RunBlockStep)(scalars, block);
  }
}

int64_t BlockMoments::Bytes(int64_t size) {
  return 2 * size + 2 * Blocks(size) * static_cast<int64_t>(sizeof(float));
}

void BlockMoments::Write(ByteWriter& writer) const {
  writer.WriteBytes(BytesOf(m_));
  writer.WriteBytes(BytesOf(v_));
  writer.WriteBytes(BytesOf(m_scale_));
  writer.WriteBytes(BytesOf(v_scale_));
}

bool BlockMoments::Read(ByteReader& reader) {
  if (reader.remaining() < static_cast<uint64_t>(Bytes(static_cast<int64_t>(m_.size())))) {
    return false;
  }
  ReadInto(reader, m_);
  ReadInto(reader, v_);
  ReadInto(reader, m_scale_);
  ReadInto(reader, v_scale_);
  return true;
}

std::vector<float> BlockMoments::FirstMoment() const {
  std::vector<float> result(m_.size());
  for (size_t i = 0; i < m_.size(); ++i) {
    const float x = MagnitudeOf(m_[i] & 127u, kFirstOffsetBits, kFirstOffset) *
                    m_scale_[i / static_cast<size_t>(kBlock)];
    result[i] = (m_[i] & 128u) != 0 ? -x : x;
  }
  return result;
}

std::vector<float> BlockMoments::SecondMoment() const {
  std::vector<float> result(v_.size());
  for (size_t i = 0; i < v_.size(); ++i) {
    result[i] = MagnitudeOf(v_[i], kSecondOffsetBits, kSecondOffset) *
                v_scale_[i / static_cast<size_t>(kBlock)];
  }
  return result;
}

}  // namespace fedge
#endif  // HWY_ONCE
