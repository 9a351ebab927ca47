#include "tools/prepare/hf_weights.h"

#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status.h"
#include "tools/prepare/json_object.h"

namespace fedge {
namespace {

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";

}  // namespace

absl::Status HfWeights::AddFile(const std::string& path, Env& env) {
  ASSIGN_OR_RETURN(std::shared_ptr<const SafetensorsFile> file, SafetensorsFile::Open(path, env));
  for (const SafetensorsTensor& tensor : file->tensors()) {
    const auto added = file_of_.emplace(tensor.name, files_.size());
    if (!added.second) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", tensor.name, " is also in ",
                                                     files_[added.first->second]->path()));
    }
    names_.push_back(tensor.name);
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::StatusOr<HfWeights> HfWeights::Open(absl::string_view dir, Env& env) {
  HfWeights weights;
  const std::string index_path = JoinPath(dir, kIndex);
  if (!env.Exists(index_path)) {
    const std::string single = JoinPath(dir, kSingle);
    if (!env.Exists(single)) {
      return absl::NotFoundError(absl::StrCat(dir, ": neither ", kSingle, " nor ", kIndex,
                                              "; other weight formats are not read, save the "
                                              "model as safetensors"));
    }
    RETURN_IF_ERROR(weights.AddFile(single, env));
    return weights;
  }
  ASSIGN_OR_RETURN(const JsonObject index, JsonObject::Read(index_path, env));
  const nlohmann::json* const map = index.Find("weight_map");
  if (map == nullptr || !map->is_object()) return index.Error("weight_map", "is not an object");
  std::set<std::string> shards;
  for (const auto& [name, shard] : map->items()) {
    if (!shard.is_string()) return index.Error("weight_map", "has a file that is not a string");
    const std::string file = shard.get<std::string>();
    if (file.find('/') != std::string::npos || file.empty() || file[0] == '.') {
      return index.Error("weight_map", "names a file outside of the folder");
    }
    shards.insert(file);
  }
  for (const std::string& shard : shards) {
    RETURN_IF_ERROR(weights.AddFile(JoinPath(dir, shard), env));
  }
  for (const auto& [name, shard] : map->items()) {
    if (weights.file_of_.contains(name)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        JoinPath(dir, shard.get<std::string>()), ": tensor ", name, " of ", kIndex, " is missing"));
  }
  return weights;
}

const SafetensorsTensor* HfWeights::Find(absl::string_view name) const {
  const auto found = file_of_.find(name);
  return found == file_of_.end() ? nullptr : files_[found->second]->Find(name);
}

const std::string& HfWeights::FileOf(absl::string_view name) const {
  return files_[file_of_.at(name)]->path();
}

void HfWeights::Release(absl::string_view name) const {
  const SafetensorsFile& file = *files_[file_of_.at(name)];
  file.Release(file.Find(name)->data);
}

}  // namespace fedge
