// The tensors of a Hugging Face folder: model.safetensors, or the shards that
// model.safetensors.index.json lists.
#ifndef FEDGE_TOOLS_PREPARE_HF_WEIGHTS_H_
#define FEDGE_TOOLS_PREPARE_HF_WEIGHTS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/env.h"
#include "common/formats/safetensors.h"

namespace fedge {

// Immutable, thread-safe; keeps the files mapped.
class HfWeights {
 public:
  // NotFound: neither file, or a shard is missing. InvalidArgument: a damaged file, a tensor in two
  // shards or in none. Unimplemented: tensors that are not F32, F16 or BF16.
  static absl::StatusOr<HfWeights> Open(absl::string_view dir, Env& env);

  const SafetensorsTensor* Find(absl::string_view name) const;      // null when absent
  const std::vector<std::string>& names() const { return names_; }  // in file order
  // The file of a tensor, for messages.
  const std::string& FileOf(absl::string_view name) const;
  // The tensor is not needed for now.
  void Release(absl::string_view name) const;

 private:
  absl::Status AddFile(const std::string& path, Env& env);

  std::vector<std::shared_ptr<const SafetensorsFile>> files_;
  std::vector<std::string> names_;
  absl::flat_hash_map<std::string, size_t> file_of_;
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_PREPARE_HF_WEIGHTS_H_
