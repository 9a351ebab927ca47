#include "tools/fedge/adapter_output.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

// Whether `dir` may be replaced: it is absent, empty, or already what will be written there.
absl::Status CheckReplaceable(absl::string_view dir, Env& env) {
  if (!env.Exists(dir)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<std::string> names, env.ListDir(dir));
  if (names.empty() || env.Exists(JoinPath(dir, "adapter_config.json"))) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat(dir, ": the folder holds other things than a PEFT adapter; give another one"));
}

}  // namespace

absl::Status ReplacePeftDir(const LoraAdapter& adapter, const AdapterInfo& info,
                            absl::string_view dir, Env& env) {
  while (dir.size() > 1 && dir.back() == '/') dir.remove_suffix(1);
  RETURN_IF_ERROR(CheckReplaceable(dir, env));
  const std::string beside = absl::StrCat(dir, ".new");
  if (env.Exists(beside)) RETURN_IF_ERROR(env.Remove(beside));
  absl::Status status = WriteAdapterPeft(adapter, info, beside, env);
  if (status.ok() && env.Exists(dir)) status = env.Remove(dir);
  if (status.ok()) status = env.Rename(beside, dir);
  if (!status.ok()) {
    env.Remove(beside).IgnoreError();
    return status;
  }
  return env.SyncDir(DirName(dir));
}

absl::Status WriteAdapterBothFormats(const LoraAdapter& adapter, const AdapterInfo& info,
                                     absl::string_view dir, Env& env) {
  RETURN_IF_ERROR(env.CreateDirs(dir));
  RETURN_IF_ERROR(ReplacePeftDir(adapter, info, JoinPath(dir, "peft"), env));
  return WriteAdapterGguf(adapter, info, JoinPath(dir, "adapter.gguf"), env);
}

}  // namespace fedge
