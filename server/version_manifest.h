// What a version is, in the bytes that are hashed and signed (fedge/v1/registry.proto).
#ifndef FEDGE_SERVER_VERSION_MANIFEST_H_
#define FEDGE_SERVER_VERSION_MANIFEST_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/base/digest.h"
#include "server/coordinator.h"

namespace fedge {

struct ManifestParts {
  std::string run_id;
  uint64_t version = 0;
  uint64_t round = 0;              // 0: no round made it
  std::optional<uint64_t> origin;  // of a rollback
  absl::string_view parent;        // manifest of the version before; empty: there is none
  Digest base_model, layout;
  Digest values;  // what devices hold
  Digest master;
  Digest config;
  absl::Span<const Contribution> contributions;  // sorted by node and round
};

// A serialized v1::VersionManifest.
std::string MakeManifest(const ManifestParts& parts);

// SHA-256 of the list of (node, round, digest, weight).
Digest ContributionsDigest(absl::Span<const Contribution> contributions);

}  // namespace fedge

#endif  // FEDGE_SERVER_VERSION_MANIFEST_H_
