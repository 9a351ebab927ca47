// Package descriptions of a Debian archive as a federated data set: one node per maintainer, one
// text and one labelled example per package. Only text in, text out; debian_archive.h fetches the
// lists.
#ifndef FEDGE_TOOLS_RECIPES_DEBIAN_PACKAGES_H_
#define FEDGE_TOOLS_RECIPES_DEBIAN_PACKAGES_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fedge {

// One paragraph of a control file (deb822): fields in file order. A value keeps the line feeds and
// the leading blank of its continuation lines. The views point into the text that was read.
class Deb822Stanza {
 public:
  absl::string_view Find(absl::string_view field) const;  // exact case; empty when absent
  bool empty() const { return fields_.empty(); }

 private:
  friend class Deb822Reader;
  std::vector<std::pair<absl::string_view, absl::string_view>> fields_;
};

// Walks through the stanzas of `text`, which must outlive it. Lenient as apt is: a line that is
// neither a field nor a continuation is skipped.
class Deb822Reader {
 public:
  explicit Deb822Reader(absl::string_view text) : rest_(text) {}
  bool Next(Deb822Stanza* stanza);  // false at the end

 private:
  absl::string_view TakeLine();
  absl::string_view rest_;
};

struct DebianPackagesOptions {
  int min_packages_per_node = 30;  // maintainers with fewer are left out
  int max_packages_per_node = 0;   // 0: all; else that many, spread evenly over the sorted names
  uint64_t max_text_bytes = 500;   // of "text"; longer ones are cut at a blank
  int labelled_sections = 20;      // the most frequent sections, which make the labelled task
};

// The lists of one release, uncompressed.
struct ArchiveLists {
  std::vector<std::string> packages;      // Packages files
  std::vector<std::string> translations;  // Translation-en files
};

struct DebianPackagesSummary {
  int64_t unique_texts = 0;  // before small maintainers are left out
  int64_t nodes = 0;
  int64_t texts = 0;
  int64_t labelled = 0;
};

// Joins both kinds of lists by package name and description checksum, keeps the first package (by
// name) of every description, drops transitional, dummy and debug-symbol packages, and returns JSON
// Lines sorted by node and package:
//   {"node":"<maintainer>","id":"<package>",
//    "text":"Package: <p>\nSummary: <s>\nSection: <section>\n<long text>\n"}
//   {"node":"<maintainer>","id":"<package>","prompt":"Package: <p>\nSummary: <s>\nSection:",
//    "completion":" <section>"}
// The second only for the labelled sections. Same lists and options, same bytes. FailedPrecondition
// when fewer than two nodes remain.
absl::StatusOr<std::string> BuildDebianPackages(const ArchiveLists& lists,
                                                const DebianPackagesOptions& options,
                                                DebianPackagesSummary* summary);

// The long part of a Description field as plain text: paragraphs on one line each, verbatim lines
// and list items on their own, " ." as a blank line.
std::string UnfoldDescription(absl::string_view lines);

}  // namespace fedge

#endif  // FEDGE_TOOLS_RECIPES_DEBIAN_PACKAGES_H_
