#include "common/codec/update_codec.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/adapter/lora_adapter.h"
#include "common/base/byte_io.h"
#include "common/base/status.h"
#include "common/codec/magnitude_selection.h"
#include "common/codec/position_coder.h"
#include "common/codec/rate_control.h"
#include "common/codec/trellis_payload.h"
#include "common/codec/update_header.h"
#include "common/codec/update_payload.h"

namespace fedge {
namespace {

// How many values are sent at most.
uint64_t SentCount(uint64_t num_parameters, const EncodeOptions& options) {
  if (options.support == UpdateSupport::kDense || options.support == UpdateSupport::kTrellis) {
    return num_parameters;
  }
  const double rounded = std::round(options.density * static_cast<double>(num_parameters));
  return std::clamp<uint64_t>(static_cast<uint64_t>(rounded), 1, num_parameters);
}

// With per_run each run's share is rounded for itself.
uint64_t SentBound(uint64_t num_parameters, const EncodeOptions& options) {
  const uint64_t count = SentCount(num_parameters, options);
  if (options.support != UpdateSupport::kTopK || !options.per_run) return count;
  return std::min(num_parameters, count + 2 * static_cast<uint64_t>(kMaxLoraModules));
}

// What is sent, before it is quantized. Positions stay empty when that is every coordinate.
absl::Status Select(absl::Span<const float> delta, const SliceLayout& layout,
                    const EncodeOptions& options, SelectedValues* sent) {
  const auto size = static_cast<uint64_t>(layout.size());
  const uint64_t count = SentCount(size, options);
  if (options.support == UpdateSupport::kTopK) {
    RETURN_IF_ERROR(options.per_run ? SelectLargestPerRun(delta, layout, options.density, sent)
                                    : SelectLargest(delta, layout, count, sent));
    if (sent->values.size() == size) sent->positions.clear();
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(CheckMagnitudes(delta, layout));
  if (count == size) {
    sent->values.resize(size);
    layout.Gather(delta, absl::MakeSpan(sent->values));
    return absl::OkStatus();
  }
  sent->positions = SeededPositions(options.seed, size, count);
  sent->values.reserve(count);
  auto run = layout.runs().begin();
  int64_t first = 0;
  for (const uint32_t position : sent->positions) {
    for (; position >= first + run->size; ++run) first += run->size;
    sent->values.push_back(delta[static_cast<size_t>(run->offset + position - first)]);
  }
  return absl::OkStatus();
}

// Positions in the slice become coordinates of the flat adapter.
void MapToFlat(const SliceLayout& layout, std::vector<uint32_t>* positions) {
  if (layout.whole()) return;
  size_t i = 0;
  int64_t first = 0;
  for (const SliceRun& run : layout.runs()) {
    const int64_t shift = run.offset - first;
    first += run.size;
    for (; i < positions->size() && (*positions)[i] < first; ++i) {
      (*positions)[i] = static_cast<uint32_t>((*positions)[i] + shift);
    }
  }
}

// visit(flat coordinate, value) for each value, ascending.
template <typename Visit>
void ForEachValue(const SliceLayout& layout, absl::Span<const uint32_t> coordinates,
                  absl::Span<const float> values, const Visit& visit) {
  const float* value = values.data();
  if (!coordinates.empty() || values.empty()) {
    for (const uint32_t coordinate : coordinates) visit(coordinate, *value++);
    return;
  }
  for (const SliceRun& run : layout.runs()) {
    const auto end = static_cast<size_t>(run.offset + run.size);
    for (auto i = static_cast<size_t>(run.offset); i < end; ++i) visit(i, *value++);
  }
}

absl::Status CheckExpected(const UpdateHeader& header, const Digest& layout,
                           const SliceLayout& slice) {
  if (header.layout_hash != layout) {
    return absl::FailedPreconditionError(absl::StrCat("update: made for the adapter layout ",
                                                      header.layout_hash.Hex(), ", the run's is ",
                                                      layout.Hex()));
  }
  if (header.slice != slice.slice()) {
    return absl::FailedPreconditionError(absl::StrCat("update: of ", DescribeSlice(header.slice),
                                                      ", the task's slice is ",
                                                      DescribeSlice(slice.slice())));
  }
  if (header.num_parameters != static_cast<uint64_t>(slice.size())) {
    return absl::FailedPreconditionError(absl::StrCat(
        "update: ", header.num_parameters, " parameters, the run's slice has ", slice.size()));
  }
  return absl::OkStatus();
}

}  // namespace

bool IsUpdateSupport(UpdateSupport support) {
  return support <= UpdateSupport::kSeeded || support == UpdateSupport::kTrellis;
}

std::string UpdateSupportName(UpdateSupport support) {
  switch (support) {
    case UpdateSupport::kDense:
      return "dense";
    case UpdateSupport::kTopK:
      return "top-k";
    case UpdateSupport::kSeeded:
      return "seeded";
    case UpdateSupport::kTrellis:
      return "trellis";
  }
  return absl::StrCat("support ", static_cast<int>(support));
}

absl::Status CheckEncodeOptions(const EncodeOptions& options) {
  if (!IsUpdateSupport(options.support)) {
    return absl::InvalidArgumentError(
        absl::StrCat(UpdateSupportName(options.support), " of updates is unknown"));
  }
  if (options.support != UpdateSupport::kDense && !(options.density > 0 && options.density <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("density ", options.density, " is not above 0 and at most 1"));
  }
  if (options.support == UpdateSupport::kTrellis) {
    if (options.density < kLeastTrellisBits) {
      return absl::InvalidArgumentError(
          absl::StrCat(options.density, " bits a value are below ", kLeastTrellisBits));
    }
    if (options.relaxation > 0 && options.relaxation < 2) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("relaxation ", options.relaxation, " is not above 0 and below 2"));
  }
  if (!IsValueWidth(options.value_bits)) {
    return absl::InvalidArgumentError(
        absl::StrCat("value_bits ", options.value_bits, " is none of 1, 2, 3, 4, 8, 16"));
  }
  return absl::OkStatus();
}

EncodeOptions PlanRate(uint64_t budget_bytes, uint64_t num_parameters, EncodeOptions options) {
  options.budget_bytes = budget_bytes;
  const double room =
      8.0 *
      static_cast<double>(budget_bytes - std::min<uint64_t>(budget_bytes, kUpdateHeaderBytes));
  const double bits = room / static_cast<double>(std::max<uint64_t>(num_parameters, 1));
  const bool positions = options.support == UpdateSupport::kTopK;
  double low = 0;
  double high = 1;
  for (int i = 0; i < 40; ++i) {
    const double middle = (low + high) / 2;
    const double cost =
        positions ? FloorBits(middle, options.value_bits) : middle * options.value_bits;
    (cost <= bits ? low : high) = middle;
  }
  const double least = 1 / static_cast<double>(std::max<uint64_t>(num_parameters, 1));
  options.density = std::max(low, least);
  return options;
}

uint64_t EncodedSizeBound(uint64_t num_parameters, const EncodeOptions& options) {
  if (!CheckEncodeOptions(options).ok()) {
    const EncodeOptions costliest = {.density = 1, .value_bits = 16};
    return kUpdateHeaderBytes + PayloadBound(num_parameters, num_parameters, costliest);
  }
  if (options.budget_bytes > 0 && options.support != UpdateSupport::kDense) {
    return options.budget_bytes;
  }
  if (options.support == UpdateSupport::kTrellis) {
    return kUpdateHeaderBytes + TrellisPayloadBound(num_parameters, options.density);
  }
  return kUpdateHeaderBytes +
         PayloadBound(num_parameters, SentBound(num_parameters, options), options);
}

namespace {

// The finest trellis that fits.
absl::StatusOr<EncodeOptions> FitTrellis(uint64_t num_parameters, EncodeOptions options) {
  const uint64_t budget = std::exchange(options.budget_bytes, 0);
  if (budget > kUpdateHeaderBytes) {
    options.density = TrellisBitsWithin(num_parameters, budget - kUpdateHeaderBytes);
    if (options.density >= kLeastTrellisBits) return options;
  }
  options.density = kLeastTrellisBits;
  return absl::ResourceExhaustedError(
      absl::StrCat("update: no trellis of ", num_parameters, " signs fits a budget of ", budget,
                   " bytes; raise it to ", EncodedSizeBound(num_parameters, options)));
}

absl::StatusOr<std::string> EncodeWithinBudget(absl::Span<const float> delta,
                                               const SliceLayout& layout,
                                               const UpdateHeader& header, EncodeOptions options,
                                               absl::Span<float> residual) {
  const auto size = static_cast<uint64_t>(layout.size());
  if (options.support == UpdateSupport::kTrellis) {
    ASSIGN_OR_RETURN(options, FitTrellis(size, options));
    return EncodeUpdate(delta, layout, header, options, residual);
  }
  const uint64_t budget = options.budget_bytes;
  options = PlanRate(budget, size, options);
  options.budget_bytes = 0;
  const auto encode = [&](double density) {
    options.density = density;
    return EncodeUpdate(delta, layout, header, options, {});
  };
  ASSIGN_OR_RETURN(options.density,
                   FitDensity(budget, kUpdateHeaderBytes, size, options.density, encode));
  return EncodeUpdate(delta, layout, header, options, residual);
}

}  // namespace

absl::StatusOr<std::string> EncodeUpdate(absl::Span<const float> delta, const SliceLayout& layout,
                                         UpdateHeader header, const EncodeOptions& options,
                                         absl::Span<float> residual) {
  RETURN_IF_ERROR(CheckEncodeOptions(options));
  if (static_cast<int64_t>(delta.size()) != layout.adapter_size() || layout.size() == 0) {
    return absl::InvalidArgumentError(absl::StrCat("the update has ", delta.size(),
                                                   " values, its adapter ", layout.adapter_size()));
  }
  if (!residual.empty() && residual.size() != delta.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("room for ", residual.size(), " residuals of ", delta.size(), " values"));
  }
  if (options.budget_bytes > 0 && options.support != UpdateSupport::kDense) {
    return EncodeWithinBudget(delta, layout, header, options, residual);
  }
  SelectedValues sent;
  RETURN_IF_ERROR(Select(delta, layout, options, &sent));
  header.slice = layout.slice();
  header.num_parameters = static_cast<uint64_t>(layout.size());
  header.support = options.support;
  const bool trellis = options.support == UpdateSupport::kTrellis;
  header.value_bits = trellis ? 1 : options.value_bits;
  header.seed = trellis || options.support == UpdateSupport::kSeeded ? options.seed : 0;
  header.num_nonzero = sent.values.size();
  std::string bytes(kUpdateHeaderBytes, '\0');
  if (trellis) {
    AppendTrellisPayload(layout, options, absl::MakeSpan(sent.values), &bytes);
  } else {
    AppendPayload(layout, sent.positions, options, absl::MakeSpan(sent.values), &bytes);
  }
  SealUpdate(header, &bytes);
  if (residual.empty()) return bytes;
  if (residual.data() != delta.data()) {
    for (const SliceRun& run : layout.runs()) {
      std::copy_n(delta.data() + run.offset, run.size, residual.data() + run.offset);
    }
  }
  MapToFlat(layout, &sent.positions);
  ForEachValue(layout, sent.positions, sent.values,
               [&](size_t i, float decoded) { residual[i] -= decoded; });
  return bytes;
}

