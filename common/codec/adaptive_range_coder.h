// Binary range coding (Martin 1979) with adaptive probabilities: a decision costs what its
// frequency so far says it is worth, however rare or frequent it is. Integer arithmetic throughout:
// the same decisions give the same bytes on every machine.
//
// The number being coded has 56 bits before the point of renormalization. Whatever the stream ends
// before is read as zeros, so that an encoder leaves trailing zero bytes out.
#ifndef FEDGE_COMMON_CODEC_ADAPTIVE_RANGE_CODER_H_
#define FEDGE_COMMON_CODEC_ADAPTIVE_RANGE_CODER_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace fedge {

// The probability of a one, estimated from the decisions so far: their mean, and beyond
// kMemory of them a moving mean.
class CountedBit {
 public:
  static constexpr int kPrecision = 22;
  static constexpr uint32_t kMemory = 1024;

  uint64_t probability() const { return probability_; }  // of a one, in 2^-kPrecision

  void Update(bool one) {
    const int64_t target = one ? int64_t{1} << kPrecision : 0;
    const int64_t step = (target - probability_) * kRates[count_] / 65536;
    probability_ = std::clamp<int64_t>(probability_ + step, kLeast, (1 << kPrecision) - kLeast);
    if (count_ + 1 < kMemory) ++count_;
  }

  // What comes next resembles what was only so much: a few decisions weigh like all before.
  void Loosen() { count_ = std::min<uint32_t>(count_, 30); }

 private:
  static constexpr int64_t kLeast = 64;
  // 2^16 / (count + 1.5): the mean of the Krichevsky-Trofimov estimate.
  static constexpr std::array<int64_t, kMemory> kRates = [] {
    std::array<int64_t, kMemory> rates{};
    for (uint32_t i = 0; i < kMemory; ++i) rates[i] = 131072 / (2 * int64_t{i} + 3);
    return rates;
  }();

  int64_t probability_ = 1 << (kPrecision - 1);
  uint32_t count_ = 0;
};

inline constexpr uint64_t kWideRangeTop = uint64_t{1} << 56;
inline constexpr uint64_t kWideRangeLow = uint64_t{1} << 48;

class WideRangeEncoder {
 public:
  // Appends to `out`, which outlives the encoder.
  explicit WideRangeEncoder(std::string* out) : out_(out), start_(out->size()) {}

  void Encode(bool one, CountedBit& bit) {
    Split((range_ >> CountedBit::kPrecision) * bit.probability(), one);
    bit.Update(one);
  }

  // The low `bits` (0 to 32) bits of `value`, the highest first, each as likely 0 as 1.
  void EncodeRaw(uint32_t value, int bits) {
    for (int i = bits - 1; i >= 0; --i) Split(range_ >> 1, ((value >> i) & 1) != 0);
  }

  // Call once, after the last decision.
  void Finish() {
    for (int bytes = 0; bytes <= 7; ++bytes) {
      const uint64_t mask = (kWideRangeTop - 1) >> (8 * bytes);
      const uint64_t value = (low_ + mask) & ~mask;
      if (value - low_ >= range_) continue;
      low_ = value;
      Carry();
      for (int i = 0; i < bytes; ++i) PushTop();
      break;
    }
    while (out_->size() > start_ && out_->back() == '\0') out_->pop_back();
  }

 private:
  // A one takes the lower `bound` of the range.
  void Split(uint64_t bound, bool one) {
    if (one) {
      range_ = bound;
    } else {
      low_ += bound;
      range_ -= bound;
      Carry();
    }
    for (; range_ < kWideRangeLow; range_ <<= 8) PushTop();
  }
  void Carry() {
    if (low_ < kWideRangeTop) return;
    low_ -= kWideRangeTop;
    // The number coded is below 1: some byte before is not 0xFF.
    for (size_t i = out_->size(); i-- > start_;) {
      if (++(*out_)[i] != '\0') return;
    }
  }
  void PushTop() {
    out_->push_back(static_cast<char>(low_ >> 48));
    low_ = (low_ << 8) & (kWideRangeTop - 1);
  }

  std::string* out_;
  size_t start_;
  uint64_t low_ = 0;
  uint64_t range_ = kWideRangeTop;
};

// Never reads beyond the bytes given; any bytes decode to something.
class WideRangeDecoder {
 public:
  explicit WideRangeDecoder(absl::string_view bytes) : bytes_(bytes) {
    for (int i = 0; i < 7; ++i) code_ = (code_ << 8) | Next();
  }

  bool Decode(CountedBit& bit) {
    const bool one = Split((range_ >> CountedBit::kPrecision) * bit.probability());
    bit.Update(one);
    return one;
  }

  uint32_t DecodeRaw(int bits) {
    uint32_t value = 0;
    for (int i = 0; i < bits; ++i) value = (value << 1) | (Split(range_ >> 1) ? 1u : 0u);
    return value;
  }

  // After the last decision: whether every byte was looked at and none was left out in vain.
  bool AtEnd() const {
    return bytes_.size() <= position_ && (bytes_.empty() || bytes_.back() != '\0');
  }

 private:
  bool Split(uint64_t bound) {
    const bool one = code_ < bound;
    if (one) {
      range_ = bound;
    } else {
      code_ -= bound;
      range_ -= bound;
    }
    for (; range_ < kWideRangeLow; range_ <<= 8) code_ = (code_ << 8) | Next();
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
  uint64_t range_ = kWideRangeTop;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_ADAPTIVE_RANGE_CODER_H_
