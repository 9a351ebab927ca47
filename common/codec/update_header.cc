#include "common/codec/update_header.h"

#include <cstring>

#include "common/adapter/lora_adapter.h"
#include "common/base/byte_io.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr absl::string_view kMagic = "FDGU";
constexpr size_t kHeaderCrcOffset = kUpdateHeaderBytes - sizeof(uint32_t);

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("update: ", what));
}

Digest ReadDigest(ByteReader& reader) {
  Digest digest;
  const absl::string_view raw = reader.ReadBytes(digest.bytes.size());
  if (raw.size() == digest.bytes.size()) std::memcpy(digest.bytes.data(), raw.data(), raw.size());
  return digest;
}

// The fields against each other; those that only a body can contradict are checked there.
absl::Status CheckFields(const UpdateHeader& update) {
  const AdapterSlice& slice = update.slice;
  if (slice.factors > SliceFactors::kB) {
    return Malformed(
        absl::StrCat("factors ", static_cast<int>(slice.factors), " is not 0, 1 or 2"));
  }
  if (slice.first_component >= slice.end_component || slice.end_component > kMaxLoraRank) {
    return Malformed(absl::StrCat("components [", slice.first_component, ", ", slice.end_component,
                                  ") are not within 0 to ", kMaxLoraRank));
  }
  if (update.num_parameters == 0 ||
      update.num_parameters > static_cast<uint64_t>(kMaxAdapterParameters)) {
    return Malformed(absl::StrCat("num_parameters ", update.num_parameters, " is outside 1 to ",
                                  kMaxAdapterParameters));
  }
  if (update.num_nonzero > update.num_parameters) {
    return Malformed(absl::StrCat("num_nonzero ", update.num_nonzero, " exceeds num_parameters ",
                                  update.num_parameters));
  }
  const bool trellis = update.support == UpdateSupport::kTrellis;
  if ((trellis || update.support == UpdateSupport::kDense) &&
      update.num_nonzero != update.num_parameters) {
    return Malformed(absl::StrCat("num_nonzero ", update.num_nonzero, " of ", update.num_parameters,
                                  " in a ", UpdateSupportName(update.support), " update"));
  }
  if (!trellis && update.support != UpdateSupport::kSeeded && update.seed != 0) {
    return Malformed(absl::StrCat("seed ", update.seed, " where the support has none"));
  }
  if (trellis && update.value_bits != 1) {
    return Malformed(absl::StrCat("value_bits ", update.value_bits, " of a trellis, whose is 1"));
  }
  if (!IsValueWidth(update.value_bits)) {
    return Malformed(
        absl::StrCat("value_bits ", update.value_bits, " is none of 1, 2, 3, 4, 8, 16"));
  }
  return absl::OkStatus();
}

}  // namespace

bool IsValueWidth(int bits) { return (bits >= 1 && bits <= 4) || bits == 8 || bits == 16; }

void SealUpdate(const UpdateHeader& header, std::string* bytes) {
  FEDGE_CHECK(bytes->size() >= kUpdateHeaderBytes);
  const absl::string_view payload = absl::string_view(*bytes).substr(kUpdateHeaderBytes);
  ByteWriter writer;
  writer.WriteBytes(kMagic);
  writer.Write<uint8_t>(kUpdateFormatVersion);
  writer.Write<uint8_t>(static_cast<uint8_t>(header.support));
  writer.Write<uint8_t>(static_cast<uint8_t>(header.value_bits));
  writer.Write<uint8_t>(static_cast<uint8_t>(header.slice.factors));
  writer.Write<uint16_t>(static_cast<uint16_t>(header.slice.first_component));
  writer.Write<uint16_t>(static_cast<uint16_t>(header.slice.end_component));
  writer.Write<uint32_t>(static_cast<uint32_t>(header.num_parameters));
  writer.Write<uint64_t>(header.round);
  writer.Write<uint64_t>(header.base_version);
  writer.Write<uint64_t>(header.num_examples);
  writer.Write<uint64_t>(header.seed);
  writer.WriteBytes(header.layout_hash.Raw());
  writer.WriteBytes(header.base_model.Raw());
  writer.Write<uint32_t>(static_cast<uint32_t>(header.num_nonzero));
  writer.Write<uint32_t>(Crc32c(payload));
  writer.Write<uint64_t>(payload.size());
  writer.Write<uint32_t>(Crc32c(writer.bytes()));
  FEDGE_CHECK(writer.size() == kUpdateHeaderBytes);
  std::memcpy(bytes->data(), writer.bytes().data(), kUpdateHeaderBytes);
}

absl::StatusOr<WireHeader> ParseUpdateHeader(absl::string_view bytes) {
  if (bytes.size() < kUpdateHeaderBytes) {
    return Malformed(
        absl::StrCat(bytes.size(), " bytes are fewer than the header's ", kUpdateHeaderBytes));
  }
  const absl::string_view raw = bytes.substr(0, kUpdateHeaderBytes);
  ByteReader reader(raw);
  if (reader.ReadBytes(kMagic.size()) != kMagic) {
    return Malformed("the first four bytes are not \"FDGU\"");
  }
  const uint8_t version = reader.Read<uint8_t>();
  if (version != kUpdateFormatVersion) {
    return absl::UnimplementedError(absl::StrCat("update: format version ", version,
                                                 " is not the supported ", kUpdateFormatVersion,
                                                 "; run the same release on both sides"));
  }
  uint32_t stored_crc = 0;
  std::memcpy(&stored_crc, raw.data() + kHeaderCrcOffset, sizeof(stored_crc));
  if (stored_crc != Crc32c(raw.substr(0, kHeaderCrcOffset))) {
    return absl::DataLossError("update: the header's checksum does not match");
  }
  WireHeader header;
  UpdateHeader& update = header.update;
  const uint8_t support = reader.Read<uint8_t>();
  update.value_bits = reader.Read<uint8_t>();
  update.slice.factors = static_cast<SliceFactors>(reader.Read<uint8_t>());
  update.slice.first_component = reader.Read<uint16_t>();
  update.slice.end_component = reader.Read<uint16_t>();
  update.num_parameters = reader.Read<uint32_t>();
  update.round = reader.Read<uint64_t>();
  update.base_version = reader.Read<uint64_t>();
  update.num_examples = reader.Read<uint64_t>();
  update.seed = reader.Read<uint64_t>();
  update.layout_hash = ReadDigest(reader);
  update.base_model = ReadDigest(reader);
  update.num_nonzero = reader.Read<uint32_t>();
  header.payload_crc = reader.Read<uint32_t>();
  header.payload_bytes = reader.Read<uint64_t>();
  FEDGE_CHECK(reader.ok());
  update.support = static_cast<UpdateSupport>(support);
  if (!IsUpdateSupport(update.support)) {
    return absl::UnimplementedError(absl::StrCat(
        "update: support ", support, " is none of 0 (dense), 1 (top-k), 2 (seeded), 4 (trellis)"));
  }
  RETURN_IF_ERROR(CheckFields(update));
  return header;
}

}  // namespace fedge
