#include "common/security/join_token.h"

#include <openssl/rand.h>

#include <cstdint>

#include "absl/strings/ascii.h"
#include "common/base/byte_io.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr absl::string_view kPrefix = "FEDGE1.";
constexpr absl::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
constexpr size_t kMaxTextBytes = 1024;

std::string ToBase32(absl::string_view bytes) {
  std::string text;
  uint32_t bits = 0;
  int held = 0;
  for (const char c : bytes) {
    bits = (bits << 8) | static_cast<uint8_t>(c);
    for (held += 8; held >= 5; held -= 5) text.push_back(kAlphabet[(bits >> (held - 5)) & 31]);
  }
  if (held > 0) text.push_back(kAlphabet[(bits << (5 - held)) & 31]);
  return text;
}

bool FromBase32(absl::string_view text, std::string* bytes) {
  uint32_t bits = 0;
  int held = 0;
  for (const char c : text) {
    const size_t digit = kAlphabet.find(c);
    if (digit == absl::string_view::npos) return false;
    bits = (bits << 5) | static_cast<uint32_t>(digit);
    held += 5;
    if (held < 8) continue;
    held -= 8;
    bytes->push_back(static_cast<char>((bits >> held) & 0xFF));
  }
  return true;
}

}  // namespace

std::string JoinToken::Text() const {
  ByteWriter writer;
  writer.WriteBytes(secret);
  writer.WriteBytes(authority.Raw());
  writer.WriteBytes(address);
  writer.Write(Crc32c(writer.bytes()));
  return absl::StrCat(kPrefix, ToBase32(writer.bytes()));
}

std::string JoinTokenId(const Digest& hash) { return hash.Hex().substr(0, 12); }

absl::StatusOr<JoinToken> MakeJoinToken(const Digest& authority, absl::string_view address) {
  JoinToken token;
  token.authority = authority;
  token.address = std::string(address);
  token.secret.resize(kTokenSecretBytes);
  if (RAND_bytes(reinterpret_cast<unsigned char*>(token.secret.data()), kTokenSecretBytes) != 1) {
    return absl::InternalError("cannot draw a secret: the random generator failed");
  }
  return token;
}

absl::StatusOr<JoinToken> ParseJoinToken(absl::string_view text) {
  const std::string upper = absl::AsciiStrToUpper(absl::StripAsciiWhitespace(text));
  if (upper.size() > kMaxTextBytes || upper.rfind(kPrefix.data(), 0, kPrefix.size()) != 0) {
    return absl::InvalidArgumentError(
        "token: does not begin with FEDGE1.; ask the server's operator for one");
  }
  std::string bytes;
  const bool is_base32 = FromBase32(absl::string_view(upper).substr(kPrefix.size()), &bytes);
  constexpr size_t kFixedBytes = kTokenSecretBytes + sizeof(Digest::bytes) + sizeof(uint32_t);
  if (!is_base32 || bytes.size() <= kFixedBytes || bytes.size() > kFixedBytes + 255) {
    return absl::InvalidArgumentError("token: mistyped or cut off; copy the whole of it");
  }
  ByteReader reader(bytes);
  JoinToken token;
  token.secret = std::string(reader.ReadBytes(kTokenSecretBytes));
  ASSIGN_OR_RETURN(token.authority, DigestFromRaw(reader.ReadBytes(sizeof(Digest::bytes))));
  token.address = std::string(reader.ReadBytes(bytes.size() - kFixedBytes));
  const uint32_t crc = reader.Read<uint32_t>();
  if (crc != Crc32c(absl::string_view(bytes).substr(0, bytes.size() - sizeof(crc)))) {
    return absl::InvalidArgumentError("token: mistyped or cut off; copy the whole of it");
  }
  return token;
}

}  // namespace fedge
