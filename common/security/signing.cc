#include "common/security/signing.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/digest.h"
#include "common/base/status.h"
#include "common/security/keys.h"
#include "common/security/openssl_ptr.h"

namespace fedge {
namespace {

using MdCtxPtr = std::unique_ptr<EVP_MD_CTX, internal::OpenSslFree<EVP_MD_CTX_free>>;

const unsigned char* Data(absl::string_view bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

}  // namespace

absl::StatusOr<SigningKey> SigningKey::Wrap(std::shared_ptr<evp_pkey_st> key) {
  if (key == nullptr || EVP_PKEY_get_base_id(key.get()) != EVP_PKEY_ED25519) {
    ERR_clear_error();
    return absl::InvalidArgumentError("holds no Ed25519 private key");
  }
  SigningKey wrapped;
  wrapped.public_key_.resize(kSigningKeyBytes);
  size_t size = kSigningKeyBytes;
  if (EVP_PKEY_get_raw_public_key(
          key.get(), reinterpret_cast<unsigned char*>(wrapped.public_key_.data()), &size) != 1) {
    return internal::OpenSslError("cannot read a public key");
  }
  wrapped.key_ = std::move(key);
  return wrapped;
}

absl::StatusOr<SigningKey> SigningKey::Generate() {
  internal::PkeyPtr key(EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519"));
  if (key == nullptr) return internal::OpenSslError("cannot make a signing key");
  return Wrap(std::shared_ptr<EVP_PKEY>(std::move(key)));
}

absl::StatusOr<SigningKey> SigningKey::FromSeed(absl::string_view seed) {
  internal::PkeyPtr key(
      EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr, Data(seed), seed.size()));
  return Wrap(std::shared_ptr<EVP_PKEY>(std::move(key)));
}

absl::StatusOr<SigningKey> SigningKey::FromPem(absl::string_view pem) {
  const internal::BioPtr bio = internal::BioOver(pem);
  internal::PkeyPtr key(PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr));
  return Wrap(std::shared_ptr<EVP_PKEY>(std::move(key)));
}

std::string SigningKey::Pem() const {
  const internal::BioPtr bio(BIO_new(BIO_s_secmem()));
  FEDGE_CHECK(PEM_write_bio_PKCS8PrivateKey(bio.get(), key_.get(), nullptr, nullptr, 0, nullptr,
                                            nullptr) == 1,
              "cannot encode a signing key");
  return internal::BytesOf(bio);
}

std::string SigningKey::Sign(absl::string_view context, absl::string_view message) const {
  const std::string signed_bytes = absl::StrCat(context, message);
  std::string signature(kSignatureBytes, '\0');
  size_t size = signature.size();
  const MdCtxPtr digest(EVP_MD_CTX_new());
  FEDGE_CHECK(EVP_DigestSignInit(digest.get(), nullptr, nullptr, nullptr, key_.get()) == 1 &&
                  EVP_DigestSign(digest.get(), reinterpret_cast<unsigned char*>(signature.data()),
                                 &size, Data(signed_bytes), signed_bytes.size()) == 1 &&
                  size == kSignatureBytes,
              "cannot sign");
  return signature;
}

absl::Status VerifySignature(absl::string_view public_key, absl::string_view context,
                             absl::string_view message, absl::string_view signature) {
  const internal::PkeyPtr key(
      EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, Data(public_key), public_key.size()));
  if (key == nullptr) {
    ERR_clear_error();
    return absl::InvalidArgumentError(absl::StrCat(
        "a public key of ", public_key.size(), " bytes is no Ed25519 key of ", kSigningKeyBytes));
  }
  const std::string signed_bytes = absl::StrCat(context, message);
  const MdCtxPtr digest(EVP_MD_CTX_new());
  const bool holds =
      EVP_DigestVerifyInit(digest.get(), nullptr, nullptr, nullptr, key.get()) == 1 &&
      EVP_DigestVerify(digest.get(), Data(signature), signature.size(), Data(signed_bytes),
                       signed_bytes.size()) == 1;
  ERR_clear_error();
  if (holds) return absl::OkStatus();
  return absl::UnauthenticatedError("the signature is not of this key over these bytes");
}

absl::StatusOr<std::string> ParsePublicKey(absl::string_view hex) {
  if (hex.empty()) return std::string();
  const absl::StatusOr<Digest> bytes = ParseDigest(hex);  // as many bytes
  if (bytes.ok()) return bytes->Raw();
  return absl::InvalidArgumentError(
      absl::StrCat("server key '", hex, "': is not ", 2 * kSigningKeyBytes, " hexadecimal digits"));
}

absl::StatusOr<SigningKey> LoadOrMakeSigningKey(absl::string_view path, Env& env) {
  if (env.Exists(path)) {
    ASSIGN_OR_RETURN(const std::string pem, ReadPrivateFile(path, env));
    absl::StatusOr<SigningKey> key = SigningKey::FromPem(pem);
    if (!key.ok()) return Annotate(key.status(), path);
    return key;
  }
  ASSIGN_OR_RETURN(SigningKey key, SigningKey::Generate());
  RETURN_IF_ERROR(WritePrivateFile(path, key.Pem(), env));
  return key;
}

}  // namespace fedge
