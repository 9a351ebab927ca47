#include "common/codec/update_payload.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/codec/bit_stream.h"
#include "common/codec/position_coder.h"
#include "common/codec/range_coder.h"
#include "common/codec/scale_groups.h"
#include "common/codec/value_quantizer.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

// First byte of a payload.
constexpr uint8_t kRicePositions = 1;
constexpr uint8_t kAdaptivePositions = 2;
constexpr uint8_t kCodedCells = 4;
constexpr int kMaxVarintBytes = 5;

// Of a cell number the highest bits, at most four, are worth a context.
constexpr int kModelledBits = 4;

class CellModel {
 public:
  explicit CellModel(int value_bits)
      : modelled_(std::min(value_bits - 1, kModelledBits)), plain_(value_bits - 1 - modelled_) {}

  int plain_bits() const { return plain_; }
  void Encode(uint32_t cell, RangeEncoder* coder) {
    uint32_t node = 1;
    for (int bit = modelled_ - 1; bit >= 0; --bit) {
      const uint32_t value = (cell >> (plain_ + bit)) & 1;
      coder->Encode(value != 0, nodes_[node]);
      node = 2 * node + value;
    }
  }
  uint32_t Decode(RangeDecoder* coder) {
    uint32_t node = 1;
    for (int bit = 0; bit < modelled_; ++bit) {
      node = 2 * node + (coder->Decode(nodes_[node]) ? 1 : 0);
    }
    return (node ^ (1u << modelled_)) << plain_;
  }

 private:
  int modelled_;
  int plain_;
  AdaptiveBit nodes_[1 << kModelledBits];
};

void AppendVarint(uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(0x80 | (value & 0x7F)));
  out->push_back(static_cast<char>(value));
}

// Canonical: no zero byte at the end of a longer one, at most 32 bits.
bool ReadVarint(absl::string_view* bytes, uint64_t* value) {
  *value = 0;
  for (int i = 0; i < kMaxVarintBytes && !bytes->empty(); ++i) {
    const auto byte = static_cast<uint8_t>(bytes->front());
    bytes->remove_prefix(1);
    *value |= static_cast<uint64_t>(byte & 0x7F) << (7 * i);
    if (byte < 0x80) return (byte != 0 || i == 0) && *value >> 32 == 0;
  }
  return false;
}

// Half of the two around `value`, the upper one with the probability that keeps the mean.
uint16_t StochasticHalf(float value, double uniform) {
  const double magnitude = std::abs(value);
  const uint16_t low = HalfAtMost(magnitude);
  const uint16_t high = HalfAtLeast(magnitude);
  const double from = HalfToFloat(low);
  const double to = HalfToFloat(high);
  const uint16_t half = uniform * (to - from) < magnitude - from ? high : low;
  return static_cast<uint16_t>(half | (std::signbit(value) ? 0x8000u : 0u));
}

// The values of one update on their way to words.
class ValueWriter {
 public:
  ValueWriter(const SliceLayout& layout, absl::Span<const uint32_t> positions,
              const EncodeOptions& options, absl::Span<float> values)
      : options_(options), values_(values), words_(values.size()) {
    if (options.value_bits == 16) {
      QuantizeHalves();
      return;
    }
    const std::vector<uint32_t> by_run = CountByRun(layout, positions, values.size());
    group_log2_ = ChooseGrouping(by_run, values, options.value_bits);
    size_t begin = 0;
    for (const uint32_t end : GroupEnds(by_run, group_log2_)) {
      QuantizeGroup(begin, end);
      begin = end;
    }
  }

  int group_log2() const { return group_log2_; }

  // Appends scales and words; cells go to `cells` instead where that is not null.
  void Write(RangeEncoder* cells, BitWriter* raw) const {
    raw->AlignToByte();
    const int bits = options_.value_bits;
    for (const ValueScale& scale : scales_) {
      raw->Write(scale.first, 16);
      if (ScaleHalves(bits) == 2) raw->Write(scale.second, 16);
    }
    if (cells == nullptr) {
      for (const uint16_t word : words_) raw->Write(word, bits);
      return;
    }
    CellModel model(bits);
    const uint32_t plain_mask = (1u << model.plain_bits()) - 1;
    for (const uint16_t word : words_) {
      model.Encode(word & ((1u << (bits - 1)) - 1), cells);
      // The sign above what is not modelled.
      const uint32_t sign = static_cast<uint32_t>(word) >> (bits - 1);
      raw->Write((word & plain_mask) | (sign << model.plain_bits()), model.plain_bits() + 1);
    }
  }

