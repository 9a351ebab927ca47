// The adapters a device has, as files for other programs on it: the global one of each version, and
// the better of that and the one trained here.
//
//   <dir>/current -> v12       the global adapter: adapter.gguf (llama.cpp) and peft/
//   <dir>/best    -> p12       the better one on this device's held-out records
//   <dir>/choice.json          how that was decided
//
// Links are replaced atomically, so that a reader finds a whole version at a path that never
// changes; folders no link names any more are removed.
#ifndef FEDGE_CLIENT_ADAPTER_FOLDER_H_
#define FEDGE_CLIENT_ADAPTER_FOLDER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "client/local_training.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/env.h"
#include "common/model/base_model.h"
#include "fedge/v1/client.pb.h"

namespace fedge {

// Writes `adapter` to <dir>/adapter.gguf and <dir>/peft/.
absl::Status WriteAdapterBothWays(const LoraAdapter& adapter, const BaseModel& base,
                                  const std::string& base_name, const std::string& dir, Env& env);

// Not thread-safe.
class AdapterFolder {
 public:
  // `env` is borrowed. `on_change` (may be empty) comes after each change of a link. Adapters of
  // another base or run than the last one's replace what is there.
  AdapterFolder(std::string dir, std::shared_ptr<const BaseModel> base, std::string base_name,
                Env* env, std::function<void()> on_change);

  // The global adapter of `version`; nothing happens when it is there already. best/ follows it as
  // long as it is no personal one.
  absl::Status PutGlobal(const LoraAdapter& adapter, const std::string& run_id, uint64_t version);

  // Both adapters of a trained task, measured: best/ becomes the better one, or stays an earlier
  // one that is better still on the same records.
  absl::Status PutTrained(const LoraAdapter& personal, const LocalLosses& losses);

  const v1::AdapterChoice& choice() const { return choice_; }

 private:
  // Writes the folder `name` unless it is there.
  absl::Status Write(const LoraAdapter& adapter, const std::string& name);
  absl::Status Link(const std::string& link, const std::string& name);
  absl::Status SaveChoice();
  void RemoveUnused();
  std::string Path(const std::string& name) const { return JoinPath(dir_, name); }

  const std::string dir_;
  const std::shared_ptr<const BaseModel> base_;
  const std::string base_name_;
  Env* const env_;
  const std::function<void()> on_change_;
  v1::AdapterChoice choice_;
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_ADAPTER_FOLDER_H_
