// The way to the server for a device that has joined: joining, and a link that keeps the node's
// certificate fresh and says when the device's clock is wrong.
#ifndef FEDGE_CLIENT_SERVER_LINK_H_
#define FEDGE_CLIENT_SERVER_LINK_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/federation_link.h"
#include "client/grpc_link.h"
#include "common/base/clock.h"
#include "common/base/env.h"

namespace fedge {

struct JoinOptions {
  std::string url;  // "https://host:port" or "host:port"; empty: what the token says
  std::string token;
  std::string node_id;
  std::string state_dir;
};

struct JoinedNode {
  std::string node_id;
  std::string server;   // of the fleet
  std::string warning;  // the device's clock is wrong; empty: it is not
};

// Makes the key, asks the server that the token names for a certificate, and stores both. May be
// repeated with the same token after any failure. AlreadyExists: this state folder has joined
// before. Codes of EnrollOverTls and Membership::Enroll.
absl::StatusOr<JoinedNode> JoinFederation(const JoinOptions& options, Env& env, Clock& clock);

struct ServerLinkOptions {
  std::string server;     // "host:port"; empty: what the identity says
  std::string state_dir;  // whose identity is used
  std::string node_id;    // without an identity; with one: empty or the same
  bool insecure = false;  // plaintext, to this machine only
  GrpcLinkOptions grpc;
};

struct ServerLink {
  std::unique_ptr<FederationLink> link = nullptr;
  std::string node_id;
  std::string server;
};

// NotFound: neither an identity nor `insecure`. InvalidArgument: an address that is none,
// `insecure` to another machine, or another node's name. Codes of IdentityFolder::Load.
absl::StatusOr<ServerLink> OpenServerLink(const ServerLinkOptions& options, Env& env, Clock& clock);

}  // namespace fedge

#endif  // FEDGE_CLIENT_SERVER_LINK_H_
