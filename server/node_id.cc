#include "server/node_id.h"

#include <cstdint>

#include "absl/strings/str_cat.h"

namespace fedge {
namespace {

// The number of bytes of the UTF-8 sequence at the start of `text`, 0 when it is not one
// (RFC 3629: no surrogates, no overlong forms, at most U+10FFFF).
size_t Utf8SequenceLength(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const bool overlong = (lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xF0 && byte(1) < 0x90);
  const bool outside = (lead == 0xED && byte(1) > 0x9F) || (lead == 0xF4 && byte(1) > 0x8F);
  return overlong || outside ? 0 : length;
}

}  // namespace

absl::Status CheckNodeId(absl::string_view id) {
  if (id.empty() || id.size() > kMaxNodeIdBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("node id: has ", id.size(), " bytes, allowed are 1 to ", kMaxNodeIdBytes));
  }
  for (absl::string_view rest = id; !rest.empty();) {
    const size_t length = Utf8SequenceLength(rest);
    if (length == 0) return absl::InvalidArgumentError("node id: is not UTF-8");
    const uint8_t first = static_cast<uint8_t>(rest[0]);
    const bool c1_control = length == 2 && first == 0xC2 && static_cast<uint8_t>(rest[1]) < 0xA0;
    if (first < 0x20 || first == 0x7F || c1_control) {
      return absl::InvalidArgumentError("node id: holds a control character");
    }
    rest.remove_prefix(length);
  }
  return absl::OkStatus();
}

}  // namespace fedge
