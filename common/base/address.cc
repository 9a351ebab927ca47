#include "common/base/address.h"

#include <arpa/inet.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace fedge {

std::string HostPort::Text() const { return absl::StrCat(host, ":", port); }

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text, absl::string_view what,
                                       int min_port) {
  const size_t colon = text.rfind(':');
  HostPort address;
  if (colon == absl::string_view::npos || colon == 0 ||
      !absl::SimpleAtoi(text.substr(colon + 1), &address.port) || address.port < min_port ||
      address.port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat(what, " \"", text, "\" is not host:port with a ",
                                                   "port of ", min_port, " to 65535"));
  }
  address.host = std::string(text.substr(0, colon));
  return address;
}

bool IsLoopback(absl::string_view host) {
  if (host == "localhost" || host == "[::1]") return true;
  in_addr address = {};
  return inet_pton(AF_INET, std::string(host).c_str(), &address) == 1 &&
         (ntohl(address.s_addr) >> 24) == 127;
}

}  // namespace fedge
