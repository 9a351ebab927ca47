// FederationLink over gRPC. Every call has a deadline; one attempt each (client/transfer.h
// repeats).
#ifndef FEDGE_CLIENT_GRPC_LINK_H_
#define FEDGE_CLIENT_GRPC_LINK_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/federation_link.h"

namespace grpc {
class Channel;
}  // namespace grpc

namespace fedge {

struct NodeIdentity;
class ServerCheck;

struct GrpcLinkOptions {
  absl::Duration call_deadline = absl::Seconds(20);      // check-in, query, report
  absl::Duration transfer_deadline = absl::Minutes(10);  // a download or an upload
  uint64_t chunk_bytes = 256u << 10;                     // of uploads; at most kMaxChunkBytes
};

// A link to `address` ("host:port"), in plaintext. Connects at the first call. InvalidArgument: not
// of that form.
absl::StatusOr<std::unique_ptr<FederationLink>> ConnectGrpc(const std::string& address,
                                                            const GrpcLinkOptions& options);

// A link to the identity's server, as its node. `check` learns what TLS found out about the server.
std::unique_ptr<FederationLink> ConnectGrpcAs(const NodeIdentity& identity,
                                              std::shared_ptr<ServerCheck> check,
                                              const GrpcLinkOptions& options);

// A link over a channel that exists, e.g. the in-process channel of a server; `address` is its name
// in messages.
std::unique_ptr<FederationLink> MakeGrpcLink(std::shared_ptr<grpc::Channel> channel,
                                             const std::string& address,
                                             const GrpcLinkOptions& options);

}  // namespace fedge

#endif  // FEDGE_CLIENT_GRPC_LINK_H_
