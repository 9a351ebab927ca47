// Cutting prose into pieces of bounded size, and writing them as JSON strings.
#ifndef FEDGE_TOOLS_RECIPES_TEXT_PIECES_H_
#define FEDGE_TOOLS_RECIPES_TEXT_PIECES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace fedge {

// The longest prefix length of `text` that is at most `max_bytes` and ends before a blank or line
// feed; where there is none, before a whole UTF-8 character. text.size() when it fits.
size_t CutAtBlank(absl::string_view text, uint64_t max_bytes);

// Splits `text` into pieces of at most `max_bytes` (> 0): at paragraph ends (line feeds) where
// possible, else at sentence ends, else at blanks. White space at the cuts is dropped; neighbours
// that fit together stay together. No piece is empty.
std::vector<std::string> SplitProse(absl::string_view text, uint64_t max_bytes);

// `text` as a JSON string with its quotes. UTF-8 stays as it is; broken bytes become U+FFFD.
std::string JsonString(absl::string_view text);

}  // namespace fedge

#endif  // FEDGE_TOOLS_RECIPES_TEXT_PIECES_H_
