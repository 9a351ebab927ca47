// The base models of a server: which files operators may name, and each model loaded once for all
// runs that train on it.
#ifndef FEDGE_SERVER_BASE_MODELS_H_
#define FEDGE_SERVER_BASE_MODELS_H_

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/env.h"
#include "common/model/base_model.h"

namespace fedge {

// Not thread-safe.
class BaseModels {
 public:
  // `dir`: the folder of models; empty: there is none. `env` must outlive this object.
  BaseModels(std::string dir, Env& env) : dir_(std::move(dir)), env_(env) {}

  // The path of `name` in the folder: as it is, or with the folder before it already.
  // InvalidArgument: it leads out of the folder, or there is none.
  absl::StatusOr<std::string> PathOf(absl::string_view name) const;

  // Shared with all who hold the model of this file. Codes of BaseModel::Load.
  absl::StatusOr<std::shared_ptr<const BaseModel>> Load(const std::string& path);

 private:
  const std::string dir_;
  Env& env_;
  std::map<std::string, std::weak_ptr<const BaseModel>> loaded_;  // by path
};

}  // namespace fedge

#endif  // FEDGE_SERVER_BASE_MODELS_H_
