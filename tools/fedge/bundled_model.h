// Where the small base model that comes with Fedge is.
#ifndef FEDGE_TOOLS_FEDGE_BUNDLED_MODEL_H_
#define FEDGE_TOOLS_FEDGE_BUNDLED_MODEL_H_

#include <string>

#include "absl/status/statusor.h"
#include "common/base/env.h"

namespace fedge {

// Looked for below the working folder, below the folders that hold this program (a checkout's
// build tree), and where a package puts it. NotFound names the option to give instead.
absl::StatusOr<std::string> FindBundledModel(Env& env);

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_BUNDLED_MODEL_H_
