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

absl::Status CheckEncodeOptions(const EncodeOptions& options) {
  if (options.encoding == UpdateEncoding::kDenseFp16) return absl::OkStatus();
  if (options.encoding != UpdateEncoding::kTopK) {
    return absl::InvalidArgumentError(
        absl::StrCat("update encoding ", static_cast<int>(options.encoding), " is unknown"));
  }
  if (!(options.density > 0 && options.density <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("density ", options.density, " is not above 0 and at most 1"));
  }
  if (options.value_bits != 2 && options.value_bits != 4 && options.value_bits != 8) {
    return absl::InvalidArgumentError(
        absl::StrCat("value_bits ", options.value_bits, " is none of 2, 4, 8"));
  }
  return absl::OkStatus();
}

uint64_t EncodedSizeBound(uint64_t num_parameters, const EncodeOptions& options) {
  if (num_parameters == 0) return kUpdateHeaderBytes;
  if (!CheckEncodeOptions(options).ok()) {
    return kUpdateHeaderBytes + SparsePayloadBound(num_parameters, num_parameters, 8);
  }
  if (options.encoding == UpdateEncoding::kDenseFp16) {
    return kUpdateHeaderBytes + 2 * num_parameters;
  }
  const uint64_t count = SentCount(num_parameters, options.density);
  return kUpdateHeaderBytes + SparsePayloadBound(num_parameters, count, options.value_bits);
}

absl::StatusOr<std::string> EncodeUpdate(absl::Span<const float> delta, UpdateHeader header,
                                         const EncodeOptions& options, absl::Span<float> residual) {
  RETURN_IF_ERROR(CheckEncodeOptions(options));
  if (delta.empty() || delta.size() > static_cast<size_t>(kMaxAdapterParameters) ||
      delta.size() != header.num_parameters) {
    return absl::InvalidArgumentError(
        absl::StrCat("the update has ", delta.size(), " values, its header says ",
                     header.num_parameters, "; allowed are 1 to ", kMaxAdapterParameters));
  }
  if (!residual.empty() && residual.size() != delta.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("room for ", residual.size(), " residuals of ", delta.size(), " values"));
  }
  RETURN_IF_ERROR(CheckValues(delta));
  header.encoding = options.encoding;
  std::string bytes(kUpdateHeaderBytes, '\0');
  if (options.encoding == UpdateEncoding::kDenseFp16) {
    header.value_bits = 16;
    header.num_nonzero = delta.size();
    AppendDensePayload(delta, residual, &bytes);
  } else {
    const std::vector<uint32_t> sent =
        SelectLargest(delta, SentCount(delta.size(), options.density));
    header.value_bits = options.value_bits;
    header.num_nonzero = sent.size();
    if (!residual.empty() && residual.data() != delta.data()) {
      std::copy(delta.begin(), delta.end(), residual.begin());
    }
    AppendSparsePayload(delta, sent, options.value_bits, residual, &bytes);
  }
  SealUpdate(header, &bytes);
  return bytes;
}

absl::StatusOr<UpdateHeader> ReadUpdateHeader(absl::string_view bytes) {
  ASSIGN_OR_RETURN(const WireHeader header, ParseUpdateHeader(bytes));
  return header.update;
}

absl::StatusOr<DecodedUpdate> DecodeUpdate(absl::string_view bytes, const Digest& expected_layout,
                                           uint64_t expected_parameters) {
  ASSIGN_OR_RETURN(const WireHeader header, ParseUpdateHeader(bytes));
  if (header.update.layout_hash != expected_layout) {
    return absl::FailedPreconditionError(absl::StrCat("update: made for the adapter layout ",
                                                      header.update.layout_hash.Hex(),
                                                      ", the run's is ", expected_layout.Hex()));
  }
  if (header.update.num_parameters != expected_parameters) {
    return absl::FailedPreconditionError(absl::StrCat("update: ", header.update.num_parameters,
                                                      " parameters, the run's adapter has ",
                                                      expected_parameters));
  }
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
  decoded.values.resize(static_cast<size_t>(expected_parameters));
  const absl::Span<float> values = absl::MakeSpan(decoded.values);
  if (header.update.encoding == UpdateEncoding::kDenseFp16) {
    RETURN_IF_ERROR(ReadDensePayload(payload, values));
  } else {
    RETURN_IF_ERROR(
        ReadSparsePayload(payload, header.update.num_nonzero, header.update.value_bits, values));
  }
  return decoded;
}

}  // namespace fedge
