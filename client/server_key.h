// Whose versions this node loads: the server's public key, configured or taken over from the first
// signed version, and the check of a manifest before anything is fetched (proto/PROTOCOL.md).
//
// Not here: how fresh a version is, which the connection vouches for.
#ifndef FEDGE_CLIENT_SERVER_KEY_H_
#define FEDGE_CLIENT_SERVER_KEY_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/participant_state.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/digest.h"
#include "fedge/v1/federation.pb.h"

namespace fedge {

// Where a device keeps the server's key. `env` must outlive it.
DirectoryStateStore KeptServerKeys(absl::string_view state_dir, Env* env);

// Not thread-safe; one per participant.
class ServerKey {
 public:
  // `pinned`: 32 bytes; empty: the key of the first signed version is kept in `kept` (must outlive
  // this object) and trusted from then on.
  ServerKey(std::string node_id, std::string pinned, StateStore* kept);

  // The SHA-256 of the values that `source` leads to, as the trusted key signed it in `context`;
  // nothing when no key is trusted and nothing is signed. Unauthenticated: no signature, another
  // key's, or one over another version, run, base model or shape; one line says which. DataLoss:
  // the kept key is damaged. Also codes of StateStore.
  absl::StatusOr<std::optional<Digest>> Check(const v1::AdapterSource& source,
                                              absl::string_view context, const LoraSpec& spec,
                                              const Digest& base_model);

 private:
  absl::Status LoadKept();

  const std::string node_id_;
  StateStore* const kept_;
  std::string trusted_;  // empty: none yet
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_SERVER_KEY_H_
