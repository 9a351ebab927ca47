// Where the values of a top-k update are: the gaps between their positions in the slice, as
// adaptive binary decisions, or as Golomb-Rice codes where those are shorter (which bounds the size
// whatever the positions; proto/UPDATE_FORMAT.md). Internal to the codec.
#ifndef FEDGE_COMMON_CODEC_POSITION_CODER_H_
#define FEDGE_COMMON_CODEC_POSITION_CODER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/codec/bit_stream.h"
#include "common/codec/range_coder.h"

namespace fedge {

// What is known of gaps: a running mean of those before chooses how many low bits are sent as they
// are and which contexts the rest is coded in, so that the code follows the density along the
// slice. Within 0.7 % of the entropy of independent positions from a few thousand values on.
class GapModel {
 public:
  // Of `count` values (at least 1) in `num_parameters` coordinates.
  GapModel(uint64_t num_parameters, uint64_t count);

  void Encode(uint32_t gap, RangeEncoder* coder, BitWriter* raw);
  // False when the raw bits end or the gap cannot be one.
  bool Decode(RangeDecoder* coder, BitReader* raw, uint32_t* gap);

 private:
  static constexpr uint32_t kUnaryContexts = 16;
  static constexpr uint32_t kMaxUnary = 24;  // then a gamma code
  static constexpr int kLevels = 68;

  struct Level {
    AdaptiveBit unary[kUnaryContexts];
    AdaptiveBit low[3];
  };

  // The contexts and the number of low bits for the next gap.
  Level& Current(int* low_bits);
  void Learn(uint32_t gap);

  Level levels_[kLevels];
  int64_t mean_;  // of gaps, in 1/256
  int64_t seen_ = 0;
};

// Bits of `positions` as Rice codes with the best parameter, which is stored in 5 bits before.
uint64_t RicePositionBits(absl::Span<const uint32_t> positions, int* parameter);
void WriteRicePositions(absl::Span<const uint32_t> positions, int parameter, BitWriter* raw);
// `count` positions below `num_parameters`, appended. InvalidArgument: the bits end early, a gap
// leaves the slice, a parameter above 30.
absl::Status ReadRicePositions(uint64_t num_parameters, uint64_t count, BitReader* raw,
                               std::vector<uint32_t>* positions);
// The same for adaptive ones.
absl::Status ReadAdaptivePositions(uint64_t num_parameters, uint64_t count, RangeDecoder* coder,
                                   BitReader* raw, std::vector<uint32_t>* positions);

// Upper bound of the Rice coded size in bits of `count` of `num_parameters` positions.
uint64_t RicePositionBound(uint64_t num_parameters, uint64_t count);

// The seeded support: one coordinate of each of `count` equal parts of the slice, ascending.
std::vector<uint32_t> SeededPositions(uint64_t seed, uint64_t num_parameters, uint64_t count);

// The `index`-th number of the stream of `seed` (SplitMix64; Steele, Lea, Flood 2014).
inline uint64_t StreamNumber(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_POSITION_CODER_H_
