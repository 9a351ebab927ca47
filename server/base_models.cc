#include "server/base_models.h"

#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/status.h"

namespace fedge {

absl::StatusOr<std::string> BaseModels::PathOf(absl::string_view name) const {
  if (dir_.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", name,
                     "': this server has no folder of models; set model_dir in its "
                     "configuration"));
  }
  const absl::string_view given = name;
  if (absl::ConsumePrefix(&name, dir_)) absl::ConsumePrefix(&name, "/");
  const std::vector<absl::string_view> parts = absl::StrSplit(name, '/');
  for (const absl::string_view part : parts) {
    if (part.empty() || part == "..") {
      return absl::InvalidArgumentError(
          absl::StrCat("'", given, "' is not a file in '", dir_, "'; name one relative to it"));
    }
  }
  return JoinPath(dir_, name);
}

absl::StatusOr<std::shared_ptr<const BaseModel>> BaseModels::Load(const std::string& path) {
  std::weak_ptr<const BaseModel>& loaded = loaded_[path];
  if (std::shared_ptr<const BaseModel> model = loaded.lock()) return model;
  ASSIGN_OR_RETURN(std::shared_ptr<const BaseModel> model, BaseModel::Load(path, env_));
  loaded = model;
  return model;
}

}  // namespace fedge
