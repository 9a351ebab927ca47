#include "tools/recipes/debian_archive.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr char kAptHelper[] = "/usr/lib/apt/apt-helper";
constexpr char kRemedy[] = "; or use --data FILE with data of your own";

// A configuration that reads the system's sources and keys but keeps all state below `work_dir`.
// The hooks are cleared because they would change the system; other index files are not needed.
std::string AptConfiguration(absl::string_view work_dir) {
  return absl::StrCat(
      "#clear APT::Update;\n"
      "#clear Acquire::Languages;\n"
      "#clear Acquire::IndexTargets;\n"
      "Acquire::Languages { \"en\"; };\n"
      "Acquire::Retries \"2\";\n"
      "Acquire::http::Timeout \"30\";\n"
      "Acquire::https::Timeout \"30\";\n"
      "Acquire::IndexTargets::deb::Packages {\n"
      "  MetaKey \"$(COMPONENT)/binary-$(ARCHITECTURE)/Packages\"; flatMetaKey \"Packages\";\n"
      "  ShortDescription \"Packages\"; flatDescription \"$(RELEASE) Packages\";\n"
      "  Description \"$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages\"; Optional \"0\";\n"
      "};\n"
      "Acquire::IndexTargets::deb::Translations {\n"
      "  MetaKey \"$(COMPONENT)/i18n/Translation-$(LANGUAGE)\"; flatMetaKey \"$(LANGUAGE)\";\n"
      "  ShortDescription \"Translation-$(LANGUAGE)\";\n"
      "  flatDescription \"$(RELEASE) Translation-$(LANGUAGE)\";\n"
      "  Description \"$(RELEASE)/$(COMPONENT) Translation-$(LANGUAGE)\";\n"
      "};\n"
      "Dir::State \"",
      work_dir, "/state\";\nDir::Cache \"", work_dir, "/cache\";\n");
}

struct Target {
  absl::string_view kind, origin, suite, codename, component, architecture, file;
};

// Suites such as "stable-security" change from week to week, and "contrib" is not everywhere.
bool IsWanted(const Target& target) {
  for (const absl::string_view part :
       {"-security", "-updates", "-backports", "-proposed", "-debug"}) {
    if (absl::StrContains(target.suite, part) || absl::StrContains(target.codename, part)) {
      return false;
    }
  }
  return target.component != "contrib" && !absl::StartsWith(target.component, "non-free") &&
         (target.kind == "Packages" || target.kind == "Translations");
}

std::vector<Target> ParseTargets(absl::string_view index_targets) {
  std::vector<Target> result;
  for (const absl::string_view line : absl::StrSplit(index_targets, '\n')) {
    const std::vector<absl::string_view> f = absl::StrSplit(line, '|');
    if (f.size() != 7) continue;
    const Target target = {f[0], f[1], f[2], f[3], f[4], f[5], f[6]};
    if (IsWanted(target)) result.push_back(target);
  }
  return result;
}

ArchiveFiles FilesOfRelease(const std::vector<Target>& targets, const Target& release) {
  ArchiveFiles files;
  absl::string_view architecture;
  for (const Target& target : targets) {
    if (target.origin != release.origin || target.suite != release.suite) continue;
    if (target.kind == "Translations") {
      files.translations.emplace_back(target.file);
      continue;
    }
    if (architecture.empty()) architecture = target.architecture;
    if (target.architecture == architecture || target.architecture == "all") {
      files.packages.emplace_back(target.file);
    }
  }
  if (files.packages.empty() || files.translations.empty()) return {};
  return files;
}

// The line of apt's or npm's chatter that says what went wrong.
std::string FirstComplaint(const CommandRunner::Output& output) {
  for (const std::string* text : {&output.error_text, &output.text}) {
    for (const absl::string_view line : absl::StrSplit(*text, '\n')) {
      if (absl::StartsWith(line, "E: ") || absl::StartsWith(line, "W: Failed") ||
          absl::StartsWith(line, "W: GPG")) {
        return std::string(absl::StripAsciiWhitespace(line));
      }
    }
  }
  return absl::StrCat("exit code ", output.exit_code);
}

