// Who belongs to the federation: join tokens, enrolment, renewal, revocation. The service without a
// transport; TLS and the calls are grpc_security and enrollment_service.
#ifndef FEDGE_SERVER_MEMBERSHIP_H_
#define FEDGE_SERVER_MEMBERSHIP_H_

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "fedge/v1/identity.pb.h"
#include "server/certificate_authority.h"
#include "server/identity_store.h"
#include "server/node_quota.h"

namespace fedge {

struct MembershipOptions {
  std::string dir;  // identity.db and the authority's files; made when absent
  absl::Duration node_lifetime = absl::Hours(24 * 7);
  Env* env = nullptr;
  Clock* clock = nullptr;
};

struct TokenRequest {
  uint32_t uses = 1;
  absl::Duration lifetime = absl::Hours(1);
  std::string node_id;  // empty: any new node
  std::string address;  // "host:port" of the enrolment listener; empty: set_address's
};

// Whom a revocation is about: "node/pi-17"; "operator/alice", whatever she may.
std::string RevocationSubject(const PeerIdentity& peer);

// Thread-safe. Methods block on the disk for milliseconds, but for CheckPeer.
class Membership {
 public:
  // Codes of CertificateAuthority::Open and SqliteDb.
  static absl::StatusOr<std::unique_ptr<Membership>> Open(MembershipOptions options);
  ~Membership();

  // Where devices reach the enrolment listener: what tokens say unless told otherwise.
  void set_address(std::string address);

  // The token's text. InvalidArgument: no use, more than 100,000, a lifetime that is not above 0
  // and at most a day, a bad name or address. FailedPrecondition: the node was revoked.
  absl::StatusOr<std::string> CreateToken(const TokenRequest& request, TokenRecord* record);
  absl::StatusOr<std::vector<TokenRecord>> ListTokens();  // not over yet, oldest first
  // NotFound: no token, or several, of which `id` (JoinTokenId) is the name or its beginning.
  absl::Status RevokeToken(absl::string_view id);

  // `peer_address` (without a port) is what the rate limit is about. PermissionDenied: the token is
  // unknown, revoked, over, used, or another node's, or the node was revoked. AlreadyExists: a node
  // of this name has joined. ResourceExhausted: too many attempts from there. InvalidArgument: the
  // request is damaged.
  absl::StatusOr<v1::NodeCertificate> Enroll(const v1::EnrollRequest& request,
                                             absl::string_view peer_address);
  // For a node whose certificate was checked.
  absl::StatusOr<v1::NodeCertificate> Renew(absl::string_view node,
                                            const v1::RenewRequest& request);
  // A certificate with which an operator comes over TCP. FailedPrecondition: the name was revoked.
  absl::StatusOr<Certificate> CertifyOperator(absl::string_view name, bool may_write,
                                              absl::string_view request, absl::Duration lifetime);

  absl::StatusOr<std::vector<OperatorRecord>> ListOperators();  // not over yet, oldest first

  // Durable; then all listeners were told. Fine when it was revoked before.
  absl::Status RevokeNode(absl::string_view node, absl::string_view reason);
  absl::Status RevokeOperator(absl::string_view name);  // all certificates of this name
  // Called with each RevocationSubject from now on.
  void AddRevocationListener(std::function<void(absl::string_view subject)> listener);

  // Whether a peer with a certificate that TLS accepted is welcome: one of this federation, in
  // time, not revoked. Unauthenticated says why not. Does not block.
  absl::Status CheckPeer(const Certificate& certificate);
  bool IsRevoked(absl::string_view node);
  bool IsRevokedOperator(absl::string_view name);

  CertificateAuthority& authority() { return *authority_; }

 private:
  explicit Membership(MembershipOptions options);
  absl::Status CheckToken(const TokenRecord& token, const v1::EnrollRequest& request) const;
  absl::StatusOr<v1::NodeCertificate> Certify(absl::string_view node, const PublicKey& key,
                                              MemberRecord* member);

  void Tell(const std::string& subject);
  void MaintainLoop();

  const MembershipOptions options_;
  std::unique_ptr<IdentityStore> store_;
  std::unique_ptr<CertificateAuthority> authority_;
  absl::Mutex enroll_mutex_;  // one enrolment at a time: a token's uses are counted, then taken
  absl::Mutex mutex_;
  NodeQuota attempts_ ABSL_GUARDED_BY(mutex_);
  NameSet revoked_ ABSL_GUARDED_BY(mutex_);  // RevocationSubject
  std::vector<std::function<void(absl::string_view)>> listeners_ ABSL_GUARDED_BY(mutex_);
  std::string address_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread maintainer_;  // certificates end, authorities follow each other
};

}  // namespace fedge

#endif  // FEDGE_SERVER_MEMBERSHIP_H_
