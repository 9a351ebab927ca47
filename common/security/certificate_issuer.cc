#include "common/security/certificate_issuer.h"

#include <openssl/rand.h>

#include <algorithm>
#include <utility>

#include "common/base/status.h"
#include "common/security/openssl_ptr.h"

namespace fedge {
namespace {

constexpr size_t kMaxRequestBytes = 4096;
constexpr int kSerialBits = 127;  // positive in DER's two's complement

absl::Status SetSerial(X509* x509) {
  const internal::BignumPtr number(BN_new());
  if (number == nullptr ||
      BN_rand(number.get(), kSerialBits, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) != 1 ||
      BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(x509)) == nullptr) {
    return internal::OpenSslError("cannot draw a serial number");
  }
  return absl::OkStatus();
}

absl::Status AddExtension(X509* x509, X509V3_CTX* context, int nid, const std::string& value) {
  const internal::X509ExtensionPtr extension(
      X509V3_EXT_conf_nid(nullptr, context, nid, value.c_str()));
  if (extension == nullptr || X509_add_ext(x509, extension.get(), -1) != 1) {
    return internal::OpenSslError(absl::StrCat("cannot add ", OBJ_nid2sn(nid), "=", value));
  }
  return absl::OkStatus();
}

absl::Status AddExtensions(X509* x509, const PeerIdentity& identity, const Certificate* issuer) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer == nullptr ? x509 : issuer->handle(), x509, nullptr, nullptr, 0);
  const bool is_authority = identity.kind == PeerKind::kAuthority;
  RETURN_IF_ERROR(AddExtension(x509, &context, NID_basic_constraints,
                               is_authority ? "critical,CA:TRUE,pathlen:0" : "critical,CA:FALSE"));
  RETURN_IF_ERROR(
      AddExtension(x509, &context, NID_key_usage,
                   is_authority ? "critical,keyCertSign,cRLSign" : "critical,digitalSignature"));
  if (!is_authority) {
    RETURN_IF_ERROR(AddExtension(x509, &context, NID_ext_key_usage,
                                 identity.kind == PeerKind::kServer ? "serverAuth" : "clientAuth"));
  }
  RETURN_IF_ERROR(AddExtension(x509, &context, NID_subject_key_identifier, "hash"));
  RETURN_IF_ERROR(AddExtension(x509, &context, NID_authority_key_identifier, "keyid:always"));
  // The names were checked: no character of theirs means anything in this syntax.
  return AddExtension(x509, &context, NID_subject_alt_name, absl::StrCat("URI:", identity.Uri()));
}

