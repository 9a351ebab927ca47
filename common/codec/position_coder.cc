#include "common/codec/position_coder.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "absl/strings/str_cat.h"

namespace fedge {
namespace {

constexpr int kMaxRiceParameter = 30;
constexpr int kRiceParameterBits = 5;
// So many gaps count alike, then the last 16 count most.
constexpr int kLearnFullyLog2 = 4;
constexpr int64_t kLearnFully = int64_t{1} << kLearnFullyLog2;

absl::Status BadGap(uint64_t index, uint64_t count) {
  return absl::InvalidArgumentError(
      absl::StrCat("update: gap ", index, " of ", count, " is cut off or too long"));
}

absl::Status OutOfSlice(uint64_t index, uint64_t count, uint64_t position, uint64_t limit) {
  return absl::InvalidArgumentError(absl::StrCat("update: gap ", index, " of ", count,
                                                 " leads to position ", position, " of ", limit));
}

// Calls visit(gap) for each gap before a position.
template <typename Visit>
void ForEachGap(absl::Span<const uint32_t> positions, const Visit& visit) {
  uint32_t next = 0;
  for (const uint32_t position : positions) {
    visit(position - next);
    next = position + 1;
  }
}

}  // namespace

GapModel::GapModel(uint64_t num_parameters, uint64_t count)
    : mean_(static_cast<int64_t>(((num_parameters - count) << 8) / count)) {}

GapModel::Level& GapModel::Current(int* low_bits) {
  const auto mean = static_cast<uint64_t>(mean_ + 128);  // at least 2^7: half a coordinate
  const int exponent = static_cast<int>(std::bit_width(mean)) - 1;
  const auto half = static_cast<int>((mean >> (exponent - 1)) & 1);
  *low_bits = std::max(0, exponent - 8);
  return levels_[2 * (exponent - 7) + half];
}

void GapModel::Learn(uint32_t gap) {
  const int64_t scaled = static_cast<int64_t>(gap) << 8;
  const int64_t step = scaled - mean_;
  // Towards minus infinity on both sides, as a shift does.
  if (seen_ + 2 >= kLearnFully) {
    mean_ += step >> kLearnFullyLog2;
    return;
  }
  const int64_t weight = seen_ + 2;
  mean_ += step >= 0 ? step / weight : -((-step + weight - 1) / weight);
  ++seen_;
}

void GapModel::Encode(uint32_t gap, RangeEncoder* coder, BitWriter* raw) {
  int low_bits = 0;
  Level& level = Current(&low_bits);
  const uint32_t quotient = gap >> low_bits;
  for (uint32_t i = 0; i < std::min(quotient, kMaxUnary); ++i) {
    coder->Encode(true, level.unary[std::min(i, kUnaryContexts - 1)]);
  }
  if (quotient < kMaxUnary) {
    coder->Encode(false, level.unary[std::min(quotient, kUnaryContexts - 1)]);
  } else {
    const uint32_t rest = quotient - kMaxUnary + 1;
    const int bits = static_cast<int>(std::bit_width(rest)) - 1;
    raw->WriteUnary(static_cast<uint32_t>(bits));
    raw->Write(rest ^ (1u << bits), bits);
  }
  if (low_bits > 0) {
    const uint32_t low = gap & ((1u << low_bits) - 1);
    coder->Encode(low >> (low_bits - 1) != 0, level.low[std::min(quotient, 2u)]);
    raw->Write(low & ((1u << (low_bits - 1)) - 1), low_bits - 1);
  }
  Learn(gap);
}

bool GapModel::Decode(RangeDecoder* coder, BitReader* raw, uint32_t* gap) {
  int low_bits = 0;
  Level& level = Current(&low_bits);
  uint64_t quotient = 0;
  while (quotient < kMaxUnary &&
         coder->Decode(level.unary[std::min<uint64_t>(quotient, kUnaryContexts - 1)])) {
    ++quotient;
  }
  if (quotient == kMaxUnary) {
    uint32_t bits = 0;
    uint32_t rest = 0;
    if (!raw->ReadUnary(31, &bits) || !raw->Read(static_cast<int>(bits), &rest)) return false;
    quotient += (uint64_t{1} << bits) + rest - 1;
  }
  uint64_t value = quotient << low_bits;
  if (low_bits > 0) {
    const uint64_t high = coder->Decode(level.low[std::min<uint64_t>(quotient, 2)]) ? 1 : 0;
    uint32_t low = 0;
    if (!raw->Read(low_bits - 1, &low)) return false;
    value |= (high << (low_bits - 1)) | low;
  }
  if (value > std::numeric_limits<uint32_t>::max() / 2) return false;
  *gap = static_cast<uint32_t>(value);
  Learn(*gap);
  return true;
}

uint64_t RicePositionBits(absl::Span<const uint32_t> positions, int* parameter) {
  const auto bits_with = [&](int k) {
    uint64_t quotients = 0;
    ForEachGap(positions, [&](uint32_t gap) { quotients += gap >> k; });
    return kRiceParameterBits + quotients + positions.size() * (static_cast<uint64_t>(k) + 1);
  };
  *parameter = 0;
  if (positions.empty()) return kRiceParameterBits;
  // From the logarithm of the mean down and up: a step from k to k + 1 changes the size by
  // count - sum(ceil((g >> k) / 2)), which only grows with k, so the first minimum is the only one.
  const uint64_t mean = (uint64_t{positions.back()} + 1 - positions.size()) / positions.size();
  int best =
      std::min(kMaxRiceParameter, mean == 0 ? 0 : static_cast<int>(std::bit_width(mean)) - 1);
  uint64_t best_bits = bits_with(best);
  for (const int step : {-1, 1}) {
    while (best + step >= 0 && best + step <= kMaxRiceParameter) {
      const uint64_t bits = bits_with(best + step);
      if (bits > best_bits || (bits == best_bits && step > 0)) break;
      best_bits = bits;
      best += step;
    }
  }
  *parameter = best;
  return best_bits;
}

void WriteRicePositions(absl::Span<const uint32_t> positions, int parameter, BitWriter* raw) {
  raw->Write(static_cast<uint32_t>(parameter), kRiceParameterBits);
  const uint32_t mask = (1u << parameter) - 1;
  ForEachGap(positions, [&](uint32_t gap) {
    raw->WriteUnary(gap >> parameter);
    raw->Write(gap & mask, parameter);
  });
}

absl::Status ReadRicePositions(uint64_t num_parameters, uint64_t count, BitReader* raw,
                               std::vector<uint32_t>* positions) {
  uint32_t parameter = 0;
  if (!raw->Read(kRiceParameterBits, &parameter) || parameter > kMaxRiceParameter) {
    return absl::InvalidArgumentError(
        absl::StrCat("update: Rice parameter ", parameter, " is above ", kMaxRiceParameter));
  }
  uint64_t next = 0;
  for (uint64_t i = 0; i < count; ++i) {
    uint32_t quotient = 0;
    uint32_t low = 0;
    const auto limit = static_cast<uint32_t>(num_parameters >> parameter);
    if (!raw->ReadUnary(limit, &quotient) || !raw->Read(static_cast<int>(parameter), &low)) {
      return BadGap(i, count);
    }
    const uint64_t position = next + ((uint64_t{quotient} << parameter) | low);
    if (position >= num_parameters) return OutOfSlice(i, count, position, num_parameters);
    positions->push_back(static_cast<uint32_t>(position));
    next = position + 1;
  }
  return absl::OkStatus();
}

absl::Status ReadAdaptivePositions(uint64_t num_parameters, uint64_t count, RangeDecoder* coder,
                                   BitReader* raw, std::vector<uint32_t>* positions) {
  GapModel model(num_parameters, count);
  uint64_t next = 0;
  for (uint64_t i = 0; i < count; ++i) {
    uint32_t gap = 0;
    if (!model.Decode(coder, raw, &gap)) return BadGap(i, count);
    const uint64_t position = next + gap;
    if (position >= num_parameters) return OutOfSlice(i, count, position, num_parameters);
    positions->push_back(static_cast<uint32_t>(position));
    next = position + 1;
  }
  return absl::OkStatus();
}

// The encoder takes the best parameter, so any one bounds it.
uint64_t RicePositionBound(uint64_t num_parameters, uint64_t count) {
  uint64_t bits = std::numeric_limits<uint64_t>::max();
  for (int k = 0; k <= kMaxRiceParameter; ++k) {
    bits = std::min(bits, count * (static_cast<uint64_t>(k) + 1) + ((num_parameters - count) >> k));
  }
  return kRiceParameterBits + bits;
}

std::vector<uint32_t> SeededPositions(uint64_t seed, uint64_t num_parameters, uint64_t count) {
  std::vector<uint32_t> positions(count);
  uint64_t begin = 0;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t end = (i + 1) * num_parameters / count;
    const uint64_t offset = ((StreamNumber(seed, i) >> 32) * (end - begin)) >> 32;
    positions[i] = static_cast<uint32_t>(begin + offset);
    begin = end;
  }
  return positions;
}

}  // namespace fedge
