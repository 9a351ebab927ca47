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
#include "absl/types/span.h"

namespace fedge::testing {

struct ReferenceUpdate {
  std::vector<uint64_t> positions;  // in the slice; all of them for a dense update
  std::vector<float> values;
};

class ReferenceUpdateDecoder {
 public:
  // `runs`: sizes of the slice's runs; `slice`: bytes 7 to 11 of the header expected. Nothing when
  // the bytes break any rule of the format.
  static std::optional<ReferenceUpdate> Decode(absl::string_view bytes, absl::string_view layout,
                                               absl::string_view slice,
                                               absl::Span<const uint64_t> runs) {
    ReferenceUpdateDecoder decoder(bytes, runs);
    if (!decoder.Header(layout, slice) || !decoder.Payload() || decoder.failed_) return {};
    return decoder.update_;
  }

 private:
  struct Context {
    int64_t zero = 32768, seen = 0;
  };

  ReferenceUpdateDecoder(absl::string_view bytes, absl::Span<const uint64_t> runs)
      : bytes_(bytes), runs_(runs) {
    for (const uint64_t run : runs) expected_ += run;
  }

  // The next `count` bits, the first one least significant. Also reads little-endian integers.
  uint64_t Bits(uint64_t count) {
    uint64_t value = 0;
    failed_ |= bit_ + count > bytes_.size() * 8;
    for (uint64_t i = 0; i < count && !failed_; ++i, ++bit_) {
      value |= ((static_cast<uint64_t>(bytes_[bit_ / 8]) >> (bit_ % 8)) & 1u) << i;
    }
    return value;
  }

  uint64_t Ones() {
    uint64_t ones = 0;
    while (Bits(1) == 1) ++ones;
    return ones;
  }

  bool Padding() { return bit_ % 8 == 0 || Bits(8 - bit_ % 8) == 0; }

