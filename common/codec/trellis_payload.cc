#include "common/codec/trellis_payload.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/codec/bit_stream.h"
#include "common/codec/scale_groups.h"
#include "common/codec/trellis_code.h"
#include "common/codec/trellis_rates.h"

namespace fedge {
namespace {

constexpr uint64_t kHeadBytes = 1;
constexpr int kRateBits = 4;
constexpr int kScaleBits = 8;
constexpr uint64_t kGroupBits = kRateBits + kScaleBits + 1;  // its path ends with a whole bit
// Groups are as fine as runs, or as what they take beside the path allows: so much of it.
constexpr double kMostForGroups = 1.0 / 16;
// A scale is a floating-point number with 5 bits of exponent and 3 of fraction, subnormal below
// 2^-21, without sign, infinities or NaN.
constexpr float kScaleUnit = 0x1p-24f;
constexpr int kLargestScale = 255;

float ScaleOf(uint32_t code) {
  const uint32_t exponent = code >> 3;
  const uint32_t fraction = code & 7;
  if (exponent == 0) return kScaleUnit * static_cast<float>(fraction);
  return std::ldexp(kScaleUnit * static_cast<float>(8 + fraction), static_cast<int>(exponent) - 1);
}

// The code of the nearest scale, the lower of two.
uint32_t NearestScale(double value) {
  uint32_t low = 0, high = kLargestScale;
  while (low < high) {  // the first whose middle to the next is not below
    const uint32_t code = (low + high) / 2;
    const double middle =
        (static_cast<double>(ScaleOf(code)) + static_cast<double>(ScaleOf(code + 1))) / 2;
    if (middle < value) {
      low = code + 1;
    } else {
      high = code;
    }
  }
  return low;
}

// What all groups' paths have, but for their last bits.
uint64_t PathSteps(uint64_t num_parameters, double bits_per_parameter) {
  const double steps = std::ceil(static_cast<double>(num_parameters) * bits_per_parameter - 1e-6);
  return std::max<uint64_t>(1, static_cast<uint64_t>(steps));
}

uint64_t MostForGroups(uint64_t steps) {
  return std::max(kGroupBits, static_cast<uint64_t>(kMostForGroups * static_cast<double>(steps)));
}

std::vector<uint32_t> Groups(const SliceLayout& layout, int group_log2) {
  const auto size = static_cast<uint64_t>(layout.size());
  return GroupEnds(CountByRun(layout, {}, size), group_log2);
}

int ChooseGroups(const SliceLayout& layout, uint64_t steps) {
  for (int group_log2 = kSmallestGroup; group_log2 < kOneGroup; ++group_log2) {
    if (kGroupBits * Groups(layout, group_log2).size() <= MostForGroups(steps)) return group_log2;
  }
  return kOneGroup;
}

// The values of each group.
std::vector<absl::Span<float>> Split(absl::Span<float> values, absl::Span<const uint32_t> ends) {
  std::vector<absl::Span<float>> parts;
  parts.reserve(ends.size());
  size_t begin = 0;
  for (const uint32_t end : ends) {
    parts.push_back(values.subspan(begin, end - begin));
    begin = end;
  }
  return parts;
}

int PeriodOf(uint32_t rate) { return kTrellisPeriods[rate]; }

std::vector<uint8_t> RatesOf(absl::Span<const absl::Span<float>> groups, uint64_t steps) {
  std::vector<TrellisGroup> shares;
  shares.reserve(groups.size());
  for (const absl::Span<float> group : groups) {
    TrellisGroup& share = shares.emplace_back();
    share.count = group.size();
    for (const float value : group) share.energy += static_cast<double>(value) * value;
  }
  return AllocateTrellisRates(shares, steps);
}

std::vector<uint8_t> PathThrough(const TrellisCode& code,
                                 absl::Span<const absl::Span<float>> groups,
                                 absl::Span<const uint8_t> rates) {
  std::vector<TrellisPart> parts;
  parts.reserve(groups.size());
  for (size_t g = 0; g < groups.size(); ++g) {
    if (rates[g] > 0) parts.push_back({groups[g], PeriodOf(rates[g])});
  }
  return FindTrellisPath(code, parts);
}

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("update: ", what));
}

// What stands before the path.
struct Head {
  std::vector<uint32_t> ends;   // of the groups
  std::vector<uint8_t> rates;   // [group]
  std::vector<uint8_t> scales;  // [group]; 0 where nothing is sent
  uint64_t steps = 0;
  uint64_t bits = 0;  // of the payload, all told
};

absl::Status ReadRates(const SliceLayout& layout, absl::string_view payload, BitReader& raw,
                       Head* head) {
  if (payload.size() < kHeadBytes) return Malformed("the payload's head is cut off");
  const int group_log2 = static_cast<uint8_t>(payload[0]);
  if (group_log2 > kOneGroup) {
    return Malformed(absl::StrCat("scale groups of 2^", group_log2, " values"));
  }
  head->ends = Groups(layout, group_log2);
  head->bits = 8 * kHeadBytes + kRateBits * head->ends.size();
  if (8 * payload.size() < head->bits) {
    return Malformed(absl::StrCat("the rates of ", head->ends.size(), " groups are cut off"));
  }
  uint32_t begin = 0;
  for (const uint32_t end : head->ends) {
    uint32_t rate = 0;
    raw.Read(kRateBits, &rate);
    if (rate >= kTrellisPeriods.size()) {
      return Malformed(
          absl::StrCat("rate ", rate, " of a group, the last is ", kTrellisPeriods.size() - 1));
    }
    head->rates.push_back(static_cast<uint8_t>(rate));
    head->steps += TrellisSteps(end - begin, PeriodOf(rate));
    if (rate > 0) head->bits += kScaleBits;
    begin = end;
  }
  head->bits += head->steps;
  if (payload.size() == (head->bits + 7) / 8) return absl::OkStatus();
  return Malformed(absl::StrCat("a payload of ", payload.size(), " bytes, ", head->ends.size(),
                                " groups and a path of ", head->steps, " bits need ",
                                (head->bits + 7) / 8));
}