absl::Status SetSubject(X509* x509, const PeerIdentity& identity) {
  X509_NAME* const name = X509_get_subject_name(x509);
  const auto add = [&](const char* field, const std::string& value) {
    return X509_NAME_add_entry_by_txt(name, field, MBSTRING_ASC,
                                      reinterpret_cast<const unsigned char*>(value.c_str()), -1, -1,
                                      0) == 1;
  };
  if (!add("O", absl::StrCat("fedge ", identity.federation).substr(0, 64)) ||
      !add("CN", identity.name)) {
    return internal::OpenSslError("cannot name a certificate's holder");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> MakeCertificateRequest(const PrivateKey& key) {
  const internal::X509ReqPtr request(X509_REQ_new());
  if (request == nullptr || X509_REQ_set_version(request.get(), 0) != 1 ||
      X509_REQ_set_pubkey(request.get(), key.handle()) != 1 ||
      X509_REQ_sign(request.get(), key.handle(), EVP_sha256()) <= 0) {
    return internal::OpenSslError("cannot make a certificate request");
  }
  unsigned char* der = nullptr;
  const int size = i2d_X509_REQ(request.get(), &der);
  if (size <= 0) return internal::OpenSslError("cannot encode a certificate request");
  std::string bytes(reinterpret_cast<const char*>(der), static_cast<size_t>(size));
  OPENSSL_free(der);
  return bytes;
}

absl::StatusOr<PublicKey> ParseCertificateRequest(absl::string_view der) {
  if (der.size() > kMaxRequestBytes) {
    return absl::InvalidArgumentError(absl::StrCat("certificate request: ", der.size(),
                                                   " bytes, allowed are ", kMaxRequestBytes));
  }
  const auto* data = reinterpret_cast<const unsigned char*>(der.data());
  const unsigned char* const end = data + der.size();
  const internal::X509ReqPtr request(d2i_X509_REQ(nullptr, &data, static_cast<long>(der.size())));
  EVP_PKEY* const key = request == nullptr ? nullptr : X509_REQ_get0_pubkey(request.get());
  ERR_clear_error();
  if (key == nullptr || data != end) {
    return absl::InvalidArgumentError("certificate request: damaged, not PKCS #10 in DER");
  }
  char curve[32] = "";
  const bool is_p256 = EVP_PKEY_get_group_name(key, curve, sizeof(curve), nullptr) == 1 &&
                       absl::string_view(curve) == "prime256v1";
  ERR_clear_error();
  if (!is_p256) return absl::InvalidArgumentError("certificate request: its key is not on P-256");
  const bool is_signed = X509_REQ_verify(request.get(), key) == 1;
  ERR_clear_error();
  if (!is_signed) {
    return absl::InvalidArgumentError("certificate request: not signed by the key it names");
  }
  EVP_PKEY_up_ref(key);
  return PublicKey(std::shared_ptr<EVP_PKEY>(internal::PkeyPtr(key)));
}

absl::StatusOr<Certificate> CertificateIssuer::Sign(const PublicKey& subject,
                                                    const PeerIdentity& identity, Validity validity,
                                                    const PrivateKey& issuer_key,
                                                    const Certificate* issuer) {
  internal::X509Ptr x509(X509_new());
  if (x509 == nullptr || X509_set_version(x509.get(), X509_VERSION_3) != 1 ||
      X509_set_pubkey(x509.get(), subject.handle()) != 1 ||
      ASN1_TIME_set(X509_getm_notBefore(x509.get()), absl::ToTimeT(validity.begin)) == nullptr ||
      ASN1_TIME_set(X509_getm_notAfter(x509.get()), absl::ToTimeT(validity.end)) == nullptr) {
    return internal::OpenSslError("cannot make a certificate");
  }
  RETURN_IF_ERROR(SetSerial(x509.get()));
  RETURN_IF_ERROR(SetSubject(x509.get(), identity));
  X509* const issuer_x509 = issuer == nullptr ? x509.get() : issuer->handle();
  X509_set_issuer_name(x509.get(), X509_get_subject_name(issuer_x509));
  RETURN_IF_ERROR(AddExtensions(x509.get(), identity, issuer));
  if (X509_sign(x509.get(), issuer_key.handle(), EVP_sha256()) <= 0) {
    return internal::OpenSslError("cannot sign a certificate");
  }
  return Certificate::Wrap(std::shared_ptr<x509_st>(std::move(x509)));
}

absl::StatusOr<CertificateIssuer> CertificateIssuer::Create(absl::string_view federation,
                                                            Validity validity) {
  RETURN_IF_ERROR(CheckPeerName(federation));
  ASSIGN_OR_RETURN(PrivateKey key, PrivateKey::Generate());
  // Two authorities of one federation have different names, or chains could be built wrongly.
  const PeerIdentity identity{PeerKind::kAuthority, std::string(federation),
                              key.public_key().Fingerprint().Hex().substr(0, 16)};
  ASSIGN_OR_RETURN(Certificate certificate,
                   Sign(key.public_key(), identity, validity, key, nullptr));
  return CertificateIssuer(std::move(key), std::move(certificate));
}

absl::StatusOr<CertificateIssuer> CertificateIssuer::FromPem(absl::string_view pem) {
  ASSIGN_OR_RETURN(PrivateKey key, PrivateKey::FromPem(pem));
  ASSIGN_OR_RETURN(Certificate certificate, Certificate::FromPem(pem));
  if (certificate.identity().kind != PeerKind::kAuthority || !certificate.Matches(key)) {
    return absl::InvalidArgumentError("holds no authority's certificate with its key");
  }
  return CertificateIssuer(std::move(key), std::move(certificate));
}

std::string CertificateIssuer::Pem() const { return key_.Pem() + certificate_.Pem(); }

absl::StatusOr<Certificate> CertificateIssuer::Issue(const PublicKey& key, PeerKind kind,
                                                     absl::string_view name,
                                                     Validity validity) const {
  RETURN_IF_ERROR(CheckPeerName(name));
  FEDGE_CHECK(kind != PeerKind::kAuthority);
  validity.end = std::min(validity.end, certificate_.not_after());
  return Sign(key, {kind, certificate_.identity().federation, std::string(name)}, validity, key_,
              &certificate_);
}

}  // namespace fedge
