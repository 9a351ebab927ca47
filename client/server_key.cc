#include "client/server_key.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/security/signing.h"

namespace fedge {
namespace {

std::string ShortName(absl::string_view key) { return absl::BytesToHexString(key.substr(0, 8)); }

// What of the manifest is not that of `source`; empty: nothing.
std::string Mismatch(const v1::VersionManifest& manifest, const v1::AdapterSource& source,
                     const LoraSpec& spec, const Digest& base_model) {
  if (manifest.run_id() != source.run_id()) {
    return absl::StrCat("run '", manifest.run_id(), "'");
  }
  if (manifest.version() != source.version()) return absl::StrCat("version ", manifest.version());
  if (manifest.base_model_sha256() != base_model.Raw()) return "another base model";
  if (manifest.layout_sha256() != spec.layout_hash().Raw()) return "another adapter shape";
  return "";
}

}  // namespace

DirectoryStateStore KeptServerKeys(absl::string_view state_dir, Env* env) {
  return DirectoryStateStore(JoinPath(state_dir, "nodes"), env, ".server-key");
}

ServerKey::ServerKey(std::string node_id, std::string pinned, StateStore* kept)
    : node_id_(std::move(node_id)), kept_(kept), trusted_(std::move(pinned)) {}

absl::Status ServerKey::LoadKept() {
  if (!trusted_.empty()) return absl::OkStatus();
  const absl::StatusOr<std::string> kept = kept_->Read(node_id_);
  if (absl::IsNotFound(kept.status())) return absl::OkStatus();
  RETURN_IF_ERROR(kept.status());
  if (kept->size() != kSigningKeyBytes) {
    return absl::DataLossError("the kept key of the server is damaged; configure it");
  }
  trusted_ = *kept;
  return absl::OkStatus();
}

absl::StatusOr<std::optional<Digest>> ServerKey::Check(const v1::AdapterSource& source,
                                                       absl::string_view context,
                                                       const LoraSpec& spec,
                                                       const Digest& base_model) {
  RETURN_IF_ERROR(LoadKept());
  const v1::SignedManifest& proof = source.manifest();
  const std::string what = absl::StrCat("version ", source.version(), " of run '", source.run_id(),
                                        "' was not loaded: ");
  if (proof.signature().empty()) {
    if (trusted_.empty()) return std::optional<Digest>();
    return absl::UnauthenticatedError(
        absl::StrCat(what, "it is not signed, and this node trusts the server's key ",
                     ShortName(trusted_), "..."));
  }
  if (!trusted_.empty() && proof.public_key() != trusted_) {
    return absl::UnauthenticatedError(
        absl::StrCat(what, "it is signed with the key ", ShortName(proof.public_key()),
                     "..., and this node trusts ", ShortName(trusted_),
                     "...; if the server was set up anew, remove the kept key (*.server-key in the "
                     "state folder)"));
  }
  const absl::Status signature =
      VerifySignature(proof.public_key(), context, proof.manifest(), proof.signature());
  if (!signature.ok()) return absl::UnauthenticatedError(absl::StrCat(what, signature.message()));
  v1::VersionManifest manifest;
  if (!manifest.ParseFromString(proof.manifest())) {
    return absl::UnauthenticatedError(absl::StrCat(what, "its manifest cannot be read"));
  }
  const std::string other = Mismatch(manifest, source, spec, base_model);
  const absl::StatusOr<Digest> values = DigestFromRaw(manifest.values_sha256());
  if (!other.empty() || !values.ok()) {
    return absl::UnauthenticatedError(
        absl::StrCat(what, "its signature is that of ", other.empty() ? "something else" : other));
  }
  if (trusted_.empty()) {
    RETURN_IF_ERROR(kept_->Write(node_id_, proof.public_key()));
    trusted_ = proof.public_key();
  }
  return std::optional<Digest>(*values);
}

}  // namespace fedge
