// Signatures that outlive a connection: Ed25519 (RFC 8032) over bytes, with the context they are
// meant in, so that a signature of one kind of thing is none of another.
//
// A signing key is one file in PEM (PKCS#8), mode 0600; a public key is its 32 bytes.
#ifndef FEDGE_COMMON_SECURITY_SIGNING_H_
#define FEDGE_COMMON_SECURITY_SIGNING_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/env.h"

struct evp_pkey_st;

namespace fedge {

inline constexpr size_t kSigningKeyBytes = 32;  // of a seed, and of a public key
inline constexpr size_t kSignatureBytes = 64;
// What a version's manifest is signed as, and that of a candidate, which may never be one.
inline constexpr absl::string_view kVersionManifestContext("fedge version manifest\0", 23);
inline constexpr absl::string_view kCandidateManifestContext("fedge candidate manifest\0", 25);

// Copies share one key; thread-safe.
class SigningKey {
 public:
  static absl::StatusOr<SigningKey> Generate();
  // InvalidArgument: not 32 bytes, not such a key.
  static absl::StatusOr<SigningKey> FromSeed(absl::string_view seed);
  static absl::StatusOr<SigningKey> FromPem(absl::string_view pem);

  std::string Pem() const;                                       // secret
  const std::string& public_key() const { return public_key_; }  // kSigningKeyBytes
  // kSignatureBytes, the same for the same bytes.
  std::string Sign(absl::string_view context, absl::string_view message) const;

 private:
  static absl::StatusOr<SigningKey> Wrap(std::shared_ptr<evp_pkey_st> key);

  std::shared_ptr<evp_pkey_st> key_;
  std::string public_key_;
};

// Unauthenticated: `signature` is not that key's of these bytes. InvalidArgument: no public key.
absl::Status VerifySignature(absl::string_view public_key, absl::string_view context,
                             absl::string_view message, absl::string_view signature);

// From 64 hexadecimal digits; empty stays empty. InvalidArgument: something else.
absl::StatusOr<std::string> ParsePublicKey(absl::string_view hex);

// The key in the file at `path`, made and written there when there is none. PermissionDenied:
// others may read it. InvalidArgument: it is something else.
absl::StatusOr<SigningKey> LoadOrMakeSigningKey(absl::string_view path, Env& env);

}  // namespace fedge

#endif  // FEDGE_COMMON_SECURITY_SIGNING_H_
