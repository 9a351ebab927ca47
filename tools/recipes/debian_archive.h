// Fetches the package lists of a Debian archive with apt's own programs, as any user and without
// touching the lists of the system.
#ifndef FEDGE_TOOLS_RECIPES_DEBIAN_ARCHIVE_H_
#define FEDGE_TOOLS_RECIPES_DEBIAN_ARCHIVE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/env.h"
#include "tools/recipes/command.h"
#include "tools/recipes/debian_packages.h"
#include "tools/recipes/progress.h"

namespace fedge {

// Reads the main component of the release that the system's sources name: from /var/lib/apt/lists
// where the English descriptions are there already, else after an `apt-get update` into folders
// below `work_dir`, which must exist (minimal systems switch apt's languages off). Updates,
// security fixes and backports are left out, so that the same release gives the same lists.
//
// NotFound: no apt here. Unavailable: the archive could not be reached. ResourceExhausted: disk
// full.
absl::StatusOr<ArchiveLists> FetchArchiveLists(absl::string_view work_dir, Env& env,
                                               CommandRunner& commands,
                                               const RecipeProgress& progress);

// File names of one release, from the output of `apt-get indextargets` in kIndexTargetsFormat.
struct ArchiveFiles {
  std::vector<std::string> packages;
  std::vector<std::string> translations;
};
inline constexpr char kIndexTargetsFormat[] =
    "$(CREATED_BY)|$(ORIGIN)|$(SUITE)|$(CODENAME)|$(COMPONENT)|$(ARCHITECTURE)|$(FILENAME)";

// The release with the most files of both kinds (Debian before others, then the first named); both
// lists are empty when no release has both. Only its first architecture.
ArchiveFiles ChooseRelease(absl::string_view index_targets);

}  // namespace fedge

#endif  // FEDGE_TOOLS_RECIPES_DEBIAN_ARCHIVE_H_
