#include "tools/recipes/debian_packages.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/status.h"
#include "tools/recipes/text_pieces.h"

namespace fedge {
namespace {

struct Package {
  absl::string_view name;
  absl::string_view maintainer;   // the name, without the address
  absl::string_view section;      // without the area
  absl::string_view description;  // summary line and long text, as in the list
};

using Descriptions =
    absl::flat_hash_map<std::pair<absl::string_view, absl::string_view>, absl::string_view>;

Descriptions IndexTranslations(const std::vector<std::string>& translations) {
  Descriptions result;
  Deb822Stanza stanza;
  for (const std::string& text : translations) {
    Deb822Reader reader(text);
    while (reader.Next(&stanza)) {
      result.try_emplace({stanza.Find("Package"), stanza.Find("Description-md5")},
                         stanza.Find("Description-en"));
    }
  }
  return result;
}

absl::string_view MaintainerName(absl::string_view field) {
  const size_t address = field.find('<');
  absl::string_view name = absl::StripAsciiWhitespace(field.substr(0, address));
  absl::ConsumePrefix(&name, "\"");
  absl::ConsumeSuffix(&name, "\"");
  return absl::StripAsciiWhitespace(name);
}

absl::string_view SectionName(absl::string_view field) {
  const size_t area = field.rfind('/');
  return area == absl::string_view::npos ? field : field.substr(area + 1);
}

absl::string_view SummaryLine(absl::string_view description) {
  return absl::StripAsciiWhitespace(description.substr(0, description.find('\n')));
}

// Packages without a description of their own: they only pull in another one, or hold debug
// symbols.
bool IsPlaceholder(const Package& package) {
  const std::string summary = absl::AsciiStrToLower(SummaryLine(package.description));
  return package.section == "oldlibs" || absl::StrContains(summary, "transitional") ||
         absl::StrContains(summary, "dummy package") || absl::EndsWith(package.name, "-dbg") ||
         absl::EndsWith(package.name, "-dbgsym");
}

std::vector<Package> JoinLists(const std::vector<std::string>& lists,
                               const Descriptions& descriptions) {
  std::vector<Package> result;
  Deb822Stanza stanza;
  for (const std::string& text : lists) {
    Deb822Reader reader(text);
    while (reader.Next(&stanza)) {
      const absl::string_view name = stanza.Find("Package");
      const auto found = descriptions.find({name, stanza.Find("Description-md5")});
      if (found == descriptions.end()) continue;
      const Package package = {name, MaintainerName(stanza.Find("Maintainer")),
                               SectionName(stanza.Find("Section")), found->second};
      if (!package.maintainer.empty() && !IsPlaceholder(package)) result.push_back(package);
    }
  }
  std::sort(result.begin(), result.end(), [](const Package& a, const Package& b) {
    return std::tie(a.name, a.description, a.maintainer, a.section) <
           std::tie(b.name, b.description, b.maintainer, b.section);
  });
  return result;
}

void DropRepeatedDescriptions(std::vector<Package>& packages) {
  absl::flat_hash_set<absl::string_view> texts;
  absl::flat_hash_set<absl::string_view> names;  // one release may list two versions of a package
  std::erase_if(packages, [&](const Package& package) {
    return !texts.insert(package.description).second || !names.insert(package.name).second;
  });
}

absl::flat_hash_set<absl::string_view> FrequentSections(const std::vector<Package>& packages,
                                                        int limit) {
  std::map<absl::string_view, int64_t> counts;
  for (const Package& package : packages) ++counts[package.section];
  counts.erase("");
  std::vector<std::pair<int64_t, absl::string_view>> order;
  for (const auto& [section, count] : counts) order.emplace_back(-count, section);
  std::sort(order.begin(), order.end());
  absl::flat_hash_set<absl::string_view> result;
  for (const auto& [count, section] : order) {
    if (static_cast<int>(result.size()) < limit) result.insert(section);
  }
  return result;
}

void AppendRecords(absl::string_view node, const Package& package, bool labelled,
                   uint64_t max_text_bytes, std::string& out) {
  const size_t first_line = package.description.find('\n');
  const absl::string_view lines = first_line == absl::string_view::npos
                                      ? absl::string_view()
                                      : package.description.substr(first_line + 1);
  const std::string head = absl::StrCat("Package: ", package.name,
                                        "\nSummary: ", SummaryLine(package.description), "\n");
  // The text names the section too, as the archive's own index does.
  const std::string section = labelled ? absl::StrCat("Section: ", package.section, "\n") : "";
  std::string text = absl::StrCat(head, section, UnfoldDescription(lines));
  if (lines.empty()) text.pop_back();
  text.resize(CutAtBlank(text, std::max<uint64_t>(max_text_bytes, 2) - 1));
  absl::StrAppend(&out, "{\"node\":", JsonString(node), ",\"id\":", JsonString(package.name),
                  ",\"text\":", JsonString(absl::StrCat(text, "\n")), "}\n");
  if (!labelled) return;
  absl::StrAppend(&out, "{\"node\":", JsonString(node), ",\"id\":", JsonString(package.name),
                  ",\"prompt\":", JsonString(absl::StrCat(head, "Section:")),
                  ",\"completion\":", JsonString(absl::StrCat(" ", package.section)), "}\n");
}

// "- x", "* x", "+ x", "o x", "1. x", "2) x": list items keep their line.
bool IsListItem(absl::string_view line) {
  const size_t blank = line.find(' ');
  if (blank == absl::string_view::npos || blank == 0) return false;
  const absl::string_view mark = line.substr(0, blank);
  if (mark.size() == 1) return absl::StrContains("-*+o", mark);
  const char last = mark.back();
  return (last == '.' || last == ')') &&
         std::all_of(mark.begin(), mark.end() - 1, absl::ascii_isdigit);
}

}  // namespace

absl::string_view Deb822Stanza::Find(absl::string_view field) const {
  for (const auto& [name, value] : fields_) {
    if (name == field) return value;
  }
  return {};
}

absl::string_view Deb822Reader::TakeLine() {
  const size_t end = rest_.find('\n');
  const absl::string_view line = rest_.substr(0, end);
  rest_.remove_prefix(end == absl::string_view::npos ? rest_.size() : end + 1);
  return line;
}

bool Deb822Reader::Next(Deb822Stanza* stanza) {
  auto& fields = stanza->fields_;
  fields.clear();
  while (!rest_.empty()) {
    const absl::string_view line = TakeLine();
    if (absl::StripAsciiWhitespace(line).empty()) {
      if (!fields.empty()) return true;
    } else if (line[0] == ' ' || line[0] == '\t') {
      if (fields.empty()) continue;
      absl::string_view& value = fields.back().second;  // grows over the line feed and this line
      value = absl::string_view(value.data(),
                                static_cast<size_t>(line.data() + line.size() - value.data()));
    } else if (const size_t colon = line.find(':'); colon != absl::string_view::npos) {
      fields.emplace_back(line.substr(0, colon),
                          absl::StripLeadingAsciiWhitespace(line.substr(colon + 1)));
    }
  }
  return !fields.empty();
}

std::string UnfoldDescription(absl::string_view lines) {
  std::string out;
  bool joins = false;  // whether the next line may continue the last one
  for (absl::string_view line : absl::StrSplit(lines, '\n')) {
    absl::ConsumePrefix(&line, " ");
    line = absl::StripTrailingAsciiWhitespace(line);
    const bool blank = line.empty() || line == ".";
    const bool verbatim = !blank && (line[0] == ' ' || line[0] == '\t');
    if (!blank && !verbatim && joins && !IsListItem(line)) {
      absl::StrAppend(&out, " ", line);
      continue;
    }
    if (!out.empty()) out += '\n';
    if (!blank) absl::StrAppend(&out, line);
    joins = !blank && !verbatim;
  }
  while (absl::EndsWith(out, "\n")) out.pop_back();
  return out;
}

absl::StatusOr<std::string> BuildDebianPackages(const ArchiveLists& lists,
                                                const DebianPackagesOptions& options,
                                                DebianPackagesSummary* summary) {
  const Descriptions descriptions = IndexTranslations(lists.translations);
  std::vector<Package> packages = JoinLists(lists.packages, descriptions);
  DropRepeatedDescriptions(packages);
  const auto sections = FrequentSections(packages, options.labelled_sections);
  std::map<absl::string_view, std::vector<const Package*>> nodes;
  for (const Package& package : packages) nodes[package.maintainer].push_back(&package);
  std::erase_if(nodes, [&](const auto& node) {
    return static_cast<int64_t>(node.second.size()) < options.min_packages_per_node;
  });
  if (nodes.size() < 2) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the package lists hold ", packages.size(), " described packages and ", nodes.size(),
        " maintainers with at least ", options.min_packages_per_node, " of them; two are needed"));
  }
  summary->unique_texts = static_cast<int64_t>(packages.size());
  summary->nodes = static_cast<int64_t>(nodes.size());
  std::string out;
  for (const auto& [node, members] : nodes) {
    const size_t limit = static_cast<size_t>(std::max(0, options.max_packages_per_node));
    const size_t count = limit == 0 ? members.size() : std::min(members.size(), limit);
    for (size_t i = 0; i < count; ++i) {
      const Package& package = *members[i * members.size() / count];
      const bool labelled = sections.contains(package.section);
      AppendRecords(node, package, labelled, options.max_text_bytes, out);
      ++summary->texts;
      summary->labelled += labelled ? 1 : 0;
    }
  }
  return out;
}

}  // namespace fedge
