#include "common/codec/update_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/adapter/lora_adapter.h"
#include "common/base/byte_io.h"
#include "common/base/status.h"
#include "common/codec/magnitude_selection.h"
#include "common/codec/sparse_payload.h"
#include "common/codec/update_header.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

constexpr float kLargestHalf = 65504;

// How many values top-k sends at most.
uint64_t SentCount(uint64_t num_parameters, double density) {
  const double rounded = std::round(density * static_cast<double>(num_parameters));
  return std::clamp<uint64_t>(static_cast<uint64_t>(rounded), 1, num_parameters);
}

absl::Status CheckValues(absl::Span<const float> delta) {
  float largest = 0;
  bool has_nan = false;
  for (const float value : delta) {
    largest = std::max(largest, std::abs(value));
    has_nan |= value != value;
  }
  if (largest <= kLargestHalf && !has_nan) return absl::OkStatus();
  for (size_t i = 0; i < delta.size(); ++i) {
    if (std::abs(delta[i]) <= kLargestHalf) continue;
    return absl::InvalidArgumentError(absl::StrCat("value ", i, " of the update is ", delta[i],
                                                   "; the format's limit is +-", kLargestHalf,
                                                   " (did the training diverge?)"));
  }
  return absl::InternalError("unreachable");
}

void AppendDensePayload(absl::Span<const float> delta, absl::Span<float> residual,
                        std::string* out) {
  const size_t start = out->size();
  out->resize(start + 2 * delta.size());
  char* const payload = out->data() + start;
  for (size_t i = 0; i < delta.size(); ++i) {
    const uint16_t half = FloatToHalf(delta[i]);
    std::memcpy(payload + 2 * i, &half, sizeof(half));
    if (!residual.empty()) residual[i] = delta[i] - HalfToFloat(half);
  }
}

absl::Status ReadDensePayload(absl::string_view payload, absl::Span<float> values) {
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t half = 0;
    std::memcpy(&half, payload.data() + 2 * i, sizeof(half));
    values[i] = HalfToFloat(half);
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    return absl::InvalidArgumentError(absl::StrCat("update: value ", i, " is ", values[i]));
  }
  return absl::OkStatus();
}

}  // namespace

std::string UpdateSupportName(UpdateSupport support) {
  switch (support) {
    case UpdateSupport::kDense:
      return "dense";
    case UpdateSupport::kTopK:
      return "top-k";
    case UpdateSupport::kSeeded:
      return "seeded";
  }
  return absl::StrCat("support ", static_cast<int>(support));
}

absl::Status CheckEncodeOptions(const EncodeOptions& options) {
  if (options.support > UpdateSupport::kSeeded) {
    return absl::InvalidArgumentError(
        absl::StrCat(UpdateSupportName(options.support), " of updates is unknown"));
  }
  if (options.support != UpdateSupport::kDense && !(options.density > 0 && options.density <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("density ", options.density, " is not above 0 and at most 1"));
  }
  if (!IsValueWidth(options.value_bits)) {
    return absl::InvalidArgumentError(
        absl::StrCat("value_bits ", options.value_bits, " is none of 1, 2, 3, 4, 8, 16"));
  }
  return absl::OkStatus();
}

bool IsDenseHalf(UpdateSupport support, int value_bits) {
  return support == UpdateSupport::kDense && value_bits == 16;
}

uint64_t EncodedSizeBound(uint64_t num_parameters, const EncodeOptions& options) {
  if (num_parameters == 0) return kUpdateHeaderBytes;
  if (!CheckEncodeOptions(options).ok() || options.value_bits == 16) {
    return kUpdateHeaderBytes + 2 * num_parameters;
  }
  const uint64_t count = options.support == UpdateSupport::kDense
                             ? num_parameters
                             : SentCount(num_parameters, options.density);
  return kUpdateHeaderBytes + SparsePayloadBound(num_parameters, count, options.value_bits);
}

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
  std::vector<float> sliced(static_cast<size_t>(layout.size()));
  layout.Gather(delta, absl::MakeSpan(sliced));
  RETURN_IF_ERROR(CheckValues(sliced));
  header.slice = layout.slice();
  header.num_parameters = sliced.size();
  header.support = options.support;
  header.value_bits = options.value_bits;
  header.seed = options.support == UpdateSupport::kSeeded ? options.seed : 0;
  std::vector<float> left(residual.empty() ? 0 : sliced.size());
  std::string bytes(kUpdateHeaderBytes, '\0');
  if (IsDenseHalf(options.support, options.value_bits)) {
    header.num_nonzero = sliced.size();
    AppendDensePayload(sliced, absl::MakeSpan(left), &bytes);
  } else {
    std::vector<uint32_t> sent;
    if (options.support == UpdateSupport::kTopK && options.value_bits < 16) {
      sent = SelectLargest(sliced, SentCount(sliced.size(), options.density));
    } else {
      return absl::UnimplementedError(
          absl::StrCat(UpdateSupportName(options.support), " with ", options.value_bits, " bits"));
    }
    header.num_nonzero = sent.size();
    left = residual.empty() ? left : sliced;
    AppendSparsePayload(sliced, sent, options.value_bits, absl::MakeSpan(left), &bytes);
  }
  if (!residual.empty()) layout.Scatter(left, residual);
  SealUpdate(header, &bytes);
  return bytes;
}

absl::StatusOr<UpdateHeader> ReadUpdateHeader(absl::string_view bytes) {
  ASSIGN_OR_RETURN(const WireHeader header, ParseUpdateHeader(bytes));
  return header.update;
}

namespace {

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

}  // namespace

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
  if (IsDenseHalf(header.update.support, header.update.value_bits)) {
    if (payload.size() != 2 * header.update.num_parameters) {
      return absl::InvalidArgumentError(absl::StrCat("update: ", header.update.num_parameters,
                                                     " halves in ", payload.size(), " bytes"));
    }
    decoded.values.resize(static_cast<size_t>(header.update.num_parameters));
    RETURN_IF_ERROR(ReadDensePayload(payload, absl::MakeSpan(decoded.values)));
    return decoded;
  }
  RETURN_IF_ERROR(ReadSparsePayload(payload, header.update.num_parameters,
                                    header.update.num_nonzero, header.update.value_bits,
                                    &decoded.coordinates, &decoded.values));
  if (header.update.num_nonzero == header.update.num_parameters) {
    decoded.coordinates.clear();
  } else {
    MapToFlat(expected_slice, &decoded.coordinates);
  }
  return decoded;
}

void AddUpdate(const DecodedUpdate& update, const SliceLayout& layout, float factor,
               absl::Span<float> flat) {
  FEDGE_CHECK(static_cast<int64_t>(flat.size()) == layout.adapter_size(), "adapter of ",
              layout.adapter_size(), " values");
  const float* value = update.values.data();
  if (!update.coordinates.empty() || update.values.empty()) {
    for (const uint32_t coordinate : update.coordinates) flat[coordinate] += factor * *value++;
    return;
  }
  for (const SliceRun& run : layout.runs()) {
    float* const to = flat.data() + run.offset;
    for (int64_t i = 0; i < run.size; ++i) to[i] += factor * *value++;
  }
}

}  // namespace fedge
