#include "common/codec/rice_gaps.h"

#include "absl/strings/str_cat.h"
#include "common/codec/bit_stream.h"

namespace fedge {

uint64_t RiceBits(absl::Span<const uint32_t> gaps, int parameter) {
  uint64_t quotients = 0;
  for (const uint32_t gap : gaps) quotients += gap >> parameter;
  return quotients + gaps.size() * (static_cast<uint64_t>(parameter) + 1);
}

int BestRiceParameter(absl::Span<const uint32_t> gaps) {
  if (gaps.empty()) return 0;
  uint64_t sum = 0;
  for (const uint32_t gap : gaps) sum += gap;
  // Start at the logarithm of the mean and walk down the slope. A step from k to k + 1 changes the
  // size by count - sum(ceil((g >> k) / 2)), which only grows with k: the first minimum is the
  // only one.
  int best = 0;
  while (best < kMaxRiceParameter && (sum / gaps.size()) >> (best + 1) != 0) ++best;
  uint64_t best_bits = RiceBits(gaps, best);
  while (best > 0) {
    const uint64_t bits = RiceBits(gaps, best - 1);
    if (bits > best_bits) break;
    best_bits = bits;
    --best;
  }
  while (best < kMaxRiceParameter) {
    const uint64_t bits = RiceBits(gaps, best + 1);
    if (bits >= best_bits) break;
    best_bits = bits;
    ++best;
  }
  return best;
}

void AppendRiceGaps(absl::Span<const uint32_t> gaps, int parameter, std::string* out) {
  BitWriter writer(out);
  const uint32_t low_mask = (uint32_t{1} << parameter) - 1;
  for (const uint32_t gap : gaps) {
    writer.WriteUnary(gap >> parameter);
    writer.Write(gap & low_mask, parameter);
  }
  writer.AlignToByte();
}

absl::StatusOr<size_t> ReadRicePositions(absl::string_view bytes, uint32_t count, int parameter,
                                         uint32_t limit, std::vector<uint32_t>* positions) {
  BitReader reader(bytes);
  positions->clear();
  // Every gap takes at least one bit: a count that cannot be there is refused before allocating.
  const uint64_t fewest_bits = uint64_t{count} * (static_cast<uint64_t>(parameter) + 1);
  if (fewest_bits > reader.remaining()) {
    return absl::InvalidArgumentError(absl::StrCat(count, " gaps need at least ", fewest_bits,
                                                   " bits, ", reader.remaining(), " are left"));
  }
  positions->reserve(count);
  uint64_t next = 0;  // the lowest position the next gap can reach
  for (uint32_t i = 0; i < count; ++i) {
    uint32_t quotient = 0;
    uint32_t low = 0;
    if (!reader.ReadUnary(limit >> parameter, &quotient) || !reader.Read(parameter, &low)) {
      return absl::InvalidArgumentError(
          absl::StrCat("gap ", i, " of ", count, " is cut off or too long"));
    }
    const uint64_t position = next + ((uint64_t{quotient} << parameter) | low);
    if (position >= limit) {
      return absl::InvalidArgumentError(
          absl::StrCat("gap ", i, " of ", count, " leads to position ", position, " of ", limit));
    }
    positions->push_back(static_cast<uint32_t>(position));
    next = position + 1;
  }
  if (!reader.AlignToByte()) {
    return absl::InvalidArgumentError("bits after the last gap are not zero");
  }
  return reader.BytesConsumed();
}

}  // namespace fedge
