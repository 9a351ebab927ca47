// proto/UPDATE_FORMAT.md as a program: the plainest decoder that follows the page, bit by bit,
// sharing no code with common/codec (CRC-32C is that of common/base). The real decoder must agree
// with it on every input.
#ifndef FEDGE_TESTS_TESTING_REFERENCE_UPDATE_DECODER_H_
#define FEDGE_TESTS_TESTING_REFERENCE_UPDATE_DECODER_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/base/digest.h"
#include "tests/testing/reference_readers.h"

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
    if (!decoder.Header(layout, slice) || !decoder.Payload() || decoder.raw_.failed()) return {};
    return decoder.update_;
  }

 private:
  ReferenceUpdateDecoder(absl::string_view bytes, absl::Span<const uint64_t> runs)
      : bytes_(bytes), raw_(bytes), runs_(runs) {
    for (const uint64_t run : runs) expected_ += run;
  }

  bool Header(absl::string_view layout, absl::string_view slice) {
    if (bytes_.size() < 132 || bytes_.substr(0, 4) != "FDGU" || bytes_[4] != 4) return false;
    support_ = raw_.Field(5, 1);
    width_ = raw_.Field(6, 1);
    parameters_ = raw_.Field(12, 4);
    seed_ = raw_.Field(40, 8);
    count_ = raw_.Field(112, 4);
    if (raw_.Field(128, 4) != Crc32c(bytes_.substr(0, 128))) return false;
    if (raw_.Field(116, 4) != Crc32c(bytes_.substr(132))) return false;
    if (raw_.Field(120, 8) != bytes_.size() - 132) return false;
    if (bytes_.substr(7, 5) != slice || bytes_.substr(48, 32) != layout) return false;
    if (parameters_ != expected_ || count_ > parameters_) return false;
    if (support_ == 3 || support_ > 4) return false;
    if (support_ % 4 == 0 && count_ != parameters_) return false;
    if (support_ < 2 && seed_ != 0) return false;
    if (support_ == 4) return width_ == 1;
    return (width_ >= 1 && width_ <= 4) || width_ == 8 || width_ == 16;
  }

  bool Payload() {
    if (support_ == 4) return Trellis();
    const uint64_t modes = raw_.Field(132, 1);
    const uint64_t log2 = raw_.Bits(8);
    coder_ = ReferenceRangeDecoder(raw_.Bytes(raw_.Varint()));
    if (raw_.failed()) return false;
    const bool listed = support_ == 1 && count_ > 0 && count_ < parameters_;
    const bool cells_coded = (modes & 4) != 0;
    if (modes > 7 || (listed ? (modes & 3) == 0 || (modes & 3) == 3 : (modes & 3) != 0))
      return false;
    if (cells_coded && (width_ == 1 || width_ == 16)) return false;
    if (log2 > 31 || (width_ == 16 && log2 != 31)) return false;
    if (!Positions(listed, modes & 3) || !raw_.Padding()) return false;
    if (!Values(log2, cells_coded) || !raw_.Padding() || !raw_.AtEnd()) return false;
    return coder_.AtEnd();
  }

  uint64_t Gap(double* mean) {  // *mean in 1/256, a whole number
    const auto scale = static_cast<uint64_t>(*mean + 128);
    const auto exponent = static_cast<uint64_t>(std::bit_width(scale)) - 1;
    const uint64_t low_bits = exponent > 8 ? exponent - 8 : 0;
    ReferenceProbability* const contexts =
        gap_contexts_[2 * (exponent - 7) + ((scale >> (exponent - 1)) & 1)];
    uint64_t quotient = 0;
    while (quotient < 24 && coder_.Decision(contexts[std::min<uint64_t>(quotient, 15)])) ++quotient;
    if (quotient == 24) {
      const uint64_t bits = raw_.Ones();
      if (bits > 31) raw_.Fail();
      quotient += (raw_.failed() ? 0 : (uint64_t{1} << bits) + raw_.Bits(bits)) - 1;
    }
    uint64_t gap = quotient << low_bits;
    if (low_bits > 0) {
      const bool high = coder_.Decision(contexts[16 + std::min<uint64_t>(quotient, 2)]);
      gap += (high ? uint64_t{1} << (low_bits - 1) : 0) + raw_.Bits(low_bits - 1);
    }
    const auto weight = static_cast<double>(std::min<uint64_t>(++gaps_ + 1, 16));
    *mean += std::floor((static_cast<double>(gap) * 256 - *mean) / weight);
    return gap;
  }

  bool Positions(bool listed, uint64_t mode) {
    const uint64_t k = mode == 1 ? raw_.Bits(5) : 0;
    if (k > 30) return false;
    double mean = count_ == 0 ? 0 : static_cast<double>(((parameters_ - count_) * 256) / count_);
    uint64_t next = 0;
    for (uint64_t i = 0; i < count_ && !raw_.failed(); ++i) {
      uint64_t position = i;
      if (listed && mode == 1) {
        const uint64_t quotient = raw_.Ones();
        position = next + (quotient << k) + raw_.Bits(k);
      } else if (listed) {
        position = next + Gap(&mean);
      } else if (support_ == 2 && count_ < parameters_) {
        const uint64_t begin = i * parameters_ / count_;
        const uint64_t end = (i + 1) * parameters_ / count_;
        position = begin + (((ReferenceStream(seed_, i) >> 32) * (end - begin)) >> 32);
      }
      if (position >= parameters_) return false;
      update_.positions.push_back(position);
      next = position + 1;
    }
    return !raw_.failed();
  }

  bool Trellis() {
    constexpr uint64_t kPeriods[] = {0, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1};
    const uint64_t log2 = raw_.Field(132, 1);
    if (log2 > 31 || !Positions(false, 0)) return false;
    const std::vector<uint64_t> ends = GroupEnds(log2);
    std::vector<uint64_t> rates(ends.size()), scales(ends.size());
    for (uint64_t& rate : rates) rate = raw_.Bits(4);
    for (uint64_t g = 0; g < ends.size(); ++g) {
      if (rates[g] > 12) return false;
      if (rates[g] > 0) scales[g] = raw_.Bits(8);
    }
    uint64_t state = 0;
    uint64_t i = 0;
    for (uint64_t g = 0; g < ends.size(); ++g) {
      const uint64_t code = scales[g];
      const auto fraction = static_cast<double>(code % 8 + (code < 8 ? 0 : 8));
      const double exponent = code < 8 ? 0 : static_cast<double>(code / 8 - 1);
      const auto scale = static_cast<float>(fraction * std::exp2(exponent - 24));
      const uint64_t begin = i;
      for (; i < ends[g] && !raw_.failed(); ++i) {
        if (rates[g] == 0) {
          update_.values.push_back(0);
          continue;
        }
        const uint64_t sign = (i - begin) % kPeriods[rates[g]];
        if (sign == 0) state = (2 * state + raw_.Bits(1)) % 256;
        const uint64_t even = ReferenceStream(seed_, state / 2) >> sign;
        update_.values.push_back(even % 2 == state % 2 ? -scale : scale);
      }
    }
    return raw_.Padding() && raw_.AtEnd();
  }

  std::vector<uint64_t> GroupEnds(uint64_t log2) const {
    std::vector<uint64_t> ends;
    uint64_t run_end = 0;
    uint64_t sent = 0;
    for (const uint64_t run : runs_) {
      run_end += run;
      while (sent < count_ && update_.positions[sent] < run_end) ++sent;
      const uint64_t begin = ends.empty() ? 0 : ends.back();
      if (sent - begin >= uint64_t{1} << log2) ends.push_back(sent);
    }
    if (sent > (ends.empty() ? 0 : ends.back())) ends.push_back(sent);
    return ends;
  }

  bool Values(uint64_t log2, bool cells_coded) {
    const std::vector<uint64_t> ends = GroupEnds(log2);
    std::vector<float> scales;
    const uint64_t halves = width_ == 16 ? 0 : width_ == 1 ? 1 : 2;
    for (uint64_t i = 0; i < ends.size() * halves && !raw_.failed(); ++i)
      scales.push_back(raw_.Half());
    uint64_t group = 0;
    for (uint64_t i = 0; i < count_ && !raw_.failed(); ++i) {
      while (ends[group] <= i) ++group;
      if (width_ == 16) {
        update_.values.push_back(raw_.Half());
      } else if (!Value(scales.data() + group * halves, cells_coded)) {
        return false;
      }
      if (!std::isfinite(update_.values.back())) return false;
    }
    return !raw_.failed();
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
    while (node < uint64_t{1} << modelled)
      node = 2 * node + (coder_.Decision(cell_contexts_[node]) ? 1 : 0);
    const uint64_t cell = ((node - (uint64_t{1} << modelled)) << plain) | raw_.Bits(plain);
    const float magnitude =
        width_ > 2 ? scale[0] + scale[1] * static_cast<float>(2 * cell + 1) : scale[cell];
    update_.values.push_back(raw_.Bits(1) != 0 ? -magnitude : magnitude);
    return true;
  }

  absl::string_view bytes_;
  ReferenceBitReader raw_;
  absl::Span<const uint64_t> runs_;
  uint64_t expected_ = 0, support_ = 0, width_ = 0, parameters_ = 0, seed_ = 0, count_ = 0;
  ReferenceRangeDecoder coder_{""};
  uint64_t gaps_ = 0;
  ReferenceProbability gap_contexts_[68][19];
  ReferenceProbability cell_contexts_[16];
  ReferenceUpdate update_;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_REFERENCE_UPDATE_DECODER_H_
