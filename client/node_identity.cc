#include "client/node_identity.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/address.h"
#include "common/base/failpoint.h"
#include "common/base/rng.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr absl::string_view kNode = "node.pem";
constexpr absl::string_view kAuthorities = "authorities.pem";
constexpr absl::string_view kServer = "server";
constexpr absl::string_view kJoiningKey = "joining-key.pem";

absl::Status Damaged(const std::string& path, const absl::Status& status) {
  if (absl::IsPermissionDenied(status)) return status;
  return absl::DataLossError(absl::StrCat(path, ": ", status.message(),
                                          "; restore it, or join again with a token of this node"));
}

// Whether `certificate` is a node's, for `key`, by one of `authorities`. Dates are the server's
// affair: this device's clock may be wrong.
absl::Status CheckIssued(const Certificate& certificate, const PrivateKey& key,
                         const std::vector<Certificate>& authorities) {
  if (certificate.identity().kind != PeerKind::kNode || !certificate.Matches(key)) {
    return absl::DataLossError("the certificate is not a node's with this key");
  }
  return VerifyCertificate(certificate, authorities, absl::InfinitePast(), DateCheck::kIgnored);
}

}  // namespace

absl::Time RenewalTime(const Certificate& certificate) {
  const absl::Duration life = certificate.not_after() - certificate.made();
  Rng rng(StableHash(certificate.Serial()));
  return certificate.made() + life * (2.0 / 3 + 0.1 * (rng.Uniform() - 0.5));
}

IdentityFolder::IdentityFolder(absl::string_view state_dir, Env* env)
    : dir_(JoinPath(state_dir, "identity")), env_(env) {}

bool IdentityFolder::Exists() const { return env_->Exists(Path(kNode)); }

absl::StatusOr<NodeIdentity> IdentityFolder::Load() const {
  if (!Exists()) {
    return absl::NotFoundError(
        absl::StrCat(dir_, ": this device has not joined a federation: fedge-client join --token ",
                     "TOKEN (from the server's operator)"));
  }
  const absl::StatusOr<std::string> pem = ReadPrivateFile(Path(kNode), *env_);
  if (!pem.ok()) return pem.status();
  absl::StatusOr<PrivateKey> key = PrivateKey::FromPem(*pem);
  if (!key.ok()) return Damaged(Path(kNode), key.status());
  absl::StatusOr<Certificate> certificate = Certificate::FromPem(*pem);
  if (!certificate.ok()) return Damaged(Path(kNode), certificate.status());
  ASSIGN_OR_RETURN(const std::string authorities_pem, env_->ReadFile(Path(kAuthorities)));
  absl::StatusOr<std::vector<Certificate>> authorities = Certificate::ListFromPem(authorities_pem);
  if (!authorities.ok()) return Damaged(Path(kAuthorities), authorities.status());
  // An older authority of the certificate may be gone already: only the key must fit.
  if (!certificate->Matches(*key)) {
    return Damaged(Path(kNode), absl::DataLossError("its key and certificate do not match"));
  }
  ASSIGN_OR_RETURN(const std::string server, env_->ReadFile(Path(kServer)));
  const absl::StatusOr<HostPort> address =
      ParseHostPort(absl::StripAsciiWhitespace(server), "server");
  if (!address.ok()) return Damaged(Path(kServer), address.status());
  return NodeIdentity{*std::move(key), *std::move(certificate), *std::move(authorities),
                      address->Text()};
}

absl::StatusOr<PrivateKey> IdentityFolder::JoiningKey() {
  const std::string path = Path(kJoiningKey);
  if (env_->Exists(path)) {
    ASSIGN_OR_RETURN(const std::string pem, ReadPrivateFile(path, *env_));
    absl::StatusOr<PrivateKey> key = PrivateKey::FromPem(pem);
    if (key.ok()) return key;
  }
  ASSIGN_OR_RETURN(PrivateKey key, PrivateKey::Generate());
  RETURN_IF_ERROR(WritePrivateFile(path, key.Pem(), *env_));
  return key;
}

absl::StatusOr<NodeIdentity> IdentityFolder::Store(const PrivateKey& key,
                                                   const v1::NodeCertificate& issued,
                                                   absl::string_view server) {
  ASSIGN_OR_RETURN(Certificate certificate, Certificate::FromPem(issued.certificate_pem()));
  ASSIGN_OR_RETURN(std::vector<Certificate> authorities,
                   Certificate::ListFromPem(issued.authorities_pem()));
  RETURN_IF_ERROR(CheckIssued(certificate, key, authorities));
  std::string authorities_pem;
  for (const Certificate& authority : authorities) authorities_pem += authority.Pem();
  // node.pem last: with it the device has joined.
  RETURN_IF_ERROR(env_->CreateDirs(dir_));
  RETURN_IF_ERROR(env_->WriteFileAtomic(Path(kAuthorities), authorities_pem));
  RETURN_IF_ERROR(env_->WriteFileAtomic(Path(kServer), absl::StrCat(server, "\n")));
  RETURN_IF_ERROR(FEDGE_FAILPOINT_RUN(
      "client.identity", WritePrivateFile(Path(kNode), key.Pem() + certificate.Pem(), *env_)));
  if (env_->Exists(Path(kJoiningKey))) RETURN_IF_ERROR(env_->Remove(Path(kJoiningKey)));
  return NodeIdentity{key, std::move(certificate), std::move(authorities), std::string(server)};
}

absl::Status IdentityFolder::Remove() {
  return env_->Exists(dir_) ? env_->Remove(dir_) : absl::OkStatus();
}

}  // namespace fedge
