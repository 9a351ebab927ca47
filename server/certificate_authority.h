// The server's own certificate authority: its key, the server's certificate, and how one authority
// gives way to the next.
//
// Files in one folder: authority-N.pem (key and certificate, the higher N the newer),
// server-key.pem, server.pem (the server's certificate, then the authorities') and
// authorities.pem. gRPC watches the last three.
//
// A rotation takes two lives L of a node's certificate. All times follow from when the newer
// authority was made, so a restart changes nothing:
//
//   made        + L                + 2 L
//    |-----------|-------------------|
//    new signs nodes' certificates, and devices are told of both with each renewal
//                new signs the server's certificate: every valid node knows it by now
//                                    old goes
#ifndef FEDGE_SERVER_CERTIFICATE_AUTHORITY_H_
#define FEDGE_SERVER_CERTIFICATE_AUTHORITY_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "common/security/certificate_issuer.h"

namespace fedge {

struct CertificateAuthorityOptions {
  std::string dir;
  absl::Duration node_lifetime = absl::Hours(24 * 7);
  bool may_create = true;  // the first authority, when there is none
  Env* env = nullptr;
  Clock* clock = nullptr;
};

// Thread-safe.
class CertificateAuthority {
 public:
  struct TlsFiles {
    std::string key, chain, authorities;
  };

  // FailedPrecondition: there is no authority and none may be made. PermissionDenied: others may
  // read a key. DataLoss: a file is damaged (names it, and what to do).
  static absl::StatusOr<std::unique_ptr<CertificateAuthority>> Open(
      CertificateAuthorityOptions options);

  // Signed by the newest authority, from kBackdating ago to `lifetime` from now.
  absl::StatusOr<Certificate> Issue(const PublicKey& key, PeerKind kind, absl::string_view name,
                                    absl::Duration lifetime);
  absl::Duration node_lifetime() const { return options_.node_lifetime; }

  const std::string& federation() const { return federation_; }
  std::vector<Certificate> authorities();  // trusted ones, oldest first
  std::string AuthoritiesPem();
  Digest serving_authority();  // fingerprint of what signed the server's certificate
  const TlsFiles& files() const { return files_; }

  // Makes the next authority; returns when the server will show a certificate of it. At once: the
  // others are gone, and every device must join again. FailedPrecondition: a rotation is under way.
  absl::StatusOr<absl::Time> Rotate(bool at_once);
  // What time has brought: call it every minute or so.
  absl::Status Maintain();

 private:
  struct Generation {
    std::string path;
    CertificateIssuer issuer;
    absl::Time made() const { return issuer.certificate().made(); }
  };

  explicit CertificateAuthority(CertificateAuthorityOptions options);
  absl::Status Load() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AddGeneration() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status DropOldest() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status KeepServerCertificate() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Which generation signs the server's certificate now.
  const Generation& Serving() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsServerCertificateGood() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string TrustedPem() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const CertificateAuthorityOptions options_;
  const TlsFiles files_;
  std::string federation_;  // set once, by Open
  absl::Mutex mutex_;
  std::vector<Generation> generations_ ABSL_GUARDED_BY(mutex_);  // oldest first, never empty
};

}  // namespace fedge

#endif  // FEDGE_SERVER_CERTIFICATE_AUTHORITY_H_
