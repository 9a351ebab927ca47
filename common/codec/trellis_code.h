// Trellis-coded signs: a vector in less than one bit a value, without positions.
//
// A path of bits drives a shift register of 8 bits. After each bit, the register's state stands for
// a pattern of signs, of which the first `period` are the next ones of the vector; parts of the
// vector may have periods of their own. The sender searches the path whose
// signs have the largest inner product with the values (Viterbi 1967); times one scale they are
// what the receiver reconstructs. Signs of two paths from one state are opposite, so that with a
// period of 1 every sign can be sent.
//
// What is carried, for Gaussian values, as a share of their energy, beside the bound of
// rate-distortion theory, 1 - 2^(-2/period), and the largest values with signs in as many bits:
//   period   1     2     4     8     16
//   trellis  0.64  0.46  0.26  0.14  0.072
//   bound    0.75  0.50  0.29  0.16  0.083
//   top-k    0.57  0.36  0.20  0.11  0.061
// Where few values hold much of the energy top-k carries more: see proto/UPDATE_FORMAT.md.
//
// Internal to the codec.
#ifndef FEDGE_COMMON_CODEC_TRELLIS_CODE_H_
#define FEDGE_COMMON_CODEC_TRELLIS_CODE_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace fedge {

inline constexpr int kTrellisStates = 256;
inline constexpr int kMaxTrellisPeriod = 64;

// The patterns of all states for one seed.
class TrellisCode {
 public:
  explicit TrellisCode(uint64_t seed);

  // Bit j: sign j of the pattern, 1 for plus.
  uint64_t pattern(uint32_t state) const { return patterns_[state]; }

  static uint32_t Next(uint32_t state, uint32_t bit) {
    return ((state << 1) | bit) & (kTrellisStates - 1);
  }

 private:
  std::array<uint64_t, kTrellisStates> patterns_;
};

// The signs along a path.
class TrellisSigns {
 public:
  explicit TrellisSigns(const TrellisCode& code) : code_(code) {}

  // The next part of the vector, from the state that the one before ended in.
  void Begin(int period) {
    period_ = period;
    left_ = 0;
  }
  bool needs_bit() const { return left_ == 0; }
  void Feed(uint32_t bit) {
    state_ = TrellisCode::Next(state_, bit);
    pattern_ = code_.pattern(state_);
    left_ = period_;
  }
  // Whether the next sign is plus. Not when a bit is needed.
  bool Next() {
    const bool plus = (pattern_ & 1) != 0;
    pattern_ >>= 1;
    --left_;
    return plus;
  }

  // The next signs that are known, at most `most`: returns how many, as bits of `pattern` from bit
  // 0.
  int Take(uint64_t most, uint64_t* pattern) {
    const int count = static_cast<int>(std::min<uint64_t>(most, static_cast<uint64_t>(left_)));
    *pattern = pattern_;
    pattern_ = count < 64 ? pattern_ >> count : 0;
    left_ -= count;
    return count;
  }

 private:
  const TrellisCode& code_;
  uint32_t state_ = 0;
  uint64_t pattern_ = 0;
  int period_ = 1;
  int left_ = 0;
};

// Values that follow each other with one period, 1 to kMaxTrellisPeriod (CHECKed).
struct TrellisPart {
  absl::Span<const float> values;
  int period = 1;
};

// The path through all parts, a bit an entry, whose signs have the largest inner product with the
// values (within windows of some thousand steps). The same path on every machine. About 30
// operations a value at a period of 8; scratch of about 100 KB.
std::vector<uint8_t> FindTrellisPath(const TrellisCode& code, absl::Span<const TrellisPart> parts);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_TRELLIS_CODE_H_
