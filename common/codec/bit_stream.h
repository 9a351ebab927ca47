// Bits in bytes, least significant first: the bit written first is bit 0 of byte 0. Writing appends
// to a string; reading is bounded by the bytes given and never looks beyond them.
#ifndef FEDGE_COMMON_CODEC_BIT_STREAM_H_
#define FEDGE_COMMON_CODEC_BIT_STREAM_H_

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/string_view.h"

namespace fedge {

class BitWriter {
 public:
  // Appends to `out`, which outlives the writer.
  explicit BitWriter(std::string* out) : out_(out) {}

  // The low `bits` (0 to 32) bits of `value`; the others must be zero.
  void Write(uint32_t value, int bits) {
    pending_ |= static_cast<uint64_t>(value) << pending_bits_;
    pending_bits_ += bits;
    while (pending_bits_ >= 8) {
      out_->push_back(static_cast<char>(pending_ & 0xFF));
      pending_ >>= 8;
      pending_bits_ -= 8;
    }
  }

  // `count` ones, then a zero.
  void WriteUnary(uint32_t count) {
    for (; count >= 31; count -= 31) Write(0x7FFFFFFFu, 31);
    Write((1u << count) - 1, static_cast<int>(count) + 1);
  }

  // Fills the current byte with zeros.
  void AlignToByte() {
    if (pending_bits_ > 0) Write(0, 8 - pending_bits_);
  }

 private:
  std::string* out_;
  uint64_t pending_ = 0;
  int pending_bits_ = 0;  // below 8 between calls
};

class BitReader {
 public:
  explicit BitReader(absl::string_view bytes)
      : bytes_(bytes), end_(static_cast<uint64_t>(bytes.size()) * 8) {}

  // The next `bits` (0 to 32) bits; false, and nothing consumed, when fewer are left.
  bool Read(int bits, uint32_t* value) {
    if (static_cast<uint64_t>(bits) > remaining()) return false;
    *value = static_cast<uint32_t>(Peek() & ((uint64_t{1} << bits) - 1));
    position_ += static_cast<uint64_t>(bits);
    return true;
  }

  // The number of ones before the next zero; both are consumed. False when there are more than
  // `limit` ones or the bits end first; the position is then undefined.
  bool ReadUnary(uint32_t limit, uint32_t* count) {
    uint64_t ones = 0;
    int run = std::countr_one(Peek());
    for (; run >= kPeekBits; run = std::countr_one(Peek())) {
      ones += kPeekBits;
      position_ += kPeekBits;
      // Beyond the end Peek gives zeros, so this loop ends within the bytes.
      if (ones > limit) return false;
    }
    ones += static_cast<uint64_t>(run);
    position_ += static_cast<uint64_t>(run) + 1;
    if (ones > limit || position_ > end_) return false;
    *count = static_cast<uint32_t>(ones);
    return true;
  }

  // Skips to the next whole byte; false when a skipped bit is not zero.
  bool AlignToByte() {
    const int padding = static_cast<int>((8 - position_ % 8) % 8);
    const bool clean = (Peek() & ((uint64_t{1} << padding) - 1)) == 0;
    position_ += static_cast<uint64_t>(padding);
    return clean;
  }

  // Whole bytes consumed so far; call after AlignToByte.
  size_t BytesConsumed() const { return static_cast<size_t>(position_ / 8); }
  uint64_t remaining() const { return position_ < end_ ? end_ - position_ : 0; }

 private:
  static constexpr int kPeekBits = 57;  // valid bits of Peek at any position within a byte

  // The bits from here on, zeros beyond the end and beyond kPeekBits.
  uint64_t Peek() const {
    const auto first = static_cast<size_t>(position_ / 8);
    uint64_t word = 0;
    if (first + sizeof(word) <= bytes_.size()) {
      std::memcpy(&word, bytes_.data() + first, sizeof(word));
    } else if (first < bytes_.size()) {
      std::memcpy(&word, bytes_.data() + first, bytes_.size() - first);
    }
    return word >> (position_ % 8);
  }

  absl::string_view bytes_;
  uint64_t position_ = 0;  // in bits
  uint64_t end_;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_BIT_STREAM_H_
