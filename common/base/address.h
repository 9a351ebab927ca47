// Network addresses as people write them: "host:port", "[::1]:port".
#ifndef FEDGE_COMMON_BASE_ADDRESS_H_
#define FEDGE_COMMON_BASE_ADDRESS_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fedge {

struct HostPort {
  std::string host;  // of IPv6 with its brackets
  int port = 0;

  std::string Text() const;
};

// InvalidArgument unless `text` is a host and a port of `min_port` to 65535; `what` begins the
// message.
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text, absl::string_view what,
                                       int min_port = 1);

// Whether only programs of this machine are behind `host`: 127.0.0.0/8, [::1] or localhost.
bool IsLoopback(absl::string_view host);

}  // namespace fedge

#endif  // FEDGE_COMMON_BASE_ADDRESS_H_
