// Where a peer comes from, of gRPC's name for it.
#ifndef FEDGE_SERVER_PEER_ADDRESS_H_
#define FEDGE_SERVER_PEER_ADDRESS_H_

#include <string>

#include "absl/strings/string_view.h"

namespace fedge {

// "ipv4:10.0.0.7:5123": the address of a peer without its port; of IPv6 the network of 64 bits,
// which is one customer's.
std::string PeerAddress(absl::string_view grpc_peer);

}  // namespace fedge

#endif  // FEDGE_SERVER_PEER_ADDRESS_H_