absl::StatusOr<UpdateHeader> ReadUpdateHeader(absl::string_view bytes) {
  ASSIGN_OR_RETURN(const WireHeader header, ParseUpdateHeader(bytes));
  return header.update;
}

absl::StatusOr<DecodedUpdate> DecodeUpdate(absl::string_view bytes, const Digest& expected_layout,
                                           const SliceLayout& expected_slice) {
  ASSIGN_OR_RETURN(const WireHeader header, ParseUpdateHeader(bytes));
  RETURN_IF_ERROR(CheckExpected(header.update, expected_layout, expected_slice));
  const absl::string_view payload = bytes.substr(kUpdateHeaderBytes);
  if (payload.size() != header.payload_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "update: a payload of ", payload.size(), " bytes, the header says ", header.payload_bytes));
  }
  if (Crc32c(payload) != header.payload_crc) {
    return absl::DataLossError("update: the payload's checksum does not match");
  }
  DecodedUpdate decoded;
  decoded.header = header.update;
  if (header.update.support == UpdateSupport::kTrellis) {
    RETURN_IF_ERROR(ReadTrellisPayload(payload, header.update, expected_slice, &decoded.values));
    return decoded;
  }
  RETURN_IF_ERROR(
      ReadPayload(payload, header.update, expected_slice, &decoded.coordinates, &decoded.values));
  MapToFlat(expected_slice, &decoded.coordinates);
  return decoded;
}

void AddUpdate(const DecodedUpdate& update, const SliceLayout& layout, float factor,
               absl::Span<float> flat) {
  FEDGE_CHECK(static_cast<int64_t>(flat.size()) == layout.adapter_size(), "adapter of ",
              layout.adapter_size(), " values");
  ForEachValue(layout, update.coordinates, update.values,
               [&](size_t i, float value) { flat[i] += factor * value; });
}

}  // namespace fedge
