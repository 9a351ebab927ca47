#include "common/security/keys.h"

#include <openssl/ec.h>

#include <utility>

#include "common/base/status.h"
#include "common/security/openssl_ptr.h"

namespace fedge {
namespace {

constexpr uint64_t kMaxKeyFileBytes = 1u << 20;

}  // namespace

Digest PublicKey::Fingerprint() const {
  unsigned char* der = nullptr;
  const int size = i2d_PUBKEY(key_.get(), &der);
  FEDGE_CHECK(size > 0, "cannot encode a public key");
  const Digest digest =
      Sha256Of(absl::string_view(reinterpret_cast<const char*>(der), static_cast<size_t>(size)));
  OPENSSL_free(der);
  return digest;
}

absl::StatusOr<PrivateKey> PrivateKey::Generate() {
  internal::PkeyPtr key(EVP_EC_gen("P-256"));
  if (key == nullptr) return internal::OpenSslError("cannot make a key");
  return PrivateKey(std::shared_ptr<EVP_PKEY>(std::move(key)));
}

absl::StatusOr<PrivateKey> PrivateKey::FromPem(absl::string_view pem) {
  const internal::BioPtr bio = internal::BioOver(pem);
  internal::PkeyPtr key(PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr));
  ERR_clear_error();
  if (key == nullptr) return absl::InvalidArgumentError("holds no private key in PEM");
  char curve[32] = "";
  if (EVP_PKEY_get_group_name(key.get(), curve, sizeof(curve), nullptr) != 1 ||
      absl::string_view(curve) != "prime256v1") {
    ERR_clear_error();
    return absl::InvalidArgumentError("holds a private key that is not on P-256");
  }
  return PrivateKey(std::shared_ptr<EVP_PKEY>(std::move(key)));
}

std::string PrivateKey::Pem() const {
  const internal::BioPtr bio(BIO_new(BIO_s_secmem()));
  FEDGE_CHECK(PEM_write_bio_PKCS8PrivateKey(bio.get(), handle(), nullptr, nullptr, 0, nullptr,
                                            nullptr) == 1,
              "cannot encode a private key");
  return internal::BytesOf(bio);
}

absl::Status WritePrivateFile(absl::string_view path, absl::string_view data, Env& env) {
  const absl::string_view dir = DirName(path);
  if (!env.Exists(dir)) {
    RETURN_IF_ERROR(env.CreateDirs(dir));
    RETURN_IF_ERROR(env.SetPermissions(dir, 0700));
  }
  return env.WriteFileAtomic(path, data, 0600);
}

absl::StatusOr<std::string> ReadPrivateFile(absl::string_view path, Env& env) {
  ASSIGN_OR_RETURN(const uint32_t mode, env.Permissions(path));
  if ((mode & 0077) != 0) {
    return absl::PermissionDeniedError(absl::StrCat(
        path, ": others than its owner may read or change this key (mode ", absl::Hex(mode >> 6),
        absl::Hex((mode >> 3) & 7), absl::Hex(mode & 7), "); if nobody did: chmod 600 ", path));
  }
  return env.ReadFile(path, kMaxKeyFileBytes);
}

}  // namespace fedge
