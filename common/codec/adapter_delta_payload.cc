#include "common/codec/adapter_delta_payload.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/codec/adapter_delta.h"
#include "common/codec/range_coder.h"

namespace fedge {
namespace {

constexpr int kExponentBits = 5;
constexpr int kMaxClass = 31;  // bits of the largest magnitude
constexpr int kNeighbourhoods = 8;

int BitWidth(uint64_t value) { return 64 - std::countl_zero(value); }

// How much is going on around a coordinate: the size of the two before it.
size_t Neighbourhood(uint32_t last, uint32_t before_last) {
  return static_cast<size_t>(std::min(BitWidth(uint64_t{last} + before_last), kNeighbourhoods - 1));
}

// The probabilities of the decisions of one factor, A or B.
struct FactorModel {
  AdaptiveBit any;            // the run has a value that is not zero
  AdaptiveBit same_exponent;  // as the factor's last run that had one
  int exponent = 0;
  AdaptiveBit nonzero[kNeighbourhoods];
  AdaptiveBit longer[kNeighbourhoods][kMaxClass];  // the magnitude has more bits than this
  AdaptiveBit high[kMaxClass];                     // its second highest bit
  AdaptiveBit next[kMaxClass][2];                  // its third highest bit

  void StartRun() {
    for (AdaptiveBit& bit : nonzero) bit.Loosen();
    for (auto& bits : longer) {
      for (AdaptiveBit& bit : bits) bit.Loosen();
    }
  }
};

// Calls `run(factor, offset, size)` for each run; stops at the first error.
template <typename Run>
absl::Status ForEachRun(const LoraSpec& spec, const Run& run) {
  for (const LoraModule& module : spec.modules()) {
    const auto offset = static_cast<size_t>(module.offset);
    const auto a = static_cast<size_t>(module.a_size());
    RETURN_IF_ERROR(run(0, offset, a));
    RETURN_IF_ERROR(run(1, offset + a, static_cast<size_t>(module.b_size())));
  }
  return absl::OkStatus();
}

void EncodeMagnitude(uint32_t magnitude, size_t around, FactorModel& model, RangeEncoder& coder) {
  const int bits = BitWidth(magnitude);
  for (int k = 1; k < kMaxClass; ++k) {
    coder.Encode(bits > k, model.longer[around][k]);
    if (bits == k) break;
  }
  if (bits < 2) return;
  const bool high = ((magnitude >> (bits - 2)) & 1) != 0;
  coder.Encode(high, model.high[bits - 1]);
  if (bits < 3) return;
  coder.Encode(((magnitude >> (bits - 3)) & 1) != 0, model.next[bits - 1][high ? 1 : 0]);
  const int rest = bits - 3;
  coder.EncodeRaw(magnitude & ((uint32_t{1} << rest) - 1), rest);
}

uint32_t DecodeMagnitude(size_t around, FactorModel& model, RangeDecoder& coder) {
  int bits = 1;
  while (bits < kMaxClass && coder.Decode(model.longer[around][bits])) ++bits;
  if (bits < 2) return 1;
  const uint32_t high = coder.Decode(model.high[bits - 1]) ? 1 : 0;
  if (bits < 3) return 2 | high;
  const uint32_t top = 4 | (high << 1) | (coder.Decode(model.next[bits - 1][high]) ? 1u : 0u);
  const int rest = bits - 3;
  return (top << rest) | coder.DecodeRaw(rest);
}

void EncodeRun(absl::Span<const int32_t> units, FactorModel& model, RangeEncoder& coder) {
  uint32_t all = 0;
  for (const int32_t value : units) all |= static_cast<uint32_t>(std::abs(value));
  coder.Encode(all != 0, model.any);
  if (all == 0) return;
  const int exponent = std::countr_zero(all);
  coder.Encode(exponent == model.exponent, model.same_exponent);
  if (exponent != model.exponent) {
    coder.EncodeRaw(static_cast<uint32_t>(exponent), kExponentBits);
    model.exponent = exponent;
  }
  model.StartRun();
  uint32_t last = 0;
  uint32_t before_last = 0;
  for (const int32_t value : units) {
    const uint32_t magnitude = static_cast<uint32_t>(std::abs(value)) >> exponent;
    const size_t around = Neighbourhood(last, before_last);
    coder.Encode(magnitude != 0, model.nonzero[around]);
    if (magnitude != 0) {
      EncodeMagnitude(magnitude, around, model, coder);
      coder.EncodeRaw(value < 0 ? 1 : 0, 1);
    }
    before_last = last;
    last = magnitude;
  }
}

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("adapter delta: ", what));
}

// Returns how many values were not zero.
absl::StatusOr<uint64_t> DecodeRun(absl::Span<int32_t> units, FactorModel& model,
                                   RangeDecoder& coder) {
  if (!coder.Decode(model.any)) return uint64_t{0};
  if (!coder.Decode(model.same_exponent)) {
    model.exponent = static_cast<int>(coder.DecodeRaw(kExponentBits));
  }
  model.StartRun();
  uint64_t count = 0;
  uint32_t last = 0;
  uint32_t before_last = 0;
  for (int32_t& unit : units) {
    const size_t around = Neighbourhood(last, before_last);
    before_last = last;
    last = 0;
    if (!coder.Decode(model.nonzero[around])) continue;
    last = DecodeMagnitude(around, model, coder);
    ++count;
    const int64_t magnitude = static_cast<int64_t>(last) << model.exponent;
    const int64_t sum = unit + (coder.DecodeRaw(1) != 0 ? -magnitude : magnitude);
    if (magnitude > kMaxAdapterUnits || std::abs(sum) > kMaxAdapterUnits) {
      return Malformed(absl::StrCat("a change of ", magnitude, " units or its sum ", sum,
                                    " is beyond ", kMaxAdapterUnits));
    }
    unit = static_cast<int32_t>(sum);
  }
  return count;
}

}  // namespace

void AppendDeltaPayload(const LoraSpec& spec, absl::Span<const int32_t> units, std::string* out) {
  FEDGE_CHECK(units.size() == static_cast<size_t>(spec.num_parameters()));
  RangeEncoder coder;
  FactorModel models[2];
  const absl::Status status = ForEachRun(spec, [&](int factor, size_t offset, size_t size) {
    EncodeRun(units.subspan(offset, size), models[factor], coder);
    return absl::OkStatus();
  });
  FEDGE_CHECK(status.ok());
  out->append(std::move(coder).Finish());
}

absl::Status AddDeltaPayload(const LoraSpec& spec, absl::string_view payload, uint64_t num_nonzero,
                             absl::Span<int32_t> units) {
  FEDGE_CHECK(units.size() == static_cast<size_t>(spec.num_parameters()));
  RangeDecoder coder(payload);
  FactorModel models[2];
  uint64_t found = 0;
  RETURN_IF_ERROR(ForEachRun(spec, [&](int factor, size_t offset, size_t size) -> absl::Status {
    ASSIGN_OR_RETURN(const uint64_t count,
                     DecodeRun(units.subspan(offset, size), models[factor], coder));
    found += count;
    return absl::OkStatus();
  }));
  if (!coder.AtEnd()) return Malformed("bytes that code nothing at its end");
  if (found != num_nonzero) {
    return Malformed(absl::StrCat(found, " changes, the header says ", num_nonzero));
  }
  return absl::OkStatus();
}

}  // namespace fedge
