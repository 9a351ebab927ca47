// What an operator hands to a device so that it can join: a secret, the fingerprint of the
// server's authority (so that the device knows the server before it says anything) and where the
// server is. As text: "FEDGE1." and base32 (RFC 4648), in any case, which fits a QR code's
// alphanumeric mode; a checksum finds mistyped characters.
#ifndef FEDGE_COMMON_SECURITY_JOIN_TOKEN_H_
#define FEDGE_COMMON_SECURITY_JOIN_TOKEN_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/digest.h"

namespace fedge {

inline constexpr size_t kTokenSecretBytes = 20;  // 160 bits

struct JoinToken {
  std::string secret;   // kTokenSecretBytes random bytes
  Digest authority;     // SHA-256 of the authority's certificate in DER
  std::string address;  // "host:port" of the enrolment listener, at most 255 bytes

  std::string Text() const;
  // What a server keeps of it: SHA-256 of the secret.
  Digest Hash() const { return Sha256Of(secret); }
};

// The name of a token in lists and logs; the secret cannot be found from it.
std::string JoinTokenId(const Digest& hash);

// A token with a new secret from OpenSSL's generator.
absl::StatusOr<JoinToken> MakeJoinToken(const Digest& authority, absl::string_view address);
// InvalidArgument: no token, mistyped or cut off. White space around it is fine.
absl::StatusOr<JoinToken> ParseJoinToken(absl::string_view text);

}  // namespace fedge

#endif  // FEDGE_COMMON_SECURITY_JOIN_TOKEN_H_
