#include "server/version_manifest.h"

#include "common/base/byte_io.h"
#include "fedge/v1/registry.pb.h"

namespace fedge {

Digest ContributionsDigest(absl::Span<const Contribution> contributions) {
  ByteWriter writer;
  for (const Contribution& part : contributions) {
    writer.Write<uint64_t>(part.node_id.size());
    writer.WriteBytes(part.node_id);
    writer.Write<uint64_t>(part.round);
    writer.WriteBytes(part.digest.Raw());
    writer.Write<uint64_t>(part.weight);
  }
  return Sha256Of(writer.bytes());
}

std::string MakeManifest(const ManifestParts& parts) {
  v1::VersionManifest manifest;
  manifest.set_run_id(parts.run_id);
  manifest.set_version(parts.version);
  if (!parts.parent.empty()) manifest.set_parent_sha256(Sha256Of(parts.parent).Raw());
  manifest.set_round(parts.round);
  if (parts.origin) manifest.set_origin(*parts.origin);
  manifest.set_base_model_sha256(parts.base_model.Raw());
  manifest.set_layout_sha256(parts.layout.Raw());
  manifest.set_values_sha256(parts.values.Raw());
  manifest.set_master_sha256(parts.master.Raw());
  manifest.set_contributions_sha256(ContributionsDigest(parts.contributions).Raw());
  manifest.set_config_sha256(parts.config.Raw());
  return manifest.SerializeAsString();
}

}  // namespace fedge
