#include "common/codec/sparse_payload.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/base/byte_io.h"
#include "common/base/status.h"
#include "common/codec/bit_stream.h"
#include "common/codec/magnitude_quantizer.h"
#include "common/codec/rice_gaps.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

// Block head: 24 bits, little-endian.
constexpr size_t kHeadBytes = 3;
constexpr int kCountBits = 18;
constexpr uint32_t kCountMask = (1u << kCountBits) - 1;
constexpr int kParameterBits = 5;
static_assert(kSparseBlockCoordinates <= kCountMask && kMaxRiceParameter < (1 << kParameterBits));

size_t GroupsOf(size_t count) { return (count + kQuantizerGroup - 1) / kQuantizerGroup; }

void AppendHalf(uint16_t half, std::string* out) {
  out->push_back(static_cast<char>(half & 0xFF));
  out->push_back(static_cast<char>(half >> 8));
}

void AppendHead(uint32_t count, int parameter, std::string* out) {
  const uint32_t head = count | (static_cast<uint32_t>(parameter) << kCountBits);
  for (int byte = 0; byte < 3; ++byte)
    out->push_back(static_cast<char>((head >> (8 * byte)) & 0xFF));
}

// The buffers of one block, reused for all.
class BlockWriter {
 public:
  BlockWriter(absl::Span<const float> values, int value_bits, absl::Span<float> residual,
              std::string* out)
      : values_(values), bits_(value_bits), residual_(residual), out_(out) {}

  // `indices`: those in the block that starts at coordinate `first`.
  void Append(absl::Span<const uint32_t> indices, uint64_t first) {
    gaps_.clear();
    uint64_t next = first;
    for (const uint32_t index : indices) {
      gaps_.push_back(static_cast<uint32_t>(index - next));
      next = uint64_t{index} + 1;
    }
    const int parameter = BestRiceParameter(gaps_);
    AppendHead(static_cast<uint32_t>(indices.size()), parameter, out_);
    if (indices.empty()) return;
    AppendRiceGaps(gaps_, parameter, out_);
    AppendMagnitudes(indices);
  }

 private:
  void AppendMagnitudes(absl::Span<const uint32_t> indices) {
    sent_.clear();
    float smallest = std::numeric_limits<float>::max();
    for (const uint32_t index : indices) {
      sent_.push_back(values_[index]);
      smallest = std::min(smallest, std::abs(values_[index]));
    }
    const uint16_t base = HalfAtMost(smallest);
    AppendHalf(base, out_);
    words_.resize(sent_.size());
    for (size_t first = 0; first < sent_.size(); first += kQuantizerGroup) {
      const absl::Span<const float> group =
          absl::MakeConstSpan(sent_).subspan(first, kQuantizerGroup);
      const uint16_t step = QuantizeGroup(group, HalfToFloat(base), bits_, &words_[first]);
      AppendHalf(step, out_);
      if (residual_.empty()) continue;
      for (size_t i = first; i < first + group.size(); ++i) {
        residual_[indices[i]] -=
            DequantizeValue(HalfToFloat(base), HalfToFloat(step), words_[i], bits_);
      }
    }
    BitWriter writer(out_);
    for (const uint32_t word : words_) writer.Write(word, bits_);
    writer.AlignToByte();
  }

  absl::Span<const float> values_;
  int bits_;
  absl::Span<float> residual_;
  std::string* out_;
  std::vector<uint32_t> gaps_;
  std::vector<float> sent_;
  std::vector<uint32_t> words_;
};

// Reads block after block; `payload_` is what is left.
class BlockReader {
 public:
  BlockReader(absl::string_view payload, int value_bits) : payload_(payload), bits_(value_bits) {}

  // Appends the coordinates and values of the block of `size` coordinates from `first` on.
  absl::Status Read(uint64_t first, uint64_t size, std::vector<uint32_t>* coordinates,
                    std::vector<float>* values) {
    ASSIGN_OR_RETURN(const Head head, ReadHead(static_cast<size_t>(size)));
    if (head.count == 0) return absl::OkStatus();
    ASSIGN_OR_RETURN(const size_t gap_bytes,
                     ReadRicePositions(payload_, head.count, head.parameter,
                                       static_cast<uint32_t>(size), &positions_));
    payload_.remove_prefix(gap_bytes);
    for (const uint32_t position : positions_) {
      coordinates->push_back(static_cast<uint32_t>(first + position));
    }
    return ReadMagnitudes(values);
  }

  absl::string_view rest() const { return payload_; }

 private:
  struct Head {
    uint32_t count;
    int parameter;
  };

