#include "tests/testing/shared_data.h"

#include <cstdlib>

#include "common/base/env.h"

namespace fedge::testing {

std::optional<std::string> SharedData(absl::string_view name) {
  const char* const configured = std::getenv("FEDGE_SHARED_DATA");
  const std::string root = configured != nullptr ? configured : FEDGE_SOURCE_DIR "/../shared/data";
  const std::string path = JoinPath(root, name);
  if (!Env::Posix()->Exists(path)) return std::nullopt;
  return path;
}

}  // namespace fedge::testing