// Of a payload that was read before.
Head KnownHead(absl::string_view payload, const SliceLayout& layout) {
  BitReader raw(payload.substr(kHeadBytes));
  Head head;
  const absl::Status read = ReadRates(layout, payload, raw, &head);
  FEDGE_CHECK(read.ok(), read.message());
  return head;
}

}  // namespace

void AppendTrellisPayload(const SliceLayout& layout, const EncodeOptions& options,
                          absl::Span<float> values, std::string* out) {
  const uint64_t steps = PathSteps(values.size(), options.density);
  const int group_log2 = ChooseGroups(layout, steps);
  const std::vector<absl::Span<float>> groups = Split(values, Groups(layout, group_log2));
  const std::vector<uint8_t> rates = RatesOf(groups, steps + groups.size());
  const TrellisCode code(options.seed);
  const std::vector<uint8_t> path = PathThrough(code, groups, rates);
  out->push_back(static_cast<char>(group_log2));
  BitWriter raw(out);
  for (const uint8_t rate : rates) raw.Write(rate, kRateBits);
  TrellisSigns signs(code);
  size_t step = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    if (rates[g] == 0) {
      absl::c_fill(groups[g], 0.0f);
      continue;
    }
    signs.Begin(PeriodOf(rates[g]));
    double product = 0;
    for (float& value : groups[g]) {
      if (signs.needs_bit()) signs.Feed(path[step++]);
      const bool plus = signs.Next();
      product += plus ? value : -static_cast<double>(value);
      value = plus ? 1.0f : -1.0f;
    }
    const uint32_t scale =
        NearestScale(options.relaxation * product / static_cast<double>(groups[g].size()));
    raw.Write(scale, kScaleBits);
    for (float& value : groups[g]) value *= ScaleOf(scale);
  }
  for (const uint8_t bit : path) raw.Write(bit, 1);
  raw.AlignToByte();
}

absl::Status ReadTrellisPayload(absl::string_view payload, const UpdateHeader& header,
                                const SliceLayout& layout, std::vector<float>* values) {
  BitReader raw(payload.substr(std::min<size_t>(kHeadBytes, payload.size())));
  Head head;
  RETURN_IF_ERROR(ReadRates(layout, payload, raw, &head));
  for (const uint8_t rate : head.rates) {
    uint32_t scale = 0;
    if (rate > 0) raw.Read(kScaleBits, &scale);
    head.scales.push_back(static_cast<uint8_t>(scale));
  }
  const TrellisCode code(header.seed);
  TrellisSigns signs(code);
  values->resize(header.num_parameters);
  float* value = values->data();
  uint32_t begin = 0;
  for (size_t g = 0; g < head.ends.size(); ++g) {
    const uint32_t end = head.ends[g];
    if (head.rates[g] == 0) {
      value += end - begin;  // they are 0
      begin = end;
      continue;
    }
    const uint32_t magnitude = std::bit_cast<uint32_t>(ScaleOf(head.scales[g]));
    signs.Begin(PeriodOf(head.rates[g]));
    while (begin < end) {
      if (signs.needs_bit()) {
        uint32_t bit = 0;
        raw.Read(1, &bit);
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
  return raw.AlignToByte() ? absl::OkStatus() : Malformed("bits after the path are not zero");
}

PayloadBits TrellisPayloadBits(absl::string_view payload, const SliceLayout& layout) {
  const Head head = KnownHead(payload, layout);
  const auto sent =
      static_cast<double>(head.rates.size()) - static_cast<double>(absl::c_count(head.rates, 0));
  return {.head = static_cast<double>(8 * kHeadBytes + kRateBits * head.rates.size()),
          .scales = kScaleBits * sent};
}

std::vector<uint64_t> TrellisBitsByRun(absl::string_view payload, const SliceLayout& layout) {
  const Head head = KnownHead(payload, layout);
  std::vector<uint64_t> bits;
  size_t g = 0;
  uint32_t end = 0;
  for (const SliceRun& run : layout.runs()) {
    end += static_cast<uint32_t>(run.size);
    while (head.ends[g] < end) ++g;  // a group ends where a run does
    bits.push_back(TrellisSteps(static_cast<uint64_t>(run.size), PeriodOf(head.rates[g])));
  }
  return bits;
}

uint64_t TrellisPayloadBound(uint64_t num_parameters, double bits_per_parameter) {
  const uint64_t steps = PathSteps(num_parameters, bits_per_parameter);
  return kHeadBytes + (steps + MostForGroups(steps) + 7) / 8;
}

double TrellisBitsWithin(uint64_t num_parameters, uint64_t payload_bytes) {
  const double bits = 8 * (static_cast<double>(payload_bytes) - kHeadBytes);
  const double steps = std::min(bits / (1 + kMostForGroups), bits - kGroupBits);
  return std::min(1.0, std::floor(steps) / static_cast<double>(num_parameters));
}

}  // namespace fedge