  static float Half(uint64_t bits) {  // IEEE binary16, from its definition
    const uint64_t fraction = bits & 1023;
    const int exponent = static_cast<int>((bits >> 10) & 31);
    const double sign = bits >> 15 != 0 ? -1 : 1;
    if (exponent == 31) return fraction != 0 ? NAN : static_cast<float>(sign * INFINITY);
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

  bool Header(absl::string_view layout, absl::string_view slice) {
    if (bytes_.size() < 132 || bytes_.substr(0, 4) != "FDGU" || bytes_[4] != 2) return false;
    bit_ = 40;
    support_ = Bits(8);
    width_ = Bits(8);
    bit_ = 96;
    parameters_ = Bits(32);
    bit_ = 320;
    seed_ = Bits(64);
    bit_ = 896;
    count_ = Bits(32);
    const uint64_t payload_crc = Bits(32);
    const uint64_t payload_bytes = Bits(64);
    if (Bits(32) != Crc(bytes_.substr(0, 128))) return false;
    if (payload_bytes != bytes_.size() - 132 || payload_crc != Crc(bytes_.substr(132)))
      return false;
    if (bytes_.substr(7, 5) != slice || bytes_.substr(48, 32) != layout) return false;
    if (parameters_ != expected_ || count_ > parameters_ || support_ > 2) return false;
    if (support_ == 0 && count_ != parameters_) return false;
    if (support_ != 2 && seed_ != 0) return false;
    return (width_ >= 1 && width_ <= 4) || width_ == 8 || width_ == 16;
  }

  bool Payload() {
    const uint64_t modes = Bits(8);
    const uint64_t log2 = Bits(8);
    uint64_t coded = 0;
    uint64_t byte = 128;
    for (uint64_t shift = 0; byte >= 128; shift += 7) {
      byte = Bits(8);
      if (failed_ || shift > 28 || (byte == 0 && shift > 0)) return false;
      coded |= (byte & 127) << shift;
    }
    if (coded > bytes_.size() - bit_ / 8) return false;
    coded_ = bytes_.substr(bit_ / 8, coded);
    bit_ += coded * 8;
    for (int i = 0; i < 4; ++i) code_ = (code_ << 8) | CodedByte();
    const bool listed = support_ == 1 && count_ > 0 && count_ < parameters_;
    const bool cells_coded = (modes & 4) != 0;
    if (modes > 7 || (listed ? (modes & 3) == 0 || (modes & 3) == 3 : (modes & 3) != 0))
      return false;
    if (cells_coded && (width_ == 1 || width_ == 16)) return false;
    if (log2 > 31 || (width_ == 16 && log2 != 31)) return false;
    if (!Positions(listed, modes & 3) || !Padding()) return false;
    if (!Values(log2, cells_coded) || !Padding() || bit_ != bytes_.size() * 8) return false;
    return coded_read_ >= coded_.size() && (coded_.empty() || coded_.back() != 0);
  }

  uint64_t CodedByte() {
    const uint64_t at = coded_read_++;
    return at < coded_.size() ? static_cast<uint8_t>(coded_[at]) : 0;
  }

  uint64_t Coded(Context& context) {
    const uint64_t bound =
        (range_ >> 12) * (32 + static_cast<uint64_t>(context.zero) * 4032 / 65536);
    const uint64_t bit = code_ < bound ? 0 : 1;
    code_ -= bit * bound;
    range_ = bit == 0 ? bound : range_ - bound;
    const int64_t n = context.seen < 126 ? context.seen++ : 126;
    const int64_t rate = std::min<int64_t>((2 * 65536 + n + 1) / (2 * n + 3), 32767);
    context.zero += ((bit == 0 ? 65535 : 0) - context.zero) * rate / 65536;  // truncates
    for (; range_ < (1u << 24); range_ <<= 8) code_ = ((code_ << 8) & 0xFFFFFFFFu) | CodedByte();
    return bit;
  }

  uint64_t Gap(double* mean) {  // *mean in 1/256, a whole number
    const auto scale = static_cast<uint64_t>(*mean + 128);
    uint64_t exponent = 7;
    while (scale >> (exponent + 1) != 0) ++exponent;
    const uint64_t low_bits = exponent > 8 ? exponent - 8 : 0;
    Context* const contexts = gap_contexts_[2 * (exponent - 7) + ((scale >> (exponent - 1)) & 1)];
    uint64_t quotient = 0;
    while (quotient < 24 && Coded(contexts[std::min<uint64_t>(quotient, 15)]) == 1) ++quotient;
    if (quotient == 24) {
      const uint64_t bits = Ones();
      if (bits > 31) failed_ = true;
      quotient += (failed_ ? 0 : (uint64_t{1} << bits) + Bits(bits)) - 1;
    }
    uint64_t gap = quotient << low_bits;
    if (low_bits > 0) {
      gap += Coded(contexts[16 + std::min<uint64_t>(quotient, 2)]) << (low_bits - 1);
      gap += Bits(low_bits - 1);
    }
    const auto target = static_cast<double>(gap) * 256;
    *mean +=
        std::floor((target - *mean) / static_cast<double>(std::min<uint64_t>(++gaps_ + 1, 16)));
    return gap;
  }

  bool Positions(bool listed, uint64_t mode) {
    const uint64_t k = mode == 1 ? Bits(5) : 0;
    if (k > 30) return false;
    double mean = count_ == 0 ? 0 : static_cast<double>(((parameters_ - count_) * 256) / count_);
    uint64_t next = 0;
    for (uint64_t i = 0; i < count_ && !failed_; ++i) {
      uint64_t position = i;
      if (listed && mode == 1) {
        const uint64_t quotient = Ones();
        position = next + (quotient << k) + Bits(k);
      } else if (listed) {
        position = next + Gap(&mean);
      } else if (support_ == 2 && count_ < parameters_) {
        const uint64_t begin = i * parameters_ / count_;
        const uint64_t end = (i + 1) * parameters_ / count_;
        uint64_t z = seed_ + (i + 1) * 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        z ^= z >> 31;
        position = begin + (((z >> 32) * (end - begin)) >> 32);
      }
      if (position >= parameters_) return false;
      update_.positions.push_back(position);
      next = position + 1;
    }
    return !failed_;
  }

  bool Values(uint64_t log2, bool cells_coded) {
    std::vector<uint64_t> ends;  // of the scale groups
    uint64_t run_end = 0;
    uint64_t sent = 0;
    for (const uint64_t run : runs_) {
      run_end += run;
      while (sent < count_ && update_.positions[sent] < run_end) ++sent;
      const uint64_t begin = ends.empty() ? 0 : ends.back();
      if (sent - begin >= uint64_t{1} << log2) ends.push_back(sent);
    }
    if (sent > (ends.empty() ? 0 : ends.back())) ends.push_back(sent);
    std::vector<float> scales;
    const uint64_t halves = width_ == 16 ? 0 : width_ == 1 ? 1 : 2;
    for (uint64_t i = 0; i < ends.size() * halves && !failed_; ++i)
      scales.push_back(Half(Bits(16)));
    uint64_t group = 0;
    for (uint64_t i = 0; i < count_ && !failed_; ++i) {
      while (ends[group] <= i) ++group;
      if (width_ == 16) {
        update_.values.push_back(Half(Bits(16)));
      } else if (!Value(scales.data() + group * halves, cells_coded)) {
        return false;
      }
      if (!std::isfinite(update_.values.back())) return false;
    }
    return !failed_;
  }

  bool Value(const float* scale, bool cells_coded) {
    for (int i = 0; i < (width_ == 1 ? 1 : 2); ++i) {
      if (std::signbit(scale[i]) || !std::isfinite(scale[i])) return false;
    }
    const uint64_t cells = uint64_t{1} << (width_ - 1);
    if (width_ == 2 && scale[0] > scale[1]) return false;
    if (width_ > 2 && scale[0] + scale[1] * static_cast<float>(2 * cells - 1) > 65504) return false;
    const uint64_t modelled = cells_coded ? std::min<uint64_t>(width_ - 1, 4) : 0;
    const uint64_t plain = width_ - 1 - modelled;
    uint64_t node = 1;
    while (node < uint64_t{1} << modelled) node = 2 * node + Coded(cell_contexts_[node]);
    const uint64_t cell = ((node - (uint64_t{1} << modelled)) << plain) | Bits(plain);
    const float magnitude =
        width_ > 2 ? scale[0] + scale[1] * static_cast<float>(2 * cell + 1) : scale[cell];
    update_.values.push_back(Bits(1) != 0 ? -magnitude : magnitude);
    return true;
  }

  absl::string_view bytes_;
  absl::Span<const uint64_t> runs_;
  uint64_t expected_ = 0, bit_ = 0, support_ = 0, width_ = 0, parameters_ = 0, seed_ = 0,
           count_ = 0;
  bool failed_ = false;
  absl::string_view coded_;
  uint64_t coded_read_ = 0, code_ = 0, range_ = 0xFFFFFFFFu, gaps_ = 0;
  Context gap_contexts_[68][19];
  Context cell_contexts_[16];
  ReferenceUpdate update_;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_REFERENCE_UPDATE_DECODER_H_
