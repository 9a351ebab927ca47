#include "common/codec/trellis_payload.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/codec/bit_stream.h"
#include "common/codec/scale_groups.h"
#include "common/codec/trellis_code.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

static_assert(kLeastTrellisBits * kMaxTrellisPeriod == 1);

constexpr uint64_t kHeadBytes = 2;
constexpr float kLargestScale = 65504;  // the largest half

// A scale has 16 bits and its group at least 512 of the path's: 3 % at most.
int GroupLog2(int period) {
  return kSmallestGroup + static_cast<int>(std::bit_width(static_cast<unsigned>(period) - 1));
}

std::vector<uint32_t> Groups(const SliceLayout& layout, int group_log2) {
  const auto size = static_cast<uint64_t>(layout.size());
  return GroupEnds(CountByRun(layout, {}, size), group_log2);
}

double MeanSquare(absl::Span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * value;
  return sum / static_cast<double>(values.size());
}

// What a sign is worth depends on its group's scale, which follows the group's energy.
std::vector<float> WeighedByScale(absl::Span<const float> values, absl::Span<const uint32_t> ends) {
  std::vector<float> weighed(values.size());
  size_t i = 0;
  for (const uint32_t end : ends) {
    const auto weight = static_cast<float>(std::sqrt(MeanSquare(values.subspan(i, end - i))));
    for (; i < end; ++i) weighed[i] = weight * values[i];
  }
  return weighed;
}

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("update: ", what));
}

}  // namespace

int TrellisPeriod(double bits_per_parameter) {
  // A little above the whole number still counts as it: 1 / 0.2.
  const double period = std::ceil(1 / bits_per_parameter - 1e-6);
  return static_cast<int>(std::clamp<double>(period, 1, kMaxTrellisPeriod));
}

void AppendTrellisPayload(const SliceLayout& layout, const EncodeOptions& options,
                          absl::Span<float> values, std::string* out) {
  const TrellisCode code(options.seed, TrellisPeriod(options.density));
  const int group_log2 = GroupLog2(code.period());
  const std::vector<uint32_t> ends = Groups(layout, group_log2);
  const std::vector<uint8_t> path = FindTrellisPath(code, WeighedByScale(values, ends));
  out->push_back(static_cast<char>(code.period()));
  out->push_back(static_cast<char>(group_log2));
  BitWriter raw(out);
  TrellisSigns signs(code);
  size_t step = 0;
  size_t i = 0;
  for (const uint32_t end : ends) {
    double product = 0;
    const size_t begin = i;
    for (; i < end; ++i) {
      if (signs.needs_bit()) signs.Feed(path[step++]);
      const bool plus = signs.Next();
      product += plus ? values[i] : -static_cast<double>(values[i]);
      values[i] = plus ? 1.0f : -1.0f;
    }
    const double mean = options.relaxation * product / static_cast<double>(end - begin);
    const uint16_t half =
        FloatToHalf(static_cast<float>(std::clamp<double>(mean, 0, kLargestScale)));
    raw.Write(half, 16);
    for (size_t j = begin; j < end; ++j) values[j] *= HalfToFloat(half);
  }
  for (const uint8_t bit : path) raw.Write(bit, 1);
  raw.AlignToByte();
}

absl::Status ReadTrellisPayload(absl::string_view payload, const UpdateHeader& header,
                                const SliceLayout& layout, std::vector<float>* values) {
  if (payload.size() < kHeadBytes) return Malformed("the payload's head is cut off");
  const int period = static_cast<uint8_t>(payload[0]);
  const int group_log2 = static_cast<uint8_t>(payload[1]);
  if (period < 1 || period > kMaxTrellisPeriod) {
    return Malformed(
        absl::StrCat("a bit for ", period, " signs, outside 1 to ", kMaxTrellisPeriod));
  }
  if (group_log2 > kOneGroup) {
    return Malformed(absl::StrCat("scale groups of 2^", group_log2, " values"));
  }
  const TrellisCode code(header.seed, period);
  const std::vector<uint32_t> ends = Groups(layout, group_log2);
  const uint64_t bytes = kHeadBytes + 2 * ends.size() + (code.steps(header.num_parameters) + 7) / 8;
  if (payload.size() != bytes) {
    return Malformed(absl::StrCat("a payload of ", payload.size(), " bytes, ", ends.size(),
                                  " scales and a bit for ", period, " signs need ", bytes));
  }
  BitReader scales(payload.substr(kHeadBytes, 2 * ends.size()));
  BitReader path(payload.substr(kHeadBytes + 2 * ends.size()));
  TrellisSigns signs(code);
  values->resize(header.num_parameters);
  float* value = values->data();
  uint32_t begin = 0;
  for (const uint32_t end : ends) {
    uint32_t half = 0;
    scales.Read(16, &half);
    const float scale = HalfToFloat(static_cast<uint16_t>(half));
    if (std::signbit(scale) || !std::isfinite(scale)) {
      return Malformed(absl::StrCat("a scale is ", scale, ": negative or not finite"));
    }
    const uint32_t magnitude = std::bit_cast<uint32_t>(scale);
    while (begin < end) {
      if (signs.needs_bit()) {
        uint32_t bit = 0;
        path.Read(1, &bit);
        signs.Feed(bit);
      }
      uint64_t pattern = 0;
      const int count = signs.Take(end - begin, &pattern);
      for (int j = 0; j < count; ++j) {
        const uint32_t minus = static_cast<uint32_t>(~pattern >> j) << 31;
        value[j] = std::bit_cast<float>(magnitude | minus);
      }
      value += count;
      begin += static_cast<uint32_t>(count);
    }
  }
  return path.AlignToByte() ? absl::OkStatus() : Malformed("bits after the path are not zero");
}

PayloadBits TrellisPayloadBits(absl::string_view payload, const SliceLayout& layout) {
  const size_t groups = Groups(layout, static_cast<uint8_t>(payload[1])).size();
  return {.head = 8.0 * kHeadBytes, .scales = 16.0 * static_cast<double>(groups)};
}

uint64_t TrellisPayloadBound(uint64_t num_parameters, double bits_per_parameter) {
  const int period = TrellisPeriod(bits_per_parameter);
  const uint64_t groups = (num_parameters >> GroupLog2(period)) + 1;
  return kHeadBytes + 2 * groups + num_parameters / (8 * static_cast<uint64_t>(period)) + 1;
}

}  // namespace fedge
