#include "common/base/digest.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/escaping.h"
#include "common/base/status.h"

namespace fedge {

std::string Digest::Hex() const { return absl::BytesToHexString(Raw()); }

std::string Digest::Raw() const {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

absl::StatusOr<Digest> DigestFromRaw(absl::string_view raw) {
  Digest digest;
  if (raw.size() != digest.bytes.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a SHA-256 digest has 32 bytes, not ", raw.size()));
  }
  std::copy(raw.begin(), raw.end(), digest.bytes.begin());
  return digest;
}

absl::StatusOr<Digest> ParseDigest(absl::string_view hex) {
  const bool all_hex = hex.find_first_not_of("0123456789abcdefABCDEF") == absl::string_view::npos;
  if (hex.size() != 64 || !all_hex) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", absl::CHexEscape(hex.substr(0, 80)),
                     "\" is not a SHA-256 digest (64 hexadecimal digits)"));
  }
  return DigestFromRaw(absl::HexStringToBytes(hex));
}

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  FEDGE_CHECK(state_->context != nullptr &&
              EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) == 1);
}
Sha256::~Sha256() = default;

void Sha256::Update(absl::string_view data) {
  FEDGE_CHECK(EVP_DigestUpdate(state_->context, data.data(), data.size()) == 1);
}

Digest Sha256::Finish() {
  Digest digest;
  unsigned int size = 0;
  FEDGE_CHECK(EVP_DigestFinal_ex(state_->context, digest.bytes.data(), &size) == 1 && size == 32);
  return digest;
}

Digest Sha256Of(absl::string_view data) {
  Sha256 hasher;
  hasher.Update(data);
  return hasher.Finish();
}

namespace {

using CrcTables = std::array<std::array<uint32_t, 256>, 8>;

// tables[0] advances the remainder by one byte, tables[k] the same byte by k further zero bytes.
constexpr CrcTables MakeCrc32cTables() {
  CrcTables tables = {};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) {
      value = (value >> 1) ^ ((value & 1) ? 0x82F63B78u : 0u);
    }
    tables[0][i] = value;
  }
  for (size_t k = 1; k < tables.size(); ++k) {
    for (size_t i = 0; i < 256; ++i) {
      const uint32_t previous = tables[k - 1][i];
      tables[k][i] = (previous >> 8) ^ tables[0][previous & 0xFF];
    }
  }
  return tables;
}
constexpr CrcTables kCrc32cTables = MakeCrc32cTables();

}  // namespace

// Eight bytes a step (slicing-by-8, Kounavis and Berry 2005).
uint32_t Crc32c(absl::string_view data, uint32_t crc) {
  const CrcTables& tables = kCrc32cTables;
  crc = ~crc;
  size_t i = 0;
  for (; data.size() - i >= 8; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, data.data() + i, sizeof(word));
    word ^= crc;
    crc = 0;
    for (size_t k = 0; k < 8; ++k) crc ^= tables[7 - k][(word >> (8 * k)) & 0xFF];
  }
  for (; i < data.size(); ++i) {
    crc = (crc >> 8) ^ tables[0][(crc ^ static_cast<uint8_t>(data[i])) & 0xFF];
  }
  return ~crc;
}

}  // namespace fedge