 private:
  double Uniform(size_t i) const {
    return static_cast<double>(StreamNumber(options_.rounding_seed, i) >> 11) * 0x1p-53;
  }

  void QuantizeHalves() {
    for (size_t i = 0; i < values_.size(); ++i) {
      words_[i] =
          options_.stochastic ? StochasticHalf(values_[i], Uniform(i)) : FloatToHalf(values_[i]);
      values_[i] = HalfToFloat(words_[i]);
    }
  }

  void QuantizeGroup(size_t begin, size_t end) {
    const bool from_zero = options_.support != UpdateSupport::kTopK;
    const ValueScale scale = FitScale(values_.subspan(begin, end - begin), options_.value_bits,
                                      from_zero, options_.stochastic);
    LevelTable levels;
    FEDGE_CHECK(levels.Assign(scale, options_.value_bits));
    scales_.push_back(scale);
    for (size_t i = begin; i < end; ++i) {
      const uint32_t word = options_.stochastic ? levels.Stochastic(values_[i], Uniform(i))
                                                : levels.Nearest(values_[i]);
      words_[i] = static_cast<uint16_t>(word);
      values_[i] = levels.Value(word);
    }
  }

  const EncodeOptions& options_;
  absl::Span<float> values_;
  std::vector<uint16_t> words_;
  std::vector<ValueScale> scales_;
  int group_log2_ = kOneGroup;
};

// The two sections of a payload while they grow.
struct Sections {
  RangeEncoder coder;
  std::string raw_bytes;
  uint8_t modes = 0;
};

// Positions in the shorter of the two codes.
void WritePositions(uint64_t num_parameters, absl::Span<const uint32_t> positions,
                    Sections* sections, BitWriter* raw) {
  RangeEncoder adaptive;
  std::string adaptive_bytes;
  BitWriter adaptive_raw(&adaptive_bytes);
  GapModel model(num_parameters, positions.size());
  uint32_t next = 0;
  for (const uint32_t position : positions) {
    model.Encode(position - next, &adaptive, &adaptive_raw);
    next = position + 1;
  }
  RangeEncoder finished = adaptive;
  int parameter = 0;
  const uint64_t rice_bits = RicePositionBits(positions, &parameter);
  adaptive_raw.AlignToByte();
  const uint64_t adaptive_size = std::move(finished).Finish().size() + adaptive_bytes.size();
  if (adaptive_size < rice_bits / 8) {
    sections->modes = kAdaptivePositions;
    sections->coder = std::move(adaptive);
    sections->raw_bytes = std::move(adaptive_bytes);
  } else {
    sections->modes = kRicePositions;
    WriteRicePositions(positions, parameter, raw);
  }
}

class PayloadReader {
 public:
  PayloadReader(const UpdateHeader& header, const SliceLayout& layout)
      : header_(header), layout_(layout), bits_(header.value_bits) {}

  absl::Status Read(absl::string_view payload, std::vector<uint32_t>* positions,
                    std::vector<float>* values, PayloadBits* found) {
    const size_t size = payload.size();
    RETURN_IF_ERROR(ReadHead(&payload));
    PayloadBits bits;
    bits.head = 8.0 * static_cast<double>(size - payload.size());
    RangeDecoder coder(payload.substr(0, coded_bytes_));
    const absl::string_view raw_bytes = payload.substr(coded_bytes_);
    BitReader raw(raw_bytes);
    RETURN_IF_ERROR(CheckRoom(raw));
    RETURN_IF_ERROR(ReadPositions(&coder, &raw, positions));
    if (!raw.AlignToByte()) return Malformed("bits after the last gap are not zero");
    bits.positions = coder.BitsUsed() + 8.0 * static_cast<double>(raw.BytesConsumed());
    values->reserve(header_.num_nonzero);
    if (bits_ == 16) {
      RETURN_IF_ERROR(ReadHalves(&raw, values));
    } else {
      const absl::string_view rest =
          raw_bytes.substr(std::min(raw.BytesConsumed(), raw_bytes.size()));
      RETURN_IF_ERROR(ReadWords(rest, *positions, &coder, values, &raw));
    }
    if (!raw.AlignToByte() || raw.remaining() != 0) {
      return Malformed(absl::StrCat(raw.remaining() / 8, " bytes after the last value"));
    }
    if (!coder.AtEnd()) return Malformed("its coded section is longer than what it codes");
    bits.scales = 8.0 * static_cast<double>(scale_bytes_);
    if (found != nullptr) *found = bits;
    return absl::OkStatus();
  }

