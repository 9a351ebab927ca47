// X.509 certificates of a federation: who a peer is, and whether its certificate holds.
//
// Every federation has its own authority. A certificate names its holder in one URI,
// spiffe://FEDERATION/KIND/NAME, and nothing else of it is believed; NAME is 1 to 64 letters,
// digits, '.', '_' and '-'. The server's certificate names no host: devices pin the authority, so a
// server may change its address.
#ifndef FEDGE_COMMON_SECURITY_CERTIFICATE_H_
#define FEDGE_COMMON_SECURITY_CERTIFICATE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/base/digest.h"
#include "common/security/keys.h"

struct x509_st;

namespace fedge {

// Certificates begin so long before they are made: clocks differ.
inline constexpr absl::Duration kBackdating = absl::Hours(48);

enum class PeerKind { kAuthority, kServer, kNode, kAdminRead, kAdminWrite };
absl::string_view PeerKindName(PeerKind kind);  // as in the URI: "ca", "server", "node", ...

struct PeerIdentity {
  PeerKind kind = PeerKind::kNode;
  std::string federation;
  std::string name;

  friend bool operator==(const PeerIdentity&, const PeerIdentity&) = default;
  std::string Uri() const;
};

// InvalidArgument names what is wrong with it.
absl::Status CheckPeerName(absl::string_view name);
absl::StatusOr<PeerIdentity> ParsePeerUri(absl::string_view uri);

// Copies share one certificate; thread-safe.
class Certificate {
 public:
  // The first certificate in `pem`. InvalidArgument: there is none, it is damaged, or it does not
  // name a peer of a federation.
  static absl::StatusOr<Certificate> FromPem(absl::string_view pem);
  // All of them, at least one and at most 16.
  static absl::StatusOr<std::vector<Certificate>> ListFromPem(absl::string_view pem);

  std::string Pem() const;
  Digest Fingerprint() const;  // SHA-256 of its DER form
  std::string Serial() const;  // lower-case hexadecimal
  const PeerIdentity& identity() const { return identity_; }
  absl::Time not_before() const;
  absl::Time made() const { return not_before() + kBackdating; }
  absl::Time not_after() const;
  PublicKey public_key() const;
  bool Matches(const PrivateKey& key) const;
  x509_st* handle() const { return x509_.get(); }

 private:
  friend class CertificateIssuer;
  Certificate(std::shared_ptr<x509_st> x509, PeerIdentity identity)
      : x509_(std::move(x509)), identity_(std::move(identity)) {}
  static absl::StatusOr<Certificate> Wrap(std::shared_ptr<x509_st> x509);

  std::shared_ptr<x509_st> x509_;
  PeerIdentity identity_;
};

enum class DateCheck { kStrict, kIgnored };

// Whether one of `authorities` signed `certificate` for the use its kind has, and it is valid at
// `now`. Unauthenticated says why not: another federation's, expired since, not valid yet (with the
// hours, and that a clock may be wrong), or not for this use.
absl::Status VerifyCertificate(const Certificate& certificate,
                               absl::Span<const Certificate> authorities, absl::Time now,
                               DateCheck dates = DateCheck::kStrict);

}  // namespace fedge

#endif  // FEDGE_COMMON_SECURITY_CERTIFICATE_H_
