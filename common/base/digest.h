// SHA-256 content identities and CRC-32C checksums.
#ifndef FEDGE_COMMON_BASE_DIGEST_H_
#define FEDGE_COMMON_BASE_DIGEST_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace fedge {

// A SHA-256 value: the identity of a base model, a blob, an encoded update.
struct Digest {
  std::array<uint8_t, 32> bytes = {};

  friend bool operator==(const Digest&, const Digest&) = default;
  friend auto operator<=>(const Digest&, const Digest&) = default;
  std::string Hex() const;  // 64 lower-case hexadecimal digits
  std::string Raw() const;  // the 32 bytes
};

// InvalidArgument unless `hex` is 64 hexadecimal digits.
absl::StatusOr<Digest> ParseDigest(absl::string_view hex);

// InvalidArgument unless `raw` is 32 bytes.
absl::StatusOr<Digest> DigestFromRaw(absl::string_view raw);

// Streaming SHA-256 (FIPS 180-4). Not thread-safe.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Update(absl::string_view data);
  Digest Finish();  // call once

 private:
  struct State;
  std::unique_ptr<State> state_;
};

Digest Sha256Of(absl::string_view data);

// CRC-32C (Castagnoli, RFC 3720 appendix B.4) of `data`, continuing from `crc` (0 to start).
uint32_t Crc32c(absl::string_view data, uint32_t crc = 0);

}  // namespace fedge

#endif  // FEDGE_COMMON_BASE_DIGEST_H_
