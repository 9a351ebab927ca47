// How a device speaks TLS to its server: the server's certificate must be of an authority that the
// device knows (of its identity, or by the fingerprint in a join token). Whatever host name or
// address it was reached by, and whatever the dates say: many devices have no clock to judge by,
// and whoever had the server's key would have the authority's, which lies beside it.
#ifndef FEDGE_CLIENT_GRPC_IDENTITY_H_
#define FEDGE_CLIENT_GRPC_IDENTITY_H_

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "client/node_identity.h"
#include "common/security/join_token.h"
#include "fedge/v1/identity.pb.h"

namespace grpc {
class Channel;
class ChannelCredentials;
}  // namespace grpc

namespace fedge {

// What the newest TLS handshakes of a channel found out about the server. Thread-safe.
class ServerCheck {
 public:
  void Set(absl::Status status);
  // Unknown until a server was there.
  absl::Status Get() const;

 private:
  mutable absl::Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_) = absl::UnknownError("no server was there");
};

// `check` may be null.
std::shared_ptr<grpc::ChannelCredentials> MakeNodeCredentials(const NodeIdentity& identity,
                                                              std::shared_ptr<ServerCheck> check);

// One call of EnrollmentService at `address` with a token's pinned authority. Unauthenticated: the
// server there is not the one that made the token.
absl::StatusOr<v1::EnrollResponse> EnrollOverTls(const std::string& address, const JoinToken& token,
                                                 const v1::EnrollRequest& request);

// One call of IdentityService.
absl::StatusOr<v1::NodeCertificate> RenewOverTls(const NodeIdentity& identity,
                                                 const v1::RenewRequest& request);

}  // namespace fedge

#endif  // FEDGE_CLIENT_GRPC_IDENTITY_H_