  absl::StatusOr<Head> ReadHead(size_t coordinates) {
    if (payload_.size() < kHeadBytes) return absl::InvalidArgumentError("its head is cut off");
    uint32_t word = 0;
    for (size_t byte = 0; byte < kHeadBytes; ++byte) {
      word |= static_cast<uint32_t>(static_cast<uint8_t>(payload_[byte])) << (8 * byte);
    }
    payload_.remove_prefix(kHeadBytes);
    const Head head{word & kCountMask, static_cast<int>(word >> kCountBits)};
    if (head.count > coordinates) {
      return absl::InvalidArgumentError(
          absl::StrCat(head.count, " values for ", coordinates, " coordinates"));
    }
    if (head.parameter > kMaxRiceParameter || (head.count == 0 && head.parameter != 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("Rice parameter ", head.parameter, " for ", head.count, " values"));
    }
    return head;
  }

  // Base, steps and code words of the positions read before.
  absl::Status ReadMagnitudes(std::vector<float>* values) {
    const size_t count = positions_.size();
    ByteReader scales(payload_);
    const float base = HalfToFloat(scales.Read<uint16_t>());
    const absl::string_view steps = scales.ReadBytes(2 * GroupsOf(count));
    const absl::string_view words = scales.ReadBytes((count * static_cast<size_t>(bits_) + 7) / 8);
    if (!scales.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("its ", count, " values are cut off: ", payload_.size(), " bytes are left"));
    }
    payload_.remove_prefix(scales.position());
    if (!(base > 0 && std::isfinite(base))) {
      return absl::InvalidArgumentError(absl::StrCat("its base ", base, " is not positive"));
    }
    ByteReader step_reader(steps);
    BitReader word_reader(words);
    float step = 0;
    for (size_t i = 0; i < count; ++i) {
      if (i % kQuantizerGroup == 0) {
        const uint16_t half = step_reader.Read<uint16_t>();
        step = HalfToFloat(half);
        if ((half & 0x8000u) != 0 || !std::isfinite(step)) {
          return absl::InvalidArgumentError(absl::StrCat("step ", i / kQuantizerGroup, " is ", step,
                                                         ", not finite and non-negative"));
        }
      }
      uint32_t word = 0;
      FEDGE_CHECK(word_reader.Read(bits_, &word));  // the bytes were counted above
      values->push_back(DequantizeValue(base, step, word, bits_));
    }
    if (!word_reader.AlignToByte()) {
      return absl::InvalidArgumentError("bits after its last value are not zero");
    }
    return absl::OkStatus();
  }

  absl::string_view payload_;
  int bits_;
  std::vector<uint32_t> positions_;
};

}  // namespace

void AppendSparsePayload(absl::Span<const float> values, absl::Span<const uint32_t> indices,
                         int value_bits, absl::Span<float> residual, std::string* out) {
  BlockWriter writer(values, value_bits, residual, out);
  size_t begin = 0;
  for (uint64_t first = 0; first < values.size(); first += kSparseBlockCoordinates) {
    size_t end = begin;
    while (end < indices.size() && indices[end] < first + kSparseBlockCoordinates) ++end;
    writer.Append(indices.subspan(begin, end - begin), first);
    begin = end;
  }
}

absl::Status ReadSparsePayload(absl::string_view payload, uint64_t num_parameters,
                               uint64_t num_nonzero, int value_bits,
                               std::vector<uint32_t>* coordinates, std::vector<float>* values) {
  BlockReader reader(payload, value_bits);
  for (uint64_t first = 0; first < num_parameters; first += kSparseBlockCoordinates) {
    const uint64_t size = std::min(kSparseBlockCoordinates, num_parameters - first);
    const absl::Status read = reader.Read(first, size, coordinates, values);
    if (!read.ok()) {
      return Annotate(read, absl::StrCat("update: block ", first / kSparseBlockCoordinates));
    }
  }
  if (!reader.rest().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("update: ", reader.rest().size(), " bytes after the last block"));
  }
  if (values->size() != num_nonzero) {
    return absl::InvalidArgumentError(
        absl::StrCat("update: ", values->size(), " values, the header says ", num_nonzero));
  }
  return absl::OkStatus();
}

// Each block takes the best Rice parameter of its own, so the sum is at most what any one parameter
// gives for all blocks: count (k + 1) + floor((n - count) / 2^k) bits. That grows with count, so it
// holds when fewer values are sent too.
uint64_t SparsePayloadBound(uint64_t num_parameters, uint64_t count, int value_bits) {
  count = std::min(count, num_parameters);
  const uint64_t blocks = (num_parameters + kSparseBlockCoordinates - 1) / kSparseBlockCoordinates;
  const uint64_t filled = std::min(blocks, count);
  uint64_t gap_bits = std::numeric_limits<uint64_t>::max();
  for (int k = 0; k <= kMaxRiceParameter; ++k) {
    gap_bits = std::min(gap_bits,
                        count * (static_cast<uint64_t>(k) + 1) + ((num_parameters - count) >> k));
  }
  const uint64_t value_bit_count = count * static_cast<uint64_t>(value_bits);
  const uint64_t padding = 2 * filled;  // both streams of a block end on a whole byte
  const uint64_t scales = 2 * (filled + count / kQuantizerGroup + filled);
  return kHeadBytes * blocks + scales + (gap_bits + value_bit_count) / 8 + padding;
}

}  // namespace fedge
