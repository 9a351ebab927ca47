// Keys of identities: ECDSA on P-256, which gRPC's TLS and OpenSSL 3 take everywhere, and which
// signs and verifies several times faster here than Ed25519.
//
// Not here: what certificates say (certificate.h), signatures of published versions.
#ifndef FEDGE_COMMON_SECURITY_KEYS_H_
#define FEDGE_COMMON_SECURITY_KEYS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/digest.h"
#include "common/base/env.h"

struct evp_pkey_st;

namespace fedge {

// Copies share one key; thread-safe.
class PublicKey {
 public:
  explicit PublicKey(std::shared_ptr<evp_pkey_st> key) : key_(std::move(key)) {}
  Digest Fingerprint() const;  // SHA-256 of the SubjectPublicKeyInfo
  evp_pkey_st* handle() const { return key_.get(); }

 private:
  std::shared_ptr<evp_pkey_st> key_;
};

class PrivateKey {
 public:
  static absl::StatusOr<PrivateKey> Generate();
  // The first private key in `pem`, which may hold certificates too. InvalidArgument: there is
  // none, or it is not a P-256 key.
  static absl::StatusOr<PrivateKey> FromPem(absl::string_view pem);

  std::string Pem() const;  // PKCS#8, not encrypted
  const PublicKey& public_key() const { return public_key_; }
  evp_pkey_st* handle() const { return public_key_.handle(); }

 private:
  explicit PrivateKey(std::shared_ptr<evp_pkey_st> key) : public_key_(std::move(key)) {}
  PublicKey public_key_;
};

// Files that nobody but their owner may read: keys. Written with mode 0600 from their first byte
// on, atomically and durably; the folder is made if need be, with mode 0700.
absl::Status WritePrivateFile(absl::string_view path, absl::string_view data, Env& env);
// PermissionDenied when others than the owner may read or write it: the key may be known to them.
absl::StatusOr<std::string> ReadPrivateFile(absl::string_view path, Env& env);

}  // namespace fedge

#endif  // FEDGE_COMMON_SECURITY_KEYS_H_
