#include "tools/recipes/text_pieces.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/status.h"

namespace fedge {
namespace {

bool IsContinuationByte(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// Where the first sentence of `text` ends: behind ". ", "? " or "! ", with a closing quote or
// bracket in between; text.size() when it never does.
size_t SentenceEnd(absl::string_view text) {
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    if (!absl::StrContains(".?!", absl::string_view(&text[i], 1))) continue;
    size_t end = i + 1;
    while (end < text.size() && absl::StrContains("\"')]", absl::string_view(&text[end], 1))) ++end;
    if (end < text.size() && text[end] == ' ') return end;
  }
  return text.size();
}

// Puts `unit` behind the last piece when both fit, else starts a new one.
void AddUnit(absl::string_view unit, absl::string_view separator, uint64_t max_bytes,
             std::vector<std::string>& pieces) {
  if (!pieces.empty() && pieces.back().size() + separator.size() + unit.size() <= max_bytes) {
    absl::StrAppend(&pieces.back(), separator, unit);
    return;
  }
  while (unit.size() > max_bytes) {
    const size_t cut = CutAtBlank(unit, max_bytes);
    pieces.emplace_back(unit.substr(0, cut));
    unit = absl::StripLeadingAsciiWhitespace(unit.substr(cut));
  }
  if (!unit.empty()) pieces.emplace_back(unit);
}

}  // namespace

size_t CutAtBlank(absl::string_view text, uint64_t max_bytes) {
  if (text.size() <= max_bytes) return text.size();
  const size_t limit = static_cast<size_t>(max_bytes);
  const size_t blank = text.substr(0, limit + 1).find_last_of(" \n");
  if (blank != absl::string_view::npos) {
    const size_t cut = absl::StripTrailingAsciiWhitespace(text.substr(0, blank)).size();
    if (cut > 0) return cut;
  }
  size_t cut = limit;
  while (cut > 0 && IsContinuationByte(text[cut])) --cut;
  return cut > 0 ? cut : limit;  // broken UTF-8 may have no boundary at all
}

std::vector<std::string> SplitProse(absl::string_view text, uint64_t max_bytes) {
  FEDGE_CHECK(max_bytes > 0);
  std::vector<std::string> pieces;
  for (absl::string_view paragraph : absl::StrSplit(text, '\n')) {
    paragraph = absl::StripAsciiWhitespace(paragraph);
    absl::string_view separator = "\n";
    if (paragraph.size() <= max_bytes) {
      if (!paragraph.empty()) AddUnit(paragraph, separator, max_bytes, pieces);
      continue;
    }
    while (!paragraph.empty()) {
      const size_t end = SentenceEnd(paragraph);
      AddUnit(paragraph.substr(0, end), separator, max_bytes, pieces);
      paragraph = absl::StripLeadingAsciiWhitespace(paragraph.substr(end));
      separator = " ";
    }
  }
  return pieces;
}

std::string JsonString(absl::string_view text) {
  return nlohmann::json(std::string(text))
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace fedge
