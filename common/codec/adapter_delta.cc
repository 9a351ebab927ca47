#include "common/codec/adapter_delta.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/byte_io.h"
#include "common/base/status.h"
#include "common/codec/adapter_delta_payload.h"
#include "common/codec/magnitude_selection.h"
#include "common/codec/trellis_payload.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

constexpr absl::string_view kMagic = "FDGA";
constexpr uint8_t kFormatVersion = 1;
constexpr size_t kHeaderCrcOffset = kAdapterHeaderBytes - sizeof(uint32_t);

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("adapter content: ", what));
}

absl::string_view AsBytes(absl::Span<const float> values) {
  return absl::string_view(reinterpret_cast<const char*>(values.data()),
                           values.size() * sizeof(float));
}

// Writes the header over the first bytes of `bytes`, whose rest is the payload.
void Seal(const AdapterHeader& header, std::string* bytes) {
  const absl::string_view payload = absl::string_view(*bytes).substr(kAdapterHeaderBytes);
  ByteWriter writer;
  writer.WriteBytes(kMagic);
  writer.Write<uint8_t>(kFormatVersion);
  writer.Write<uint8_t>(static_cast<uint8_t>(header.encoding));
  writer.Write<uint16_t>(0);  // reserved
  writer.Write<uint64_t>(header.from_version);
  writer.Write<uint64_t>(header.to_version);
  writer.WriteBytes(header.layout_hash.Raw());
  writer.WriteBytes(header.base_model.Raw());
  writer.Write<uint64_t>(header.num_parameters);
  writer.Write<uint64_t>(header.num_nonzero);
  writer.Write<uint64_t>(payload.size());
  writer.Write<uint32_t>(header.values_crc);
  writer.Write<uint32_t>(Crc32c(payload));
  writer.Write<uint32_t>(Crc32c(writer.bytes()));
  FEDGE_CHECK(writer.size() == kAdapterHeaderBytes);
  std::memcpy(bytes->data(), writer.bytes().data(), kAdapterHeaderBytes);
}

Digest ReadDigest(ByteReader& reader) {
  Digest digest;
  const absl::string_view raw = reader.ReadBytes(digest.bytes.size());
  if (raw.size() == digest.bytes.size()) std::memcpy(digest.bytes.data(), raw.data(), raw.size());
  return digest;
}

absl::Status CheckFields(const AdapterHeader& header, uint64_t payload_bytes) {
  if (header.num_parameters == 0 ||
      header.num_parameters > static_cast<uint64_t>(kMaxAdapterParameters)) {
    return Malformed(absl::StrCat("num_parameters ", header.num_parameters, " is outside 1 to ",
                                  kMaxAdapterParameters));
  }
  if (header.num_nonzero > header.num_parameters) {
    return Malformed(absl::StrCat("num_nonzero ", header.num_nonzero, " exceeds num_parameters ",
                                  header.num_parameters));
  }
  if (IsDelta(header.encoding)) {
    if (header.from_version <= header.to_version) return absl::OkStatus();
    return Malformed(
        absl::StrCat("a delta back from version ", header.from_version, " to ", header.to_version));
  }
  const uint64_t size = header.encoding == AdapterEncoding::kFp32 ? 4 : 2;
  if (header.from_version != header.to_version || header.num_nonzero != header.num_parameters ||
      payload_bytes != size * header.num_parameters) {
    return Malformed(absl::StrCat("values of ", header.num_parameters, " parameters at versions ",
                                  header.from_version, " and ", header.to_version, " in ",
                                  payload_bytes, " bytes, not ", size, " bytes each"));
  }
  return absl::OkStatus();
}

