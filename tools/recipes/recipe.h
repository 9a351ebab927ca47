// The data sets that `fedge simulate` knows by name: fetched from Debian's archive or from npm,
// turned into JSON Lines with a node per record, and kept in a cache. The repository holds no text
// of others.
#ifndef FEDGE_TOOLS_RECIPES_RECIPE_H_
#define FEDGE_TOOLS_RECIPES_RECIPE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/base/env.h"
#include "tools/recipes/command.h"
#include "tools/recipes/debian_packages.h"
#include "tools/recipes/progress.h"

namespace fedge {

struct RecipeDescription {
  absl::string_view name;     // what --data takes
  absl::string_view summary;  // one line for --help
};

// All recipes; the first is the default.
absl::Span<const RecipeDescription> Recipes();
bool IsRecipe(absl::string_view name);

struct RecipeOptions {
  DebianPackagesOptions debian_packages;
  uint64_t sotu_max_text_bytes = 1500;
  CommandRunner* commands = nullptr;  // not owned; null: the system's programs
};

// Returns the path of the recipe's JSON Lines file in `cache_dir`, which is made if needed. A file
// that is there already is returned as it is: a cached file is always complete. Nothing else stays
// in the folder, whether it works or not. Each set of limits has a file of its own.
//
// Codes: InvalidArgument (no such recipe), NotFound (apt or npm missing), Unavailable (network),
// DeadlineExceeded (a fetch of 20 minutes), ResourceExhausted (disk full), PermissionDenied,
// DataLoss (a fetched file that cannot be read), FailedPrecondition (lists without enough
// packages). Each message is one line and names a remedy.
absl::StatusOr<std::string> MaterializeRecipe(absl::string_view name, absl::string_view cache_dir,
                                              Env& env, const RecipeProgress& progress,
                                              const RecipeOptions& options = RecipeOptions());

// The cache folder that programs use unless told otherwise: $FEDGE_CACHE, else
// $XDG_CACHE_HOME/fedge, else $HOME/.cache/fedge, else .fedge-cache.
std::string DefaultCacheDir();

}  // namespace fedge

#endif  // FEDGE_TOOLS_RECIPES_RECIPE_H_