absl::StatusOr<ArchiveFiles> ListFiles(const std::vector<std::string>& apt_options,
                                       CommandRunner& commands) {
  std::vector<std::string> argv = {"apt-get"};
  argv.insert(argv.end(), apt_options.begin(), apt_options.end());
  argv.insert(argv.end(), {"indextargets", "--format", kIndexTargetsFormat});
  absl::StatusOr<CommandRunner::Output> output = commands.Run(argv);
  if (absl::IsNotFound(output.status())) {
    return absl::NotFoundError(absl::StrCat(
        "apt-get is not on this system, so Debian's package descriptions cannot be fetched",
        kRemedy));
  }
  RETURN_IF_ERROR(output.status());
  return ChooseRelease(output->text);
}

absl::StatusOr<ArchiveFiles> UpdatePrivately(absl::string_view work_dir, Env& env,
                                             CommandRunner& commands) {
  for (const absl::string_view folder : {"state/lists/partial", "cache/archives/partial"}) {
    RETURN_IF_ERROR(env.CreateDirs(JoinPath(work_dir, folder)));
  }
  const std::string configuration = JoinPath(work_dir, "apt.conf");
  RETURN_IF_ERROR(env.WriteFileAtomic(configuration, AptConfiguration(work_dir)));
  ASSIGN_OR_RETURN(const CommandRunner::Output update,
                   commands.Run({"apt-get", "-q", "-c", configuration, "update"}));
  // apt-get calls an unreachable archive a warning and exits with 0: what counts is what arrived.
  ASSIGN_OR_RETURN(ArchiveFiles files, ListFiles({"-c", configuration}, commands));
  if (!files.packages.empty()) return files;
  if (absl::StrContains(update.error_text, "No space left on device")) {
    return absl::ResourceExhaustedError(absl::StrCat(
        work_dir,
        ": no space left for 35 MB of package lists: free some, or choose another cache"));
  }
  if (update.error_text.empty() && update.exit_code == 0) {
    return absl::UnavailableError(absl::StrCat(
        "apt's sources name no archive with English package descriptions: add a line such as \"deb "
        "http://deb.debian.org/debian stable main\" to /etc/apt/sources.list",
        kRemedy));
  }
  return absl::UnavailableError(absl::StrCat(
      "apt-get update could not fetch Debian's package descriptions (", FirstComplaint(update),
      "): check the network and /etc/apt/sources.list", kRemedy));
}

absl::StatusOr<std::vector<std::string>> ReadLists(const std::vector<std::string>& files,
                                                   CommandRunner& commands) {
  std::vector<std::string> texts;
  for (const std::string& file : files) {
    // apt keeps lists plain or compressed, as configured; its own helper reads them all.
    ASSIGN_OR_RETURN(CommandRunner::Output output, commands.Run({kAptHelper, "cat-file", file}));
    if (output.exit_code != 0 || output.text.empty()) {
      return absl::DataLossError(absl::StrCat(file, ": apt-helper cannot read this package list (",
                                              FirstComplaint(output), ")", kRemedy));
    }
    texts.push_back(std::move(output.text));
  }
  return texts;
}

}  // namespace

ArchiveFiles ChooseRelease(absl::string_view index_targets) {
  const std::vector<Target> targets = ParseTargets(index_targets);
  ArchiveFiles best;
  std::pair<bool, size_t> best_rank;
  for (const Target& release : targets) {
    ArchiveFiles files = FilesOfRelease(targets, release);
    const std::pair<bool, size_t> rank = {release.origin == "Debian", files.packages.size()};
    if (!files.packages.empty() && (best.packages.empty() || rank > best_rank)) {
      best = std::move(files);
      best_rank = rank;
    }
  }
  return best;
}

absl::StatusOr<ArchiveLists> FetchArchiveLists(absl::string_view work_dir, Env& env,
                                               CommandRunner& commands,
                                               const RecipeProgress& progress) {
  ASSIGN_OR_RETURN(ArchiveFiles files, ListFiles({}, commands));
  if (files.packages.empty()) {
    if (progress) progress("fetching Debian's package descriptions (about 15 MB) with apt-get");
    ASSIGN_OR_RETURN(files, UpdatePrivately(work_dir, env, commands));
  }
  if (progress) progress("reading the package lists");
  ArchiveLists lists;
  ASSIGN_OR_RETURN(lists.packages, ReadLists(files.packages, commands));
  ASSIGN_OR_RETURN(lists.translations, ReadLists(files.translations, commands));
  return lists;
}

}  // namespace fedge