 private:
  static absl::Status Malformed(absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("update: ", what));
  }

  bool positions_coded() const {
    return header_.support == UpdateSupport::kTopK && header_.num_nonzero > 0 &&
           header_.num_nonzero < header_.num_parameters;
  }

  absl::Status ReadHead(absl::string_view* payload) {
    if (payload->size() < 3) return Malformed("the payload's head is cut off");
    const auto modes = static_cast<uint8_t>((*payload)[0]);
    group_log2_ = static_cast<uint8_t>((*payload)[1]);
    payload->remove_prefix(2);
    position_mode_ = modes & 3;
    coded_cells_ = (modes & kCodedCells) != 0;
    const bool position_mode_fits =
        positions_coded() ? position_mode_ == kRicePositions || position_mode_ == kAdaptivePositions
                          : position_mode_ == 0;
    if (modes > 7 || !position_mode_fits || (coded_cells_ && (bits_ == 1 || bits_ == 16))) {
      return Malformed(absl::StrCat("modes ", modes, " do not fit ", header_.num_nonzero,
                                    " values of ", bits_, " bits"));
    }
    if (group_log2_ > kOneGroup || (bits_ == 16 && group_log2_ != kOneGroup)) {
      return Malformed(absl::StrCat("scale groups of 2^", group_log2_, " values"));
    }
    uint64_t coded = 0;
    if (!ReadVarint(payload, &coded) || coded > payload->size()) {
      return Malformed(
          absl::StrCat("a coded section of ", coded, " bytes, ", payload->size(), " are left"));
    }
    coded_bytes_ = static_cast<size_t>(coded);
    return absl::OkStatus();
  }

  // What is not modelled takes bits for each value: a count that cannot be there is refused before
  // anything is allocated.
  absl::Status CheckRoom(const BitReader& raw) const {
    const int plain = coded_cells_ ? 1 + CellModel(bits_).plain_bits() : bits_;
    const uint64_t fewest = header_.num_nonzero * static_cast<uint64_t>(plain);
    if (fewest <= raw.remaining()) return absl::OkStatus();
    return Malformed(absl::StrCat("num_nonzero ", header_.num_nonzero, " values need at least ",
                                  fewest, " bits, ", raw.remaining(), " are there"));
  }

  absl::Status ReadPositions(RangeDecoder* coder, BitReader* raw,
                             std::vector<uint32_t>* positions) const {
    const uint64_t count = header_.num_nonzero;
    if (header_.support == UpdateSupport::kSeeded && count > 0 && count < header_.num_parameters) {
      *positions = SeededPositions(header_.seed, header_.num_parameters, count);
    }
    if (!positions_coded()) return absl::OkStatus();
    positions->reserve(count);
    return position_mode_ == kRicePositions
               ? ReadRicePositions(header_.num_parameters, count, raw, positions)
               : ReadAdaptivePositions(header_.num_parameters, count, coder, raw, positions);
  }

  absl::Status ReadHalves(BitReader* raw, std::vector<float>* values) const {
    for (uint64_t i = 0; i < header_.num_nonzero; ++i) {
      uint32_t half = 0;
      if (!raw->Read(16, &half)) return Malformed(absl::StrCat("value ", i, " is cut off"));
      if ((half & 0x7C00u) == 0x7C00u) {
        return Malformed(
            absl::StrCat("value ", i, " is ", HalfToFloat(static_cast<uint16_t>(half))));
      }
      values->push_back(HalfToFloat(static_cast<uint16_t>(half)));
    }
    return absl::OkStatus();
  }

  // Scales stand before the words: two readers on the same bytes.
  absl::Status ReadWords(absl::string_view bytes, absl::Span<const uint32_t> positions,
                         RangeDecoder* coder, std::vector<float>* values, BitReader* raw) {
    const std::vector<uint32_t> ends =
        GroupEnds(CountByRun(layout_, positions, header_.num_nonzero), group_log2_);
    scale_bytes_ = 2 * ends.size() * static_cast<size_t>(ScaleHalves(bits_));
    if (scale_bytes_ > bytes.size()) {
      return Malformed(absl::StrCat(ends.size(), " scales in ", bytes.size(), " bytes"));
    }
    BitReader scales(bytes.substr(0, scale_bytes_));
    *raw = BitReader(bytes.substr(scale_bytes_));
    CellModel model(bits_);
    LevelTable levels;
    for (size_t group = 0; group < ends.size(); ++group) {
      uint32_t first = 0;
      uint32_t second = 0;
      FEDGE_CHECK(scales.Read(16, &first));
      if (ScaleHalves(bits_) == 2) FEDGE_CHECK(scales.Read(16, &second));
      if (!levels.Assign({static_cast<uint16_t>(first), static_cast<uint16_t>(second)}, bits_)) {
        return Malformed(absl::StrCat(
            "scale ", group, " is ", HalfToFloat(static_cast<uint16_t>(first)), ", ",
            HalfToFloat(static_cast<uint16_t>(second)), ": negative, not finite or out of order"));
      }
      if (!ReadGroup(ends[group], levels, &model, coder, raw, values)) {
        return Malformed(absl::StrCat("value ", values->size(), " is cut off"));
      }
    }
    return absl::OkStatus();
  }

  bool ReadGroup(size_t end, const LevelTable& levels, CellModel* model, RangeDecoder* coder,
                 BitReader* raw, std::vector<float>* values) const {
    uint32_t word = 0;
    if (!coded_cells_) {
      while (values->size() < end) {
        if (!raw->Read(bits_, &word)) return false;
        values->push_back(levels.Value(word));
      }
      return true;
    }
    const int plain = model->plain_bits();
    while (values->size() < end) {
      const uint32_t cell = model->Decode(coder);
      if (!raw->Read(plain + 1, &word)) return false;
      const uint32_t sign = word >> plain;
      values->push_back(levels.Value((sign << (bits_ - 1)) | cell | (word & ((1u << plain) - 1))));
    }
    return true;
  }

  const UpdateHeader& header_;
  const SliceLayout& layout_;
  const int bits_;
  int position_mode_ = 0;
  bool coded_cells_ = false;
  int group_log2_ = 0;
  size_t coded_bytes_ = 0;
  size_t scale_bytes_ = 0;
};

}  // namespace

