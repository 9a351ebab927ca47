// proto/UPDATE_FORMAT.md as a program: the plainest decoder that follows the page, bit by bit,
// sharing no code with common/codec. The real decoder must agree with it on every input.
#ifndef FEDGE_TESTS_TESTING_REFERENCE_UPDATE_DECODER_H_
#define FEDGE_TESTS_TESTING_REFERENCE_UPDATE_DECODER_H_

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace fedge::testing {

struct ReferenceUpdate {
  int encoding = 0;
  int value_bits = 0;
  uint64_t round = 0;
  uint64_t base_version = 0;
  uint64_t num_examples = 0;
  std::string layout_hash;
  std::string base_model;
  uint64_t num_nonzero = 0;
  std::vector<float> values;
};

class ReferenceUpdateDecoder {
 public:
  // Nothing when the bytes break any rule of the format.
  static std::optional<ReferenceUpdate> Decode(absl::string_view bytes,
                                               absl::string_view expected_layout,
                                               uint64_t expected_parameters) {
    ReferenceUpdateDecoder decoder(bytes);
    if (!decoder.Header(expected_layout, expected_parameters)) return std::nullopt;
    decoder.update_.values.assign(expected_parameters, 0.0f);
    const bool good = decoder.update_.encoding == 1 ? decoder.Dense() : decoder.TopK();
    if (!good || decoder.failed_ || decoder.bit_ != bytes.size() * 8) return std::nullopt;
    return decoder.update_;
  }

 private:
  explicit ReferenceUpdateDecoder(absl::string_view bytes) : bytes_(bytes) {}

  // The next `count` bits, the first one least significant. Also reads little-endian integers.
  uint64_t Bits(int count) {
    uint64_t value = 0;
    for (int i = 0; i < count; ++i, ++bit_) {
      if (bit_ >= bytes_.size() * 8) {
        failed_ = true;
        return 0;
      }
      const uint64_t bit = (static_cast<uint8_t>(bytes_[bit_ / 8]) >> (bit_ % 8)) & 1u;
      value |= bit << i;
    }
    return value;
  }

  bool Padding() {
    while (bit_ % 8 != 0) {
      if (Bits(1) != 0) return false;
    }
    return true;
  }

  // IEEE binary16, from its definition.
  float Half() {
    const uint64_t fraction = Bits(10);
    const int exponent = static_cast<int>(Bits(5));
    const double sign = Bits(1) != 0 ? -1 : 1;
    if (exponent == 31) {
      return fraction != 0 ? NAN : static_cast<float>(sign * INFINITY);
    }
    const double mantissa = static_cast<double>(fraction) / 1024 + (exponent == 0 ? 0 : 1);
    return static_cast<float>(sign * std::ldexp(mantissa, exponent == 0 ? -14 : exponent - 15));
  }

  static uint32_t Crc(absl::string_view data) {
    uint32_t crc = 0xFFFFFFFFu;
    for (const char c : data) {
      crc ^= static_cast<uint8_t>(c);
      for (int i = 0; i < 8; ++i) crc = (crc & 1) != 0 ? (crc >> 1) ^ 0x82F63B78u : crc >> 1;
    }
    return ~crc;
  }

  bool Header(absl::string_view expected_layout, uint64_t expected_parameters) {
    if (bytes_.size() < 128 || bytes_.substr(0, 4) != "FDGU") return false;
    bit_ = 32;
    if (Bits(8) != 1) return false;  // format version
    update_.encoding = static_cast<int>(Bits(8));
    update_.value_bits = static_cast<int>(Bits(8));
    if (Bits(8) != 0) return false;  // reserved
    update_.round = Bits(64);
    update_.base_version = Bits(64);
    update_.num_examples = Bits(64);
    update_.layout_hash = std::string(bytes_.substr(32, 32));
    update_.base_model = std::string(bytes_.substr(64, 32));
    bit_ = 96 * 8;
    const uint64_t parameters = Bits(64);
    update_.num_nonzero = Bits(64);
    const uint64_t payload_bytes = Bits(64);
    const uint64_t payload_crc = Bits(32);
    const uint64_t header_crc = Bits(32);
    if (header_crc != Crc(bytes_.substr(0, 124))) return false;
    if (payload_bytes != bytes_.size() - 128 || payload_crc != Crc(bytes_.substr(128)))
      return false;
    if (update_.layout_hash != expected_layout || parameters != expected_parameters) return false;
    if (parameters == 0 || parameters > (uint64_t{1} << 31)) return false;
    if (update_.encoding == 1) {
      return update_.value_bits == 16 && update_.num_nonzero == parameters;
    }
    const int bits = update_.value_bits;
    return update_.encoding == 2 && (bits == 2 || bits == 4 || bits == 8);
  }

  bool Dense() {
    for (float& value : update_.values) {
      value = Half();
      if (!std::isfinite(value)) return false;
    }
    return true;
  }

  bool TopK() {
    uint64_t found = 0;
    for (uint64_t first = 0; first < update_.values.size(); first += 131072) {
      const uint64_t size = std::min<uint64_t>(131072, update_.values.size() - first);
      if (!Block(first, size, &found)) return false;
    }
    return found == update_.num_nonzero;
  }

  bool Block(uint64_t first, uint64_t size, uint64_t* found) {
    const uint64_t count = Bits(18);
    const int k = static_cast<int>(Bits(6));
    if (count > size || k > 17 || (count == 0 && k != 0)) return false;
    if (count == 0) return true;
    std::vector<uint64_t> positions;
    uint64_t next = 0;
    for (uint64_t i = 0; i < count && !failed_; ++i) {
      uint64_t quotient = 0;
      while (Bits(1) == 1) ++quotient;
      const uint64_t position = next + (quotient << k) + Bits(k);
      if (position >= size) return false;
      positions.push_back(first + position);
      next = position + 1;
    }
    if (failed_ || !Padding()) return false;
    const float base = Half();
    if (!(base > 0) || !std::isfinite(base)) return false;
    std::vector<float> steps((count + 63) / 64);
    for (float& step : steps) {
      step = Half();
      if (std::signbit(step) || !std::isfinite(step)) return false;
    }
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t cell = Bits(update_.value_bits - 1);
      const bool negative = Bits(1) != 0;
      const float offset = steps[i / 64] * static_cast<float>(2 * cell + 1);
      const float magnitude = base + offset;
      update_.values[positions[i]] = negative ? -magnitude : magnitude;
    }
    *found += count;
    return Padding();
  }

  absl::string_view bytes_;
  uint64_t bit_ = 0;
  bool failed_ = false;
  ReferenceUpdate update_;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_REFERENCE_UPDATE_DECODER_H_
