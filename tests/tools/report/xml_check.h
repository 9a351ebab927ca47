// Is a page well-formed: every element closed in order, attributes quoted, no stray marks.
#ifndef FEDGE_TESTS_TOOLS_REPORT_XML_CHECK_H_
#define FEDGE_TESTS_TOOLS_REPORT_XML_CHECK_H_

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace fedge::testing {

// The first problem, or nothing. Knows elements, attributes, entities and the doctype; that is all
// our pages use. Style sheets must hold no "<".
inline std::string XmlProblem(absl::string_view page) {
  std::vector<std::string> open;
  size_t at = 0;
  while (at < page.size()) {
    const size_t mark = page.find_first_of("<&", at);
    if (mark == absl::string_view::npos) break;
    if (page[mark] == '&') {
      const size_t end = page.find(';', mark);
      if (end == absl::string_view::npos || end - mark > 8) {
        return absl::StrCat("bare & at ", mark);
      }
      at = end + 1;
      continue;
    }
    const size_t end = page.find('>', mark);
    if (end == absl::string_view::npos) return absl::StrCat("open tag at ", mark);
    const absl::string_view tag = page.substr(mark + 1, end - mark - 1);
    at = end + 1;
    if (tag.empty() || tag.find('<') != absl::string_view::npos) {
      return absl::StrCat("stray < at ", mark);
    }
    if (tag[0] == '!') continue;
    if (std::count(tag.begin(), tag.end(), '"') % 2 != 0) {
      return absl::StrCat("quotes of <", tag, ">");
    }
    if (tag[0] == '/') {
      if (open.empty() || open.back() != tag.substr(1)) {
        return absl::StrCat("</", tag.substr(1), "> closes ",
                            open.empty() ? "nothing" : open.back());
      }
      open.pop_back();
    } else if (tag.back() != '/') {
      open.emplace_back(tag.substr(0, tag.find(' ')));
    }
  }
  return open.empty() ? "" : absl::StrCat("<", open.back(), "> is not closed");
}

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TOOLS_REPORT_XML_CHECK_H_
