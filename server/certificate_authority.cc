#include "server/certificate_authority.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "common/base/status.h"
#include "common/security/keys.h"

namespace fedge {
namespace {

constexpr absl::Duration kAuthorityLifetime = absl::Hours(24 * 3650);
constexpr absl::Duration kServerLifetime = absl::Hours(24 * 365);
constexpr absl::Duration kServerRenewal = absl::Hours(24 * 90);  // before its end
constexpr absl::string_view kPrefix = "authority-";
constexpr absl::string_view kSuffix = ".pem";

// N of "authority-N.pem"; 0 for other files.
uint32_t GenerationOf(absl::string_view name) {
  uint32_t number = 0;
  if (!absl::ConsumePrefix(&name, kPrefix) || !absl::ConsumeSuffix(&name, kSuffix) ||
      !absl::SimpleAtoi(name, &number)) {
    return 0;
  }
  return number;
}

absl::Status Damaged(absl::string_view path, const absl::Status& status) {
  return absl::DataLossError(absl::StrCat(path, ": ", status.message(),
                                          "; restore the folder from a backup (without it all "
                                          "devices must join again)"));
}

}  // namespace

CertificateAuthority::CertificateAuthority(CertificateAuthorityOptions options)
    : options_(std::move(options)),
      files_{JoinPath(options_.dir, "server-key.pem"), JoinPath(options_.dir, "server.pem"),
             JoinPath(options_.dir, "authorities.pem")} {}

absl::StatusOr<std::unique_ptr<CertificateAuthority>> CertificateAuthority::Open(
    CertificateAuthorityOptions options) {
  std::unique_ptr<CertificateAuthority> authority(new CertificateAuthority(std::move(options)));
  absl::MutexLock lock(&authority->mutex_);
  RETURN_IF_ERROR(authority->Load());
  if (authority->generations_.empty()) {
    if (!authority->options_.may_create) {
      return absl::FailedPreconditionError(
          absl::StrCat(authority->options_.dir, ": the authority's key is gone, but nodes have ",
                       "joined; restore authority-*.pem from a backup, or move the folder away ",
                       "and let all devices join again"));
    }
    // Names the federation for ever: a fingerprint of its first key would do as well.
    ASSIGN_OR_RETURN(const PrivateKey name, PrivateKey::Generate());
    authority->federation_ = name.public_key().Fingerprint().Hex().substr(0, 32);
    RETURN_IF_ERROR(authority->AddGeneration());
  }
  authority->federation_ =
      authority->generations_.back().issuer.certificate().identity().federation;
  RETURN_IF_ERROR(authority->Advance());
  return authority;
}

absl::Status CertificateAuthority::Load() {
  if (!options_.env->Exists(options_.dir)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<std::string> names, options_.env->ListDir(options_.dir));
  for (const std::string& name : names) {
    if (GenerationOf(name) == 0) continue;
    const std::string path = JoinPath(options_.dir, name);
    ASSIGN_OR_RETURN(const std::string pem, ReadPrivateFile(path, *options_.env));
    absl::StatusOr<CertificateIssuer> issuer = CertificateIssuer::FromPem(pem);
    if (!issuer.ok()) return Damaged(path, issuer.status());
    generations_.push_back({path, *std::move(issuer)});
  }
  // Zero-padded names sort by number, and so does ListDir.
  return absl::OkStatus();
}

absl::Status CertificateAuthority::AddGeneration() {
  const absl::Time now = options_.clock->Now();
  ASSIGN_OR_RETURN(
      CertificateIssuer issuer,
      CertificateIssuer::Create(federation_, {now - kBackdating, now + kAuthorityLifetime}));
  const uint32_t number =
      generations_.empty() ? 1 : GenerationOf(BaseName(generations_.back().path)) + 1;
  const std::string path =
      JoinPath(options_.dir, absl::StrFormat("%s%06d%s", kPrefix, number, kSuffix));
  RETURN_IF_ERROR(WritePrivateFile(path, issuer.Pem(), *options_.env));
  generations_.push_back({path, std::move(issuer)});
  return absl::OkStatus();
}

absl::Status CertificateAuthority::DropOldest() {
  RETURN_IF_ERROR(options_.env->Remove(generations_.front().path));
  RETURN_IF_ERROR(options_.env->SyncDir(options_.dir));
  generations_.erase(generations_.begin());
  return absl::OkStatus();
}

const CertificateAuthority::Generation& CertificateAuthority::Serving() const {
  const absl::Time known_to_all = options_.clock->Now() - options_.node_lifetime;
  for (size_t i = generations_.size(); i-- > 1;) {
    if (generations_[i].made() <= known_to_all) return generations_[i];
  }
  return generations_.front();
}

bool CertificateAuthority::IsServerCertificateGood() const {
  const absl::StatusOr<std::string> key = ReadPrivateFile(files_.key, *options_.env);
  const absl::StatusOr<std::string> chain = options_.env->ReadFile(files_.chain);
  const absl::StatusOr<std::string> trusted = options_.env->ReadFile(files_.authorities);
  if (!key.ok() || !chain.ok() || !trusted.ok()) return false;
  const absl::StatusOr<PrivateKey> private_key = PrivateKey::FromPem(*key);
  const absl::StatusOr<Certificate> leaf = Certificate::FromPem(*chain);
  if (!private_key.ok() || !leaf.ok() || !leaf->Matches(*private_key)) return false;
  const absl::Time now = options_.clock->Now();
  return *chain == leaf->Pem() + TrustedPem() && *trusted == TrustedPem() &&
         leaf->not_after() >
             std::min(now + kServerRenewal,
                      Serving().issuer.certificate().not_after() - kServerRenewal) &&
         VerifyCertificate(*leaf, {Serving().issuer.certificate()}, now).ok();
}

absl::Status CertificateAuthority::KeepServerCertificate() {
  const absl::StatusOr<uint32_t> mode = options_.env->Permissions(files_.key);
  if (mode.ok()) RETURN_IF_ERROR(ReadPrivateFile(files_.key, *options_.env).status());
  if (IsServerCertificateGood()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const PrivateKey key, PrivateKey::Generate());
  const absl::Time now = options_.clock->Now();
  ASSIGN_OR_RETURN(const Certificate leaf,
                   Serving().issuer.Issue(key.public_key(), PeerKind::kServer, "server",
                                          {now - kBackdating, now + kServerLifetime}));
  // A reader between the writes finds a key that does not match, and looks again.
  RETURN_IF_ERROR(WritePrivateFile(files_.key, key.Pem(), *options_.env));
  RETURN_IF_ERROR(options_.env->WriteFileAtomic(files_.chain, leaf.Pem() + TrustedPem()));
  return options_.env->WriteFileAtomic(files_.authorities, TrustedPem());
}

absl::Status CertificateAuthority::Advance() {
  const absl::Time now = options_.clock->Now();
  while (generations_.size() > 1 && generations_[1].made() + 2 * options_.node_lifetime <= now) {
    RETURN_IF_ERROR(DropOldest());
  }
  return KeepServerCertificate();
}

absl::Status CertificateAuthority::Maintain() {
  absl::MutexLock lock(&mutex_);
  return Advance();
}

absl::StatusOr<absl::Time> CertificateAuthority::Rotate(bool at_once) {
  absl::MutexLock lock(&mutex_);
  if (!at_once && generations_.size() > 1) {
    return absl::FailedPreconditionError(absl::StrCat(
        "a rotation is under way until ",
        absl::FormatTime(generations_[1].made() + 2 * options_.node_lifetime, absl::UTCTimeZone()),
        "; wait, or rotate at once if a key is known to others (all devices must join again)"));
  }
  RETURN_IF_ERROR(AddGeneration());
  while (at_once && generations_.size() > 1) RETURN_IF_ERROR(DropOldest());
  RETURN_IF_ERROR(Advance());
  const absl::Time now = options_.clock->Now();
  return at_once ? now : now + options_.node_lifetime;
}

absl::StatusOr<Certificate> CertificateAuthority::Issue(const PublicKey& key, PeerKind kind,
                                                        absl::string_view name,
                                                        absl::Duration lifetime) {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = options_.clock->Now();
  return generations_.back().issuer.Issue(key, kind, name, {now - kBackdating, now + lifetime});
}

std::string CertificateAuthority::TrustedPem() const {
  std::string pem;
  for (const Generation& generation : generations_) pem += generation.issuer.certificate().Pem();
  return pem;
}

std::string CertificateAuthority::AuthoritiesPem() {
  absl::MutexLock lock(&mutex_);
  return TrustedPem();
}

std::vector<Certificate> CertificateAuthority::authorities() {
  absl::MutexLock lock(&mutex_);
  std::vector<Certificate> certificates;
  for (const Generation& generation : generations_) {
    certificates.push_back(generation.issuer.certificate());
  }
  return certificates;
}

Digest CertificateAuthority::serving_authority() {
  absl::MutexLock lock(&mutex_);
  return Serving().issuer.certificate().Fingerprint();
}

}  // namespace fedge
