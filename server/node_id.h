// What a node may call itself.
#ifndef FEDGE_SERVER_NODE_ID_H_
#define FEDGE_SERVER_NODE_ID_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace fedge {

inline constexpr size_t kMaxNodeIdBytes = 128;

// InvalidArgument unless `id` is 1..128 bytes of UTF-8 without control characters.
absl::Status CheckNodeId(absl::string_view id);

}  // namespace fedge

#endif  // FEDGE_SERVER_NODE_ID_H_
