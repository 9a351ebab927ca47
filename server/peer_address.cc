#include "server/peer_address.h"

#include <arpa/inet.h>

#include "absl/strings/str_cat.h"

namespace fedge {

std::string PeerAddress(absl::string_view grpc_peer) {
  // "ipv4:10.0.0.7:5123", "ipv6:%5B2001:db8::1%5D:443" (brackets escaped or not), "unix:...".
  const bool is_ipv6 = grpc_peer.substr(0, 5) == "ipv6:";
  if (!is_ipv6) return std::string(grpc_peer.substr(0, grpc_peer.rfind(':')));
  absl::string_view host = grpc_peer.substr(5);
  for (const absl::string_view open : {"%5B", "["}) {
    if (host.substr(0, open.size()) == open) host.remove_prefix(open.size());
  }
  host = host.substr(0, host.find_first_of("%]"));
  in6_addr address = {};
  if (inet_pton(AF_INET6, std::string(host).c_str(), &address) != 1) return std::string(host);
  for (size_t i = 8; i < 16; ++i) address.s6_addr[i] = 0;
  char text[INET6_ADDRSTRLEN] = "";
  inet_ntop(AF_INET6, &address, text, sizeof(text));
  return absl::StrCat("ipv6:", text, "/64");
}

}  // namespace fedge
