// The fixed 132 bytes before an update's payload (proto/UPDATE_FORMAT.md). Internal to the codec:
// everybody else uses update_codec.h.
#ifndef FEDGE_COMMON_CODEC_UPDATE_HEADER_H_
#define FEDGE_COMMON_CODEC_UPDATE_HEADER_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/codec/update_codec.h"

namespace fedge {

inline constexpr size_t kUpdateHeaderBytes = 132;
inline constexpr uint8_t kUpdateFormatVersion = 4;

// UpdateHeader plus what only the codec needs.
struct WireHeader {
  UpdateHeader update;
  uint64_t payload_bytes = 0;
  uint32_t payload_crc = 0;
};

// 1, 2, 3, 4, 8 or 16.
bool IsValueWidth(int bits);

// Writes `header` over the first kUpdateHeaderBytes of `bytes`; length and checksum of the payload
// are taken from the rest of it.
void SealUpdate(const UpdateHeader& header, std::string* bytes);

// Codes as ReadUpdateHeader. Does not look at the payload.
absl::StatusOr<WireHeader> ParseUpdateHeader(absl::string_view bytes);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_UPDATE_HEADER_H_
