#include "tools/fedge/bundled_model.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"

namespace fedge {
namespace {

constexpr char kInCheckout[] = "models/fedge-tiny/fedge-tiny-q8_0.gguf";
constexpr char kInstalled[] = "/usr/share/fedge/models/fedge-tiny-q8_0.gguf";

std::string ProgramPath() {
  char path[4096];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof(path));
  return size > 0 ? std::string(path, static_cast<size_t>(size)) : std::string();
}

}  // namespace

absl::StatusOr<std::string> FindBundledModel(Env& env) {
  if (env.Exists(kInCheckout)) return std::string(kInCheckout);
  const std::string program = ProgramPath();
  for (absl::string_view dir = DirName(program); dir.size() > 1; dir = DirName(dir)) {
    std::string path = JoinPath(dir, kInCheckout);
    if (env.Exists(path)) return path;
  }
  if (env.Exists(kInstalled)) return std::string(kInstalled);
  return absl::NotFoundError(
      absl::StrCat("the bundled base model is not here (", kInCheckout,
                   "); run fedge from its checkout or give a GGUF file with --model"));
}

}  // namespace fedge
