// Asks a server's standard gRPC health service whether it serves: for container health checks.
#ifndef FEDGE_SERVER_GRPC_PROBE_H_
#define FEDGE_SERVER_GRPC_PROBE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace fedge {

// OK when `address` ("host:port", "unix:path") answers SERVING, in plaintext or over TLS, within
// `timeout` each. Of a server with certificates, its enrolment listener answers. Unavailable: no
// answer, or another state.
absl::Status ProbeHealth(const std::string& address, absl::Duration timeout);

}  // namespace fedge

#endif  // FEDGE_SERVER_GRPC_PROBE_H_
