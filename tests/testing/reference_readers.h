// The bits and the range code of proto/UPDATE_FORMAT.md as a program, written from the page and not
// from the codec: slow, plain, for tests only. Binary16 is that of common/tensor.
#ifndef FEDGE_TESTS_TESTING_REFERENCE_READERS_H_
#define FEDGE_TESTS_TESTING_REFERENCE_READERS_H_

#include <algorithm>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "common/tensor/quantize.h"

namespace fedge::testing {

class ReferenceBitReader {
 public:
  explicit ReferenceBitReader(absl::string_view bytes) : bytes_(bytes) {}

  // The next `count` bits, the first one least significant. Also reads little-endian integers.
  uint64_t Bits(uint64_t count) {
    uint64_t value = 0;
    failed_ |= bit_ + count > bytes_.size() * 8;
    for (uint64_t i = 0; i < count && !failed_; ++i, ++bit_) {
      value |= ((static_cast<uint64_t>(bytes_[bit_ / 8]) >> (bit_ % 8)) & 1u) << i;
    }
    return value;
  }
  // `size` bytes from `offset` on; reading goes on behind them.
  uint64_t Field(uint64_t offset, uint64_t size) {
    bit_ = 8 * offset;
    return Bits(8 * size);
  }
  uint64_t Ones() {
    uint64_t ones = 0;
    while (Bits(1) == 1) ++ones;
    return ones;
  }
  uint64_t Varint() {
    uint64_t value = 0;
    for (uint64_t shift = 0, byte = 128; byte >= 128 && !failed_; shift += 7) {
      byte = Bits(8);
      failed_ |= shift > 28 || (byte == 0 && shift > 0);
      value |= (byte & 127) << shift;
    }
    failed_ |= value >> 32 != 0;
    return value;
  }
  float Half() { return HalfToFloat(static_cast<uint16_t>(Bits(16))); }
  bool Padding() { return bit_ % 8 == 0 || Bits(8 - bit_ % 8) == 0; }

  // At a whole byte: the next `size` bytes.
  absl::string_view Bytes(uint64_t size) {
    failed_ |= size > bytes_.size() - bit_ / 8;
    if (failed_) return "";
    bit_ += size * 8;
    return bytes_.substr(bit_ / 8 - size, size);
  }
  void Fail() { failed_ = true; }
  bool failed() const { return failed_; }
  bool AtEnd() const { return !failed_ && bit_ == bytes_.size() * 8; }

 private:
  absl::string_view bytes_;
  uint64_t bit_ = 0;
  bool failed_ = false;
};

// Number i of the stream that `seed` starts (SplitMix64).
inline uint64_t ReferenceStream(uint64_t seed, uint64_t i) {
  uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

struct ReferenceProbability {
  int64_t p = 1 << 21, c = 0;
};

class ReferenceRangeDecoder {
 public:
  explicit ReferenceRangeDecoder(absl::string_view bytes) : bytes_(bytes) {
    for (int i = 0; i < 7; ++i) code_ = code_ * 256 + Byte();
  }

  bool Decision(ReferenceProbability& probability) {
    auto& [p, c] = probability;
    const bool one = Compare((range_ >> 22) * static_cast<uint64_t>(p));
    p += ((one ? 1 << 22 : 0) - p) * ((int64_t{1} << 17) / (2 * c + 3)) / 65536;  // truncates
    p = std::clamp<int64_t>(p, 64, (1 << 22) - 64);
    c = std::min<int64_t>(c + 1, 1023);
    return one;
  }
  bool Raw() { return Compare(range_ / 2); }

  // Every byte was needed, and the last one is not 0.
  bool AtEnd() const {
    return position_ >= bytes_.size() && (bytes_.empty() || bytes_.back() != '\0');
  }

 private:
  uint64_t Byte() {
    const uint64_t at = position_++;
    return at < bytes_.size() ? static_cast<uint8_t>(bytes_[at]) : 0;
  }
  bool Compare(uint64_t bound) {
    const bool one = code_ < bound;
    code_ -= one ? 0 : bound;
    range_ = one ? bound : range_ - bound;
    for (; range_ < uint64_t{1} << 48; range_ *= 256) code_ = code_ * 256 + Byte();
    return one;
  }

  absl::string_view bytes_;
  uint64_t position_ = 0, code_ = 0, range_ = uint64_t{1} << 56;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_REFERENCE_READERS_H_
