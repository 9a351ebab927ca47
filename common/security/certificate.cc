#include "common/security/certificate.h"

#include <ctime>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/base/status.h"
#include "common/security/openssl_ptr.h"

namespace fedge {
namespace {

constexpr absl::string_view kScheme = "spiffe://";
constexpr size_t kMaxNameBytes = 64;
constexpr size_t kMaxCertificates = 16;
constexpr size_t kMaxPemBytes = 256 << 10;
constexpr PeerKind kKinds[] = {PeerKind::kAuthority, PeerKind::kServer, PeerKind::kNode,
                               PeerKind::kAdminRead, PeerKind::kAdminWrite};

absl::Time TimeOf(const ASN1_TIME* time) {
  std::tm fields = {};
  if (ASN1_TIME_to_tm(time, &fields) != 1) return absl::InfinitePast();
  return absl::FromTimeT(timegm(&fields));
}

// "3 hours", "2 days": for people who look for a wrong clock.
std::string Rough(absl::Duration duration) {
  const double hours = absl::ToDoubleHours(duration);
  if (hours < 1) return absl::StrFormat("%.0f minutes", absl::ToDoubleMinutes(duration));
  return hours < 48 ? absl::StrFormat("%.1f hours", hours)
                    : absl::StrFormat("%.1f days", hours / 24);
}

absl::StatusOr<PeerIdentity> IdentityOf(X509* x509) {
  const internal::GeneralNamesPtr names(
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(x509, NID_subject_alt_name, nullptr, nullptr)));
  ERR_clear_error();
  const int count = names == nullptr ? 0 : sk_GENERAL_NAME_num(names.get());
  for (int i = 0; i < count; ++i) {
    const GENERAL_NAME* const name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) continue;
    const ASN1_IA5STRING* const uri = name->d.uniformResourceIdentifier;
    return ParsePeerUri(absl::string_view(reinterpret_cast<const char*>(ASN1_STRING_get0_data(uri)),
                                          static_cast<size_t>(ASN1_STRING_length(uri))));
  }
  return absl::InvalidArgumentError("certificate: names no peer of a federation");
}