// ReadAdapterHeader, and whether the content is for the receiver's adapter.
absl::StatusOr<AdapterHeader> ReadExpected(const LoraSpec& spec, const Digest& base_model,
                                           absl::string_view bytes) {
  ASSIGN_OR_RETURN(AdapterHeader header, ReadAdapterHeader(bytes));
  if (header.layout_hash != spec.layout_hash() ||
      header.num_parameters != static_cast<uint64_t>(spec.num_parameters())) {
    return absl::FailedPreconditionError(
        absl::StrCat("adapter content: made for the adapter layout ", header.layout_hash.Hex(),
                     " with ", header.num_parameters, " parameters, the run's is ",
                     spec.layout_hash().Hex(), " with ", spec.num_parameters()));
  }
  if (header.base_model != base_model) {
    return absl::FailedPreconditionError(absl::StrCat("adapter content: made for the base model ",
                                                      header.base_model.Hex(), ", not ",
                                                      base_model.Hex()));
  }
  return header;
}

SliceLayout WholeLayout(const LoraSpec& spec) {
  absl::StatusOr<SliceLayout> layout = SliceLayout::Create(spec, AdapterSlice());
  FEDGE_CHECK(layout.ok(), layout.status().message());
  return *std::move(layout);
}

// Scales are halves and so multiples of a unit.
int64_t UnitsOf(float value) { return std::llround(value / kAdapterUnit); }

absl::Status AddTrellis(const LoraSpec& spec, const AdapterHeader& header,
                        absl::string_view payload, absl::Span<int32_t> units) {
  UpdateHeader of_payload;
  of_payload.num_parameters = header.num_parameters;
  of_payload.seed = header.to_version;
  std::vector<float> values;
  RETURN_IF_ERROR(ReadTrellisPayload(payload, of_payload, WholeLayout(spec), &values));
  uint64_t nonzero = 0;
  for (size_t i = 0; i < units.size(); ++i) {
    const int64_t change = UnitsOf(values[i]);
    const int64_t sum = units[i] + change;
    if (std::abs(change) > kMaxAdapterUnits || std::abs(sum) > kMaxAdapterUnits) {
      return Malformed(absl::StrCat("a change of ", change, " units or its sum ", sum,
                                    " is beyond ", kMaxAdapterUnits));
    }
    units[i] = static_cast<int32_t>(sum);
    if (change != 0) ++nonzero;
  }
  if (nonzero == header.num_nonzero) return absl::OkStatus();
  return Malformed(absl::StrCat(nonzero, " changes, the header says ", header.num_nonzero));
}

}  // namespace

uint32_t AdapterCrc(absl::Span<const float> values) { return Crc32c(AsBytes(values)); }

void ApplyUnits(absl::Span<const float> start, absl::Span<const int32_t> units,
                absl::Span<float> values) {
  FEDGE_CHECK(start.size() == units.size() && start.size() == values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    // The product is exact in double; contraction into one operation changes nothing.
    values[i] = static_cast<float>(static_cast<double>(start[i]) + units[i] * kAdapterUnit);
  }
}

// Dense values need 4 bytes each, dense sums of changes of any size that training makes fewer.
uint64_t AdapterContentBound(uint64_t num_parameters) {
  return kAdapterHeaderBytes + 1024 + 8 * num_parameters;
}

absl::StatusOr<std::string> EncodeAdapterValues(const LoraSpec& spec, AdapterHeader header,
                                                absl::Span<const float> values) {
  FEDGE_CHECK(values.size() == static_cast<size_t>(spec.num_parameters()));
  const bool half = header.encoding == AdapterEncoding::kFp16;
  FEDGE_CHECK(half || header.encoding == AdapterEncoding::kFp32);
  constexpr float kLargestHalf = 65504;
  std::vector<float> decoded(values.begin(), values.end());
  std::string bytes(kAdapterHeaderBytes, '\0');
  bytes.reserve(bytes.size() + values.size() * (half ? 2 : 4));
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i]) || (half && std::abs(values[i]) > kLargestHalf)) {
      return absl::InvalidArgumentError(
          absl::StrCat("adapter content: value ", i, " is ", values[i], "; the run has diverged"));
    }
    if (!half) continue;
    const uint16_t bits = FloatToHalf(values[i]);
    decoded[i] = HalfToFloat(bits);
    bytes.push_back(static_cast<char>(bits & 0xFF));
    bytes.push_back(static_cast<char>(bits >> 8));
  }
  if (!half) bytes.append(AsBytes(values).data(), AsBytes(values).size());
  header.from_version = header.to_version;
  header.layout_hash = spec.layout_hash();
  header.num_parameters = header.num_nonzero = values.size();
  header.values_crc = AdapterCrc(decoded);
  Seal(header, &bytes);
  return bytes;
}

