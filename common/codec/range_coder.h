// Adaptive binary arithmetic coding: a range coder with carry (Martin 1979; the arithmetic of
// Pavlov's LZMA) over probabilities that learn from what was coded. All integers: the same bytes on
// every machine.
#ifndef FEDGE_COMMON_CODEC_RANGE_CODER_H_
#define FEDGE_COMMON_CODEC_RANGE_CODER_H_

#include <array>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"

namespace fedge {

namespace internal {

inline constexpr int kLastRate = 126;
// round(65536 / (n + 1.5)), below 2^15 so that products stay in 32 bits.
inline constexpr std::array<int32_t, kLastRate + 1> kLearningRates = [] {
  std::array<int32_t, kLastRate + 1> rates{};
  for (int n = 0; n <= kLastRate; ++n) {
    const int rate = (2 * 65536 + n + 1) / (2 * n + 3);
    rates[static_cast<size_t>(n)] = rate < 32767 ? rate : 32767;
  }
  return rates;
}();

}  // namespace internal

// The probability that the next bit of a context is 0, in 1/65536. It moves by 1 / (n + 1.5) of the
// distance for the n-th bit (Krichevsky, Trofimov 1981), for late ones by 1 / 128.
class AdaptiveBit {
 public:
  // In 1/4096, 32 to 4064: no bit costs more than 7 bits.
  uint32_t zero() const { return 32 + (static_cast<uint32_t>(zero_) * 4032 >> 16); }
  void Update(uint32_t bit) {
    const int32_t rate = internal::kLearningRates[count_];
    const int32_t target = bit == 0 ? 65535 : 0;
    zero_ = static_cast<uint16_t>(zero_ + (target - zero_) * rate / 65536);
    count_ = static_cast<uint8_t>(count_ + (count_ < internal::kLastRate ? 1 : 0));
  }

 private:
  uint16_t zero_ = 32768;
  uint8_t count_ = 0;
};

class RangeEncoder {
 public:
  void Encode(uint32_t bit, AdaptiveBit* context) {
    const uint32_t bound = (range_ >> 12) * context->zero();
    if (bit == 0) {
      range_ = bound;
    } else {
      low_ += bound;
      range_ -= bound;
    }
    context->Update(bit);
    while (range_ < (1u << 24)) {
      range_ <<= 8;
      ShiftLow();
    }
  }

  // The whole code; nothing may be coded afterwards. Zeros at the end are left out: the decoder
  // reads zeros beyond the end.
  std::string Finish() && {
    // Of all numbers in [low, low + range) the one with the most zeros at its end.
    const uint64_t high = low_ + range_ - 1;
    for (int bits = 31; bits >= 0; --bits) {
      const uint64_t mask = (uint64_t{1} << bits) - 1;
      const uint64_t rounded = (low_ + mask) & ~mask;
      if (rounded <= high) {
        low_ = rounded;
        break;
      }
    }
    for (int i = 0; i < 5; ++i) ShiftLow();
    while (!bytes_.empty() && bytes_.back() == 0) bytes_.pop_back();
    return std::move(bytes_);
  }

 private:
  // Moves the top byte of low_ out; bytes of 255 wait for a carry.
  void ShiftLow() {
    if (low_ < 0xFF000000u || low_ > 0xFFFFFFFFu) {
      const auto carry = static_cast<uint8_t>(low_ >> 32);
      if (started_) bytes_.push_back(static_cast<char>(static_cast<uint8_t>(cache_ + carry)));
      for (; waiting_ > 0; --waiting_) {
        bytes_.push_back(static_cast<char>(static_cast<uint8_t>(0xFF + carry)));
      }
      cache_ = static_cast<uint8_t>(low_ >> 24);
      started_ = true;
    } else {
      ++waiting_;
    }
    low_ = (low_ & 0x00FFFFFFu) << 8;
  }

  uint64_t low_ = 0;
  uint32_t range_ = 0xFFFFFFFFu;
  uint8_t cache_ = 0;
  bool started_ = false;
  uint64_t waiting_ = 0;
  std::string bytes_;
};

class RangeDecoder {
 public:
  explicit RangeDecoder(absl::string_view bytes) : bytes_(bytes) {
    for (int i = 0; i < 4; ++i) code_ = (code_ << 8) | NextByte();
  }

  uint32_t Decode(AdaptiveBit* context) {
    const uint32_t bound = (range_ >> 12) * context->zero();
    uint32_t bit = 0;
    if (code_ < bound) {
      range_ = bound;
    } else {
      code_ -= bound;
      range_ -= bound;
      bit = 1;
    }
    context->Update(bit);
    while (range_ < (1u << 24)) {
      range_ <<= 8;
      code_ = (code_ << 8) | NextByte();
    }
    return bit;
  }

  // Every byte was needed, and the last one is not a zero that could be left out.
  bool Complete() const {
    return position_ >= bytes_.size() && (bytes_.empty() || bytes_.back() != 0);
  }

 private:
  uint32_t NextByte() {
    const size_t at = position_++;
    return at < bytes_.size() ? static_cast<uint8_t>(bytes_[at]) : 0;
  }

  absl::string_view bytes_;
  size_t position_ = 0;
  uint32_t range_ = 0xFFFFFFFFu;
  uint32_t code_ = 0;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_RANGE_CODER_H_