void AppendPayload(const SliceLayout& layout, absl::Span<const uint32_t> positions,
                   const EncodeOptions& options, absl::Span<float> values, std::string* out) {
  Sections sections;
  BitWriter raw(&sections.raw_bytes);
  if (options.support == UpdateSupport::kTopK && !positions.empty()) {
    WritePositions(static_cast<uint64_t>(layout.size()), positions, &sections, &raw);
  }
  const ValueWriter writer(layout, positions, options, values);
  RangeEncoder plain_coder = sections.coder;
  std::string coded = std::move(plain_coder).Finish();
  const bool has_cells = options.value_bits > 1 && options.value_bits < 16;
  std::string cells_coded;
  if (has_cells) {
    RangeEncoder with_cells = sections.coder;
    std::string ignored;
    BitWriter rest(&ignored);
    writer.Write(&with_cells, &rest);
    rest.AlignToByte();
    cells_coded = std::move(with_cells).Finish();
    std::string all;
    BitWriter plain(&all);
    writer.Write(nullptr, &plain);
    plain.AlignToByte();
    if (cells_coded.size() + ignored.size() < coded.size() + all.size()) {
      sections.modes |= kCodedCells;
      coded = std::move(cells_coded);
    }
  }
  RangeEncoder discarded;
  writer.Write((sections.modes & kCodedCells) != 0 ? &discarded : nullptr, &raw);
  raw.AlignToByte();
  out->push_back(static_cast<char>(sections.modes));
  out->push_back(static_cast<char>(writer.group_log2()));
  AppendVarint(coded.size(), out);
  out->append(coded);
  out->append(sections.raw_bytes);
}

absl::Status ReadPayload(absl::string_view payload, const UpdateHeader& header,
                         const SliceLayout& layout, std::vector<uint32_t>* positions,
                         std::vector<float>* values, PayloadBits* bits) {
  return PayloadReader(header, layout).Read(payload, positions, values, bits);
}

// Neither adaptive code is taken when it is longer than the plain one.
uint64_t PayloadBound(uint64_t num_parameters, uint64_t count, const EncodeOptions& options) {
  const uint64_t head = 2 + kMaxVarintBytes;
  const bool coded = options.support == UpdateSupport::kTopK;
  const uint64_t position_bits = coded ? RicePositionBound(num_parameters, count) : 0;
  const uint64_t groups = (count >> kSmallestGroup) + 1;
  const uint64_t scales = 2 * groups * static_cast<uint64_t>(ScaleHalves(options.value_bits));
  const uint64_t value_bits = count * static_cast<uint64_t>(options.value_bits);
  return head + (position_bits + 7) / 8 + scales + (value_bits + 7) / 8;
}

}  // namespace fedge