std::string EncodeAdapterDelta(const LoraSpec& spec, AdapterHeader header,
                               absl::Span<const int32_t> units) {
  header.encoding = AdapterEncoding::kDelta;
  header.layout_hash = spec.layout_hash();
  header.num_parameters = units.size();
  header.num_nonzero = 0;
  for (const int32_t value : units) {
    FEDGE_CHECK(value >= -kMaxAdapterUnits && value <= kMaxAdapterUnits);
    if (value != 0) ++header.num_nonzero;
  }
  std::string bytes(kAdapterHeaderBytes, '\0');
  AppendDeltaPayload(spec, units, &bytes);
  Seal(header, &bytes);
  return bytes;
}

absl::StatusOr<TrellisChange> QuantizeToTrellis(const LoraSpec& spec, uint64_t to_version,
                                                double bits_per_parameter, double relaxation,
                                                absl::Span<const float> change) {
  const SliceLayout layout = WholeLayout(spec);
  FEDGE_CHECK(static_cast<int64_t>(change.size()) == layout.size());
  RETURN_IF_ERROR(CheckMagnitudes(change, layout));
  EncodeOptions options;
  options.support = UpdateSupport::kTrellis;
  options.density = bits_per_parameter;
  options.relaxation = relaxation;
  options.seed = to_version;
  std::vector<float> values(change.begin(), change.end());
  TrellisChange result;
  AppendTrellisPayload(layout, options, absl::MakeSpan(values), &result.payload);
  result.units.reserve(values.size());
  for (const float value : values) {
    const int64_t units = UnitsOf(value);
    if (std::abs(units) > kMaxAdapterUnits) {
      return absl::OutOfRangeError(
          absl::StrCat("a change of ", value, " is beyond what an adapter delta holds"));
    }
    result.units.push_back(static_cast<int32_t>(units));
  }
  return result;
}

std::string EncodeAdapterTrellis(const LoraSpec& spec, AdapterHeader header,
                                 const TrellisChange& change) {
  header.encoding = AdapterEncoding::kTrellis;
  header.layout_hash = spec.layout_hash();
  header.num_parameters = change.units.size();
  header.num_nonzero = static_cast<uint64_t>(
      std::count_if(change.units.begin(), change.units.end(), [](int32_t u) { return u != 0; }));
  std::string bytes(kAdapterHeaderBytes, '\0');
  bytes += change.payload;
  Seal(header, &bytes);
  return bytes;
}