absl::Status CheckDates(const Certificate& certificate, absl::Time now) {
  if (now < certificate.not_before()) {
    return absl::UnauthenticatedError(
        absl::StrCat("certificate of ", certificate.identity().Uri(), ": valid only in ",
                     Rough(certificate.not_before() - now),
                     "; if it is new, the clock of this machine is behind"));
  }
  if (now > certificate.not_after()) {
    return absl::UnauthenticatedError(absl::StrCat(
        "certificate of ", certificate.identity().Uri(), ": expired ",
        Rough(now - certificate.not_after()), " ago; if it should not, a clock is wrong"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::string_view PeerKindName(PeerKind kind) {
  switch (kind) {
    case PeerKind::kAuthority:
      return "ca";
    case PeerKind::kServer:
      return "server";
    case PeerKind::kNode:
      return "node";
    case PeerKind::kAdminRead:
      return "admin-read";
    case PeerKind::kAdminWrite:
      return "admin-write";
  }
  return "unknown";
}

std::string PeerIdentity::Uri() const {
  return absl::StrCat(kScheme, federation, "/", PeerKindName(kind), "/", name);
}

absl::Status CheckPeerName(absl::string_view name) {
  bool good = !name.empty() && name.size() <= kMaxNameBytes;
  for (const char c : name) {
    good = good &&
           (absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-');
  }
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("name \"", absl::CHexEscape(name.substr(0, kMaxNameBytes)), "\": must be 1 to ",
                   kMaxNameBytes, " letters, digits, '.', '_' or '-'"));
}

absl::StatusOr<PeerIdentity> ParsePeerUri(absl::string_view uri) {
  const absl::Status bad = absl::InvalidArgumentError(
      "certificate: its URI is not spiffe://FEDERATION/KIND/NAME of a peer");
  if (uri.substr(0, kScheme.size()) != kScheme) return bad;
  const std::vector<absl::string_view> parts =
      absl::StrSplit(uri.substr(kScheme.size()), absl::MaxSplits('/', 3));
  if (parts.size() != 3) return bad;
  for (const PeerKind kind : kKinds) {
    if (parts[1] != PeerKindName(kind)) continue;
    if (!CheckPeerName(parts[0]).ok() || !CheckPeerName(parts[2]).ok()) return bad;
    return PeerIdentity{kind, std::string(parts[0]), std::string(parts[2])};
  }
  return bad;
}

absl::StatusOr<Certificate> Certificate::Wrap(std::shared_ptr<x509_st> x509) {
  ASSIGN_OR_RETURN(PeerIdentity identity, IdentityOf(x509.get()));
  return Certificate(std::move(x509), std::move(identity));
}

absl::StatusOr<std::vector<Certificate>> Certificate::ListFromPem(absl::string_view pem) {
  if (pem.size() > kMaxPemBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("certificates: ", pem.size(), " bytes, allowed are ", kMaxPemBytes));
  }
  const internal::BioPtr bio = internal::BioOver(pem);
  std::vector<Certificate> certificates;
  while (certificates.size() < kMaxCertificates) {
    internal::X509Ptr x509(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
    ERR_clear_error();
    if (x509 == nullptr) break;
    ASSIGN_OR_RETURN(Certificate certificate, Wrap(std::shared_ptr<x509_st>(std::move(x509))));
    certificates.push_back(std::move(certificate));
  }
  if (certificates.empty()) {
    return absl::InvalidArgumentError("holds no certificate in PEM, or a damaged one");
  }
  return certificates;
}

absl::StatusOr<Certificate> Certificate::FromPem(absl::string_view pem) {
  ASSIGN_OR_RETURN(std::vector<Certificate> certificates, ListFromPem(pem));
  return std::move(certificates.front());
}

std::string Certificate::Pem() const {
  const internal::BioPtr bio(BIO_new(BIO_s_mem()));
  FEDGE_CHECK(PEM_write_bio_X509(bio.get(), x509_.get()) == 1, "cannot encode a certificate");
  return internal::BytesOf(bio);
}

Digest Certificate::Fingerprint() const {
  Digest digest;
  unsigned int size = 0;
  FEDGE_CHECK(X509_digest(x509_.get(), EVP_sha256(), digest.bytes.data(), &size) == 1,
              "cannot hash a certificate");
  return digest;
}

std::string Certificate::Serial() const {
  const internal::BignumPtr number(
      ASN1_INTEGER_to_BN(X509_get0_serialNumber(x509_.get()), nullptr));
  char* const text = number == nullptr ? nullptr : BN_bn2hex(number.get());
  if (text == nullptr) return "";
  const std::string serial = absl::AsciiStrToLower(text);
  OPENSSL_free(text);
  return serial;
}

absl::Time Certificate::not_before() const { return TimeOf(X509_get0_notBefore(x509_.get())); }
absl::Time Certificate::not_after() const { return TimeOf(X509_get0_notAfter(x509_.get())); }

PublicKey Certificate::public_key() const {
  return PublicKey(std::shared_ptr<EVP_PKEY>(internal::PkeyPtr(X509_get_pubkey(x509_.get()))));
}

bool Certificate::Matches(const PrivateKey& key) const {
  const bool matches = X509_check_private_key(x509_.get(), key.handle()) == 1;
  ERR_clear_error();
  return matches;
}

absl::Status VerifyCertificate(const Certificate& certificate,
                               absl::Span<const Certificate> authorities, absl::Time now,
                               DateCheck dates) {
  if (dates == DateCheck::kStrict) RETURN_IF_ERROR(CheckDates(certificate, now));
  const internal::X509StorePtr store(X509_STORE_new());
  for (const Certificate& authority : authorities) {
    X509_STORE_add_cert(store.get(), authority.handle());
  }
  const internal::X509StoreCtxPtr context(X509_STORE_CTX_new());
  if (X509_STORE_CTX_init(context.get(), store.get(), certificate.handle(), nullptr) != 1) {
    return internal::OpenSslError("cannot check a certificate");
  }
  X509_VERIFY_PARAM* const parameters = X509_STORE_CTX_get0_param(context.get());
  const bool is_server = certificate.identity().kind == PeerKind::kServer;
  X509_VERIFY_PARAM_set_purpose(parameters,
                                is_server ? X509_PURPOSE_SSL_SERVER : X509_PURPOSE_SSL_CLIENT);
  // The dates were judged above, by the clock that the caller believes.
  X509_VERIFY_PARAM_set_flags(parameters, X509_V_FLAG_NO_CHECK_TIME | X509_V_FLAG_X509_STRICT);
  const int verified = X509_verify_cert(context.get());
  const int reason = X509_STORE_CTX_get_error(context.get());
  ERR_clear_error();
  if (verified == 1) return absl::OkStatus();
  const bool unknown_issuer = reason == X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY ||
                              reason == X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN ||
                              reason == X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT;
  return absl::UnauthenticatedError(
      absl::StrCat("certificate of ", certificate.identity().Uri(), ": ",
                   unknown_issuer ? "of another federation, its authority is not known here"
                                  : X509_verify_cert_error_string(reason)));
}

}  // namespace fedge
