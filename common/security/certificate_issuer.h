// Makes certificates: authorities, and what an authority signs. Requests prove that their sender
// has the key; whatever else they say is ignored.
#ifndef FEDGE_COMMON_SECURITY_CERTIFICATE_ISSUER_H_
#define FEDGE_COMMON_SECURITY_CERTIFICATE_ISSUER_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/security/certificate.h"
#include "common/security/keys.h"

namespace fedge {

struct Validity {
  absl::Time begin, end;
};

// PKCS #10 in DER, signed by `key`, with an empty name.
absl::StatusOr<std::string> MakeCertificateRequest(const PrivateKey& key);
// The key of a request that proves it is its sender's. InvalidArgument: damaged, longer than 4 KiB,
// a bad signature, or a key that is not on P-256.
absl::StatusOr<PublicKey> ParseCertificateRequest(absl::string_view der);

// An authority with its key. Thread-safe.
class CertificateIssuer {
 public:
  // A new authority of `federation`, signed by its own key.
  static absl::StatusOr<CertificateIssuer> Create(absl::string_view federation, Validity validity);
  // From a file of both. InvalidArgument: no key, no authority's certificate, or not of each other.
  static absl::StatusOr<CertificateIssuer> FromPem(absl::string_view pem);
  std::string Pem() const;  // key and certificate: secret

  // A certificate for `key`'s holder, whose kind decides what it is good for; its federation is
  // this authority's. Nothing says it is valid beyond the authority's own end.
  absl::StatusOr<Certificate> Issue(const PublicKey& key, PeerKind kind, absl::string_view name,
                                    Validity validity) const;

  const Certificate& certificate() const { return certificate_; }

 private:
  CertificateIssuer(PrivateKey key, Certificate certificate)
      : key_(std::move(key)), certificate_(std::move(certificate)) {}
  static absl::StatusOr<Certificate> Sign(const PublicKey& subject, const PeerIdentity& identity,
                                          Validity validity, const PrivateKey& issuer_key,
                                          const Certificate* issuer);

  PrivateKey key_;
  Certificate certificate_;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_SECURITY_CERTIFICATE_ISSUER_H_
