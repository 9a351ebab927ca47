// One TLS handshake with the server, step by step, to say what is wrong with it: gRPC only knows
// that the server "is not there".
#ifndef FEDGE_CLIENT_TLS_PROBE_H_
#define FEDGE_CLIENT_TLS_PROBE_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/node_identity.h"
#include "common/security/certificate.h"

namespace fedge {

struct TlsFinding {
  // Unavailable: no connection. Aborted: no handshake with what is there. Unauthenticated: its
  // certificate is of no authority that this device knows, or not a server's. PermissionDenied: the
  // server does not take this device's certificate.
  absl::Status status;
  std::string version;                // "TLSv1.3", after a handshake
  std::optional<Certificate> server;  // what it showed, if that names a peer of a federation
};

// Speaks to `identity.server` as its node, for at most `timeout` in each step. Dates are the
// caller's to judge.
TlsFinding ProbeTls(const NodeIdentity& identity, absl::Duration timeout);

}  // namespace fedge

#endif  // FEDGE_CLIENT_TLS_PROBE_H_
