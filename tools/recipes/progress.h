// How a recipe tells its caller what it is doing.
#ifndef FEDGE_TOOLS_RECIPES_PROGRESS_H_
#define FEDGE_TOOLS_RECIPES_PROGRESS_H_

#include <functional>

#include "absl/strings/string_view.h"

namespace fedge {

// Called with one short line, without a line feed, before each step that takes a while; may be
// empty.
using RecipeProgress = std::function<void(absl::string_view)>;

}  // namespace fedge

#endif  // FEDGE_TOOLS_RECIPES_PROGRESS_H_
