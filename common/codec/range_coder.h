// Binary range coding (Martin 1979) with adaptive probabilities: a decision costs what its
// frequency so far says it is worth, however rare or frequent it is. Integer arithmetic throughout:
// the same decisions give the same bytes on every machine. Both formats of this folder use it
// (proto/UPDATE_FORMAT.md, "Range code").
//
// The number being coded has 56 bits before the point of renormalization. Whatever the stream ends
// before is read as zeros, so that an encoder leaves trailing zero bytes out.
#ifndef FEDGE_COMMON_CODEC_RANGE_CODER_H_
#define FEDGE_COMMON_CODEC_RANGE_CODER_H_

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"

namespace fedge {

// The probability of a one, estimated from the decisions so far: their mean (Krichevsky, Trofimov
// 1981), and beyond kMemory of them a moving mean.
class AdaptiveBit {
 public:
  static constexpr int kPrecision = 22;
  static constexpr uint32_t kMemory = 1024;

  // Of a one, in 2^-kPrecision.
  uint64_t probability() const { return static_cast<uint64_t>(probability_); }

  void Update(bool one) {
    const int64_t distance = (one ? kCertain : 0) - probability_;
    const auto step = static_cast<int32_t>(distance * kRates[count_] / 65536);
    probability_ = std::clamp(probability_ + step, kLeast, kCertain - kLeast);
    if (count_ + 1 < kMemory) ++count_;
  }

  // What comes next resembles what was only so much: a few decisions weigh like all before.
  void Loosen() { count_ = std::min(count_, 30u); }

 private:
  static constexpr int32_t kCertain = 1 << kPrecision;
  static constexpr int32_t kLeast = 64;
  // 2^16 / (count + 1.5).
  static constexpr std::array<int32_t, kMemory> kRates = [] {
    std::array<int32_t, kMemory> rates{};
    for (uint32_t i = 0; i < kMemory; ++i) rates[i] = 131072 / (2 * static_cast<int32_t>(i) + 3);
    return rates;
  }();

  int32_t probability_ = kCertain / 2;
  uint32_t count_ = 0;
};

namespace internal {
inline constexpr uint64_t kRangeTop = uint64_t{1} << 56;
inline constexpr uint64_t kRangeLow = uint64_t{1} << 48;
}  // namespace internal

// A copy goes on from where its original was.
class RangeEncoder {
 public:
  void Encode(bool one, AdaptiveBit& bit) {
    Split((range_ >> AdaptiveBit::kPrecision) * bit.probability(), one);
    bit.Update(one);
  }

  // The low `bits` (0 to 32) bits of `value`, the highest first, each as likely 0 as 1.
  void EncodeRaw(uint32_t value, int bits) {
    for (int i = bits - 1; i >= 0; --i) Split(range_ >> 1, ((value >> i) & 1) != 0);
  }

  // The whole code; nothing may be coded afterwards.
  std::string Finish() && {
    // Of all numbers in [low, low + range) the one with the fewest bytes.
    for (int bytes = 0; bytes <= 7; ++bytes) {
      const uint64_t mask = (internal::kRangeTop - 1) >> (8 * bytes);
      const uint64_t value = (low_ + mask) & ~mask;
      if (value - low_ >= range_) continue;
      low_ = value;
      if (low_ >= internal::kRangeTop) Carry();
      for (int i = 0; i < bytes; ++i) PushTop();
      break;
    }
    while (!bytes_.empty() && bytes_.back() == '\0') bytes_.pop_back();
    return std::move(bytes_);
  }

 private:
  // A one takes the lower `bound` of the range.
  void Split(uint64_t bound, bool one) {
    low_ += one ? 0 : bound;
    range_ = one ? bound : range_ - bound;
    if (low_ >= internal::kRangeTop) Carry();
    for (; range_ < internal::kRangeLow; range_ <<= 8) PushTop();
  }
  void Carry() {
    low_ -= internal::kRangeTop;
    // The number coded is below 1: some byte before is not 0xFF.
    for (size_t i = bytes_.size(); i-- > 0;) {
      if (++bytes_[i] != '\0') return;
    }
  }
  void PushTop() {
    bytes_.push_back(static_cast<char>(low_ >> 48));
    low_ = (low_ << 8) & (internal::kRangeTop - 1);
  }

  std::string bytes_;
  uint64_t low_ = 0;
  uint64_t range_ = internal::kRangeTop;
};

// Never reads beyond the bytes given; any bytes decode to something.
class RangeDecoder {
 public:
  explicit RangeDecoder(absl::string_view bytes) : bytes_(bytes) {
    for (int i = 0; i < 7; ++i) code_ = (code_ << 8) | Next();
  }

  bool Decode(AdaptiveBit& bit) {
    const bool one = Split((range_ >> AdaptiveBit::kPrecision) * bit.probability());
    bit.Update(one);
    return one;
  }

  uint32_t DecodeRaw(int bits) {
    uint32_t value = 0;
    for (int i = 0; i < bits; ++i) value = (value << 1) | (Split(range_ >> 1) ? 1u : 0u);
    return value;
  }

  // What the decisions so far cost.
  double BitsUsed() const {
    return 8.0 * static_cast<double>(position_) - std::log2(static_cast<double>(range_));
  }

  // After the last decision: whether every byte was looked at and the last one is not a zero that
  // could be left out.
  bool AtEnd() const {
    return bytes_.size() <= position_ && (bytes_.empty() || bytes_.back() != '\0');
  }

 private:
  bool Split(uint64_t bound) {
    // Without a branch: what is worth coding is not worth predicting.
    const bool one = code_ < bound;
    const uint64_t zero_mask = static_cast<uint64_t>(one) - 1;
    code_ -= bound & zero_mask;
    range_ = bound + ((range_ - 2 * bound) & zero_mask);
    for (; range_ < internal::kRangeLow; range_ <<= 8) code_ = (code_ << 8) | Next();
    return one;
  }
  uint64_t Next() {
    const uint64_t byte =
        position_ < bytes_.size() ? static_cast<unsigned char>(bytes_[position_]) : 0;
    ++position_;
    return byte;
  }

  absl::string_view bytes_;
  size_t position_ = 0;
  uint64_t code_ = 0;
  uint64_t range_ = internal::kRangeTop;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_RANGE_CODER_H_
