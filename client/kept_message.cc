#include "client/kept_message.h"

#include <google/protobuf/message_lite.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/byte_io.h"
#include "common/base/digest.h"

namespace fedge {
namespace {

constexpr uint32_t kMagic = 0x314b4446;  // "FDK1"
constexpr size_t kMaxBytes = size_t{1} << 31;

}  // namespace

std::string SealMessage(const google::protobuf::MessageLite& message) {
  ByteWriter writer;
  writer.Write(kMagic);
  message.AppendToString(&writer.bytes());
  writer.Write(Crc32c(writer.bytes()));
  return std::move(writer).Take();
}

absl::Status UnsealMessage(absl::string_view bytes, absl::string_view what,
                           google::protobuf::MessageLite& message) {
  const absl::Status damaged =
      absl::DataLossError(absl::StrCat(what, ": damaged or of another version; it is dropped"));
  if (bytes.size() < 2 * sizeof(uint32_t) || bytes.size() > kMaxBytes) return damaged;
  const absl::string_view body = bytes.substr(0, bytes.size() - sizeof(uint32_t));
  if (ByteReader(bytes.substr(body.size())).Read<uint32_t>() != Crc32c(body)) return damaged;
  if (ByteReader(body).Read<uint32_t>() != kMagic) return damaged;
  const absl::string_view content = body.substr(sizeof(uint32_t));
  return message.ParseFromArray(content.data(), static_cast<int>(content.size())) ? absl::OkStatus()
                                                                                  : damaged;
}

}  // namespace fedge
