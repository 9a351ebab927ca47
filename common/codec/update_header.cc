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
absl::Status CheckFields(const WireHeader& header, uint8_t reserved) {
  const UpdateHeader& update = header.update;
  if (reserved != 0) return Malformed(absl::StrCat("reserved byte is ", reserved, ", not 0"));
  if (update.num_parameters == 0 ||
      update.num_parameters > static_cast<uint64_t>(kMaxAdapterParameters)) {
    return Malformed(absl::StrCat("num_parameters ", update.num_parameters, " is outside 1 to ",
                                  kMaxAdapterParameters));
  }
  if (update.num_nonzero > update.num_parameters) {
    return Malformed(absl::StrCat("num_nonzero ", update.num_nonzero, " exceeds num_parameters ",
                                  update.num_parameters));
  }
  const int bits = update.value_bits;
  if (update.encoding == UpdateEncoding::kDenseFp16) {
    if (bits != 16 || update.num_nonzero != update.num_parameters ||
        header.payload_bytes != 2 * update.num_parameters) {
      return Malformed(absl::StrCat("dense fp16 needs 16 bits for each of ", update.num_parameters,
                                    " values, not ", bits, " for ", update.num_nonzero, " in ",
                                    header.payload_bytes, " bytes"));
    }
    return absl::OkStatus();
  }
  if (bits != 2 && bits != 4 && bits != 8) {
    return Malformed(absl::StrCat("value_bits ", bits, " is none of 2, 4, 8"));
  }
  return absl::OkStatus();
}

}  // namespace

void SealUpdate(const UpdateHeader& header, std::string* bytes) {
  FEDGE_CHECK(bytes->size() >= kUpdateHeaderBytes);
  const absl::string_view payload = absl::string_view(*bytes).substr(kUpdateHeaderBytes);
  ByteWriter writer;
  writer.WriteBytes(kMagic);
  writer.Write<uint8_t>(kUpdateFormatVersion);
  writer.Write<uint8_t>(static_cast<uint8_t>(header.encoding));
  writer.Write<uint8_t>(static_cast<uint8_t>(header.value_bits));
  writer.Write<uint8_t>(0);  // reserved
  writer.Write<uint64_t>(header.round);
  writer.Write<uint64_t>(header.base_version);
  writer.Write<uint64_t>(header.num_examples);
  writer.WriteBytes(header.layout_hash.Raw());
  writer.WriteBytes(header.base_model.Raw());
  writer.Write<uint64_t>(header.num_parameters);
  writer.Write<uint64_t>(header.num_nonzero);
  writer.Write<uint64_t>(payload.size());
  writer.Write<uint32_t>(Crc32c(payload));
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
  const uint8_t encoding = reader.Read<uint8_t>();
  update.value_bits = reader.Read<uint8_t>();
  const uint8_t reserved = reader.Read<uint8_t>();
  update.round = reader.Read<uint64_t>();
  update.base_version = reader.Read<uint64_t>();
  update.num_examples = reader.Read<uint64_t>();
  update.layout_hash = ReadDigest(reader);
  update.base_model = ReadDigest(reader);
  update.num_parameters = reader.Read<uint64_t>();
  update.num_nonzero = reader.Read<uint64_t>();
  header.payload_bytes = reader.Read<uint64_t>();
  header.payload_crc = reader.Read<uint32_t>();
  FEDGE_CHECK(reader.ok());
  update.encoding = static_cast<UpdateEncoding>(encoding);
  if (update.encoding != UpdateEncoding::kDenseFp16 && update.encoding != UpdateEncoding::kTopK) {
    return absl::UnimplementedError(
        absl::StrCat("update: encoding ", encoding, " is neither 1 (dense fp16) nor 2 (top-k)"));
  }
  RETURN_IF_ERROR(CheckFields(header, reserved));
  return header;
}

}  // namespace fedge