absl::StatusOr<AdapterHeader> ReadAdapterHeader(absl::string_view bytes) {
  if (bytes.size() < kAdapterHeaderBytes) {
    return Malformed(
        absl::StrCat(bytes.size(), " bytes are fewer than the header's ", kAdapterHeaderBytes));
  }
  const absl::string_view raw = bytes.substr(0, kAdapterHeaderBytes);
  ByteReader reader(raw);
  if (reader.ReadBytes(kMagic.size()) != kMagic) {
    return Malformed("the first four bytes are not \"FDGA\"");
  }
  const uint8_t version = reader.Read<uint8_t>();
  if (version != kFormatVersion) {
    return absl::UnimplementedError(absl::StrCat("adapter content: format version ", version,
                                                 " is not the supported ", kFormatVersion,
                                                 "; run the same release on both sides"));
  }
  uint32_t stored_crc = 0;
  std::memcpy(&stored_crc, raw.data() + kHeaderCrcOffset, sizeof(stored_crc));
  if (stored_crc != Crc32c(raw.substr(0, kHeaderCrcOffset))) {
    return absl::DataLossError("adapter content: the header's checksum does not match");
  }
  AdapterHeader header;
  const uint8_t encoding = reader.Read<uint8_t>();
  const uint16_t reserved = reader.Read<uint16_t>();
  header.from_version = reader.Read<uint64_t>();
  header.to_version = reader.Read<uint64_t>();
  header.layout_hash = ReadDigest(reader);
  header.base_model = ReadDigest(reader);
  header.num_parameters = reader.Read<uint64_t>();
  header.num_nonzero = reader.Read<uint64_t>();
  const uint64_t payload_bytes = reader.Read<uint64_t>();
  header.values_crc = reader.Read<uint32_t>();
  const uint32_t payload_crc = reader.Read<uint32_t>();
  if (encoding < 1 || encoding == 4 || encoding > 5) {
    return absl::UnimplementedError(
        absl::StrCat("adapter content: encoding ", encoding,
                     " is none of 1 (fp32), 2 (fp16), 3 (delta), 5 (trellis)"));
  }
  header.encoding = static_cast<AdapterEncoding>(encoding);
  if (reserved != 0) return Malformed(absl::StrCat("reserved bytes are ", reserved, ", not 0"));
  RETURN_IF_ERROR(CheckFields(header, payload_bytes));
  const absl::string_view payload = bytes.substr(kAdapterHeaderBytes);
  if (payload.size() != payload_bytes) {
    return Malformed(
        absl::StrCat("a payload of ", payload.size(), " bytes, the header says ", payload_bytes));
  }
  if (Crc32c(payload) != payload_crc) {
    return absl::DataLossError("adapter content: the payload's checksum does not match");
  }
  return header;
}

absl::StatusOr<AdapterHeader> DecodeAdapterValues(const LoraSpec& spec, const Digest& base_model,
                                                  absl::string_view bytes,
                                                  absl::Span<float> values) {
  FEDGE_CHECK(values.size() == static_cast<size_t>(spec.num_parameters()));
  ASSIGN_OR_RETURN(AdapterHeader header, ReadExpected(spec, base_model, bytes));
  if (IsDelta(header.encoding)) {
    return Malformed("a delta where values are needed");
  }
  ByteReader reader(bytes.substr(kAdapterHeaderBytes));
  const bool half = header.encoding == AdapterEncoding::kFp16;
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = half ? HalfToFloat(reader.Read<uint16_t>()) : reader.Read<float>();
    if (!std::isfinite(values[i])) return Malformed(absl::StrCat("value ", i, " is not finite"));
  }
  if (AdapterCrc(values) != header.values_crc) {
    return absl::DataLossError("adapter content: the values' checksum does not match");
  }
  return header;
}

absl::StatusOr<AdapterHeader> AddAdapterDelta(const LoraSpec& spec, const Digest& base_model,
                                              absl::string_view bytes, absl::Span<int32_t> units) {
  FEDGE_CHECK(units.size() == static_cast<size_t>(spec.num_parameters()));
  ASSIGN_OR_RETURN(AdapterHeader header, ReadExpected(spec, base_model, bytes));
  if (!IsDelta(header.encoding)) return Malformed("values where a delta is needed");
  if (header.encoding == AdapterEncoding::kTrellis) {
    RETURN_IF_ERROR(AddTrellis(spec, header, bytes.substr(kAdapterHeaderBytes), units));
    return header;
  }
  RETURN_IF_ERROR(
      AddDeltaPayload(spec, bytes.substr(kAdapterHeaderBytes), header.num_nonzero, units));
  return header;
}

}  // namespace fedge
