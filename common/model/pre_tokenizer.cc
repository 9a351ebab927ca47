#include "common/model/pre_tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>

#include "absl/strings/ascii.h"

namespace fedge {
namespace {

enum class Class : uint8_t { kEnd, kSpace, kLetter, kNumber, kPunctuation, kOther };

struct Character {
  uint32_t code = 0;
  size_t size = 0;  // in bytes; 0 at the end of the text
  Class kind = Class::kEnd;
};

// Unicode's White_Space beyond ASCII.
bool IsWideSpace(uint32_t code) {
  return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) ||
         code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

Class ClassOf(uint32_t code) {
  if (code < 0x80) {
    const auto c = static_cast<unsigned char>(code);
    if (absl::ascii_isalpha(c)) return Class::kLetter;
    if (absl::ascii_isdigit(c)) return Class::kNumber;
    if (absl::ascii_isspace(c)) return Class::kSpace;
  } else if (IsWideSpace(code)) {
    return Class::kSpace;
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return Class::kLetter;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return Class::kNumber;
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
      return Class::kPunctuation;
    default:
      return Class::kOther;
  }
}

// What the expression of gpt-4o tells apart: letters of either case count as both, marks too.
enum class Case : uint8_t { kNone, kCapital, kSmall, kBoth };

Case CaseOf(uint32_t code) {
  if (code < 0x80) {
    const auto c = static_cast<unsigned char>(code);
    if (absl::ascii_isupper(c)) return Case::kCapital;
    return absl::ascii_islower(c) ? Case::kSmall : Case::kNone;
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LT:
      return Case::kCapital;
    case UTF8PROC_CATEGORY_LL:
      return Case::kSmall;
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
      return Case::kBoth;
    default:
      return Case::kNone;
  }
}

Character CharacterAt(absl::string_view text, size_t position) {
  if (position >= text.size()) return {};
  const auto first = static_cast<unsigned char>(text[position]);
  if (first < 0x80) return {first, 1, ClassOf(first)};
  utf8proc_int32_t code = 0;
  const size_t left = std::min<size_t>(text.size() - position, 4);
  const utf8proc_ssize_t size =
      utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + position,
                       static_cast<utf8proc_ssize_t>(left), &code);
  if (size <= 0) return {0xFFFD, 1, Class::kOther};
  const auto value = static_cast<uint32_t>(code);
  return {value, static_cast<size_t>(size), ClassOf(value)};
}

// The end of the run of characters of class `kind` from `position` on, at most `limit` of them.
size_t SkipClass(absl::string_view text, size_t position, Class kind, size_t limit = SIZE_MAX) {
  for (size_t i = 0; i < limit; ++i) {
    const Character c = CharacterAt(text, position);
    if (c.kind != kind) break;
    position += c.size;
  }
  return position;
}

bool IsSymbol(Class kind) { return kind == Class::kPunctuation || kind == Class::kOther; }

size_t SkipSymbols(absl::string_view text, size_t position) {
  for (Character c = CharacterAt(text, position); IsSymbol(c.kind);
       c = CharacterAt(text, position)) {
    position += c.size;
  }
  return position;
}

// Bytes of 's 't 're 've 'm 'll 'd at `position`; 0 when there is none.
size_t ContractionBytes(absl::string_view text, size_t position, bool any_case) {
  if (text[position] != '\'') return 0;
  char letters[2] = {0, 0};
  for (size_t i = 0; i < 2 && position + 1 + i < text.size(); ++i) {
    const char c = text[position + 1 + i];
    letters[i] = any_case ? absl::ascii_tolower(static_cast<unsigned char>(c)) : c;
  }
  if (letters[0] == 's' || letters[0] == 't' || letters[0] == 'm' || letters[0] == 'd') return 2;
  const bool two = (letters[0] == 'r' && letters[1] == 'e') ||
                   (letters[0] == 'v' && letters[1] == 'e') ||
                   (letters[0] == 'l' && letters[1] == 'l');
  return two ? 3 : 0;
}

// The end of the white space that one word takes at `position`: \s*[\r\n]+ where `newlines` asks
// for it, else \s+(?!\S) (all but the last, which belongs to the word behind it), else \s+.
size_t SpaceEnd(absl::string_view text, size_t position, bool newlines) {
  size_t end = position;
  size_t last = position;      // where the last white-space character begins
  size_t line_end = position;  // behind the last line break
  for (Character c = CharacterAt(text, end); c.kind == Class::kSpace; c = CharacterAt(text, end)) {
    last = end;
    end += c.size;
    if (c.code == '\r' || c.code == '\n') line_end = end;
  }
  if (newlines && line_end > position) return line_end;
  return end < text.size() && last > position ? last : end;
}

// The end of the word that begins at `position`, by the expression of gpt-2.
size_t Gpt2WordEnd(absl::string_view text, size_t position) {
  if (const size_t size = ContractionBytes(text, position, false); size > 0) {
    return position + size;
  }
  const size_t start = text[position] == ' ' ? position + 1 : position;
  const Class kind = CharacterAt(text, start).kind;
  if (kind == Class::kLetter || kind == Class::kNumber) return SkipClass(text, start, kind);
  if (IsSymbol(kind)) return SkipSymbols(text, start);
  return SpaceEnd(text, position, false);
}

// The same by the expression of llama-bpe, with at most `digits` numerals a word.
size_t LlamaWordEnd(absl::string_view text, size_t position, size_t digits) {
  if (const size_t size = ContractionBytes(text, position, true); size > 0) return position + size;
  const Character c = CharacterAt(text, position);
  if (c.kind == Class::kNumber) return SkipClass(text, position, Class::kNumber, digits);
  if (c.kind == Class::kLetter) return SkipClass(text, position, Class::kLetter);
  if (c.code != '\r' && c.code != '\n') {
    const size_t end = SkipClass(text, position + c.size, Class::kLetter);
    if (end > position + c.size) return end;
  }
  const size_t start = c.code == ' ' ? position + 1 : position;
  size_t end = SkipSymbols(text, start);
  if (end > start) {
    while (end < text.size() && (text[end] == '\r' || text[end] == '\n')) ++end;
    return end;
  }
  return SpaceEnd(text, position, true);
}

// A stretch of letters and marks from `position` on, as gpt-4o sees it.
struct CasedRun {
  size_t capitals_end = 0;   // of [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*
  size_t last_both_end = 0;  // behind the last of them that may be small as well; 0: none
  size_t small_end = 0;      // of [\p{Ll}\p{Lm}\p{Lo}\p{M}]* behind the capitals
};

CasedRun CasedRunAt(absl::string_view text, size_t position) {
  CasedRun run;
  Character c = CharacterAt(text, position);
  const auto advance = [&] {
    position += c.size;
    c = CharacterAt(text, position);
  };
  for (Case kind = CaseOf(c.code); c.size > 0 && (kind == Case::kCapital || kind == Case::kBoth);
       kind = CaseOf(c.code)) {
    advance();
    if (kind == Case::kBoth) run.last_both_end = position;
  }
  run.capitals_end = position;
  for (Case kind = CaseOf(c.code); c.size > 0 && (kind == Case::kSmall || kind == Case::kBoth);
       kind = CaseOf(c.code)) {
    advance();
  }
  run.small_end = position;
  return run;
}

// The end of a word of letters by the expression of gpt-4o; `position` when there is none.
size_t CasedWordEnd(absl::string_view text, size_t position) {
  const Character c = CharacterAt(text, position);
  const bool may_lead =
      c.kind != Class::kLetter && c.kind != Class::kNumber && c.code != '\r' && c.code != '\n';
  // With one leading character, which is preferred, and without.
  const size_t starts[2] = {may_lead ? position + c.size : position, position};
  CasedRun runs[2];
  size_t end = position;
  for (int i = may_lead ? 0 : 1; i < 2 && end == position; ++i) {  // ends in a small letter
    runs[i] = CasedRunAt(text, starts[i]);
    if (runs[i].small_end > runs[i].capitals_end) {
      end = runs[i].small_end;
    } else if (runs[i].last_both_end > 0) {
      end = runs[i].last_both_end;
    }
  }
  for (int i = may_lead ? 0 : 1; i < 2 && end == position; ++i) {  // capitals only
    if (runs[i].capitals_end > starts[i]) end = runs[i].capitals_end;
  }
  if (end == position || end == text.size()) return end;
  return end + ContractionBytes(text, end, true);
}

size_t Gpt4oWordEnd(absl::string_view text, size_t position) {
  if (const size_t end = CasedWordEnd(text, position); end > position) return end;
  const Character c = CharacterAt(text, position);
  if (c.kind == Class::kNumber) return SkipClass(text, position, Class::kNumber, 3);
  const size_t start = c.code == ' ' ? position + 1 : position;
  size_t end = SkipSymbols(text, start);
  if (end > start) {
    while (end < text.size() && (text[end] == '\r' || text[end] == '\n' || text[end] == '/')) {
      ++end;
    }
    return end;
  }
  return SpaceEnd(text, position, true);
}

template <typename WordEnd>
void ForEachWord(absl::string_view text, WordEnd word_end,
                 absl::FunctionRef<void(absl::string_view)> word) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = word_end(text, begin);
    word(text.substr(begin, end - begin));
    begin = end;
  }
}

// Cuts at the borders of the runs for which `matches` holds.
template <typename Matches>
void ForEachRun(absl::string_view text, Matches matches,
                absl::FunctionRef<void(absl::string_view)> run) {
  for (size_t begin = 0; begin < text.size();) {
    Character c = CharacterAt(text, begin);
    const bool kind = matches(c);
    size_t end = begin;
    while (c.size > 0 && matches(c) == kind) {
      end += c.size;
      c = CharacterAt(text, end);
    }
    run(text.substr(begin, end - begin));
    begin = end;
  }
}

// [0-9][0-9][0-9] cut out of a word that is all numerals or has none.
void SplitTriples(absl::string_view text, absl::FunctionRef<void(absl::string_view)> word) {
  size_t begin = 0;  // of what no triple has taken yet
  size_t digits = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    digits = absl::ascii_isdigit(static_cast<unsigned char>(text[i])) ? digits + 1 : 0;
    if (digits < 3) continue;
    if (i - 2 > begin) word(text.substr(begin, i - 2 - begin));
    word(text.substr(i - 2, 3));
    begin = i + 1;
    digits = 0;
  }
  if (begin < text.size()) word(text.substr(begin));
}

// Four expressions one after the other, each of them inside the words of the one before.
void SplitDefault(absl::string_view text, absl::FunctionRef<void(absl::string_view)> word) {
  const auto punctuation = [](const Character& c) {
    return c.kind == Class::kPunctuation ||
           (c.code < 0x80 && absl::string_view("$+<=>^~|").find(static_cast<char>(c.code)) !=
                                 absl::string_view::npos);
  };
  const auto number = [](const Character& c) { return c.kind == Class::kNumber; };
  ForEachRun(text, punctuation, [&](absl::string_view run) {
    ForEachWord(run, Gpt2WordEnd, [&](absl::string_view part) {
      ForEachRun(part, number, [&](absl::string_view piece) { SplitTriples(piece, word); });
    });
  });
}

// Each numeral apart, then gpt-2 in what stands between.
void SplitSmolLm(absl::string_view text, absl::FunctionRef<void(absl::string_view)> word) {
  const auto number = [](const Character& c) { return c.kind == Class::kNumber; };
  ForEachRun(text, number, [&](absl::string_view run) {
    if (CharacterAt(run, 0).kind != Class::kNumber) return ForEachWord(run, Gpt2WordEnd, word);
    for (size_t begin = 0; begin < run.size();) {
      const size_t size = CharacterAt(run, begin).size;
      word(run.substr(begin, size));
      begin += size;
    }
  });
}

}  // namespace

std::optional<PreTokenizer> FindPreTokenizer(absl::string_view name) {
  if (name == "default") return PreTokenizer::kDefault;
  if (name == "gpt-2") return PreTokenizer::kGpt2;
  if (name == "llama-bpe" || name == "llama3" || name == "llama-v3") {
    return PreTokenizer::kLlamaBpe;
  }
  if (name == "qwen2" || name == "deepseek-r1-qwen") return PreTokenizer::kQwen2;
  if (name == "gpt-4o") return PreTokenizer::kGpt4o;
  if (name == "smollm") return PreTokenizer::kSmolLm;
  return std::nullopt;
}

void SplitWords(PreTokenizer kind, absl::string_view text,
                absl::FunctionRef<void(absl::string_view)> word) {
  const auto llama = [](size_t digits) {
    return [digits](absl::string_view whole, size_t position) {
      return LlamaWordEnd(whole, position, digits);
    };
  };
  switch (kind) {
    case PreTokenizer::kDefault:
      return SplitDefault(text, word);
    case PreTokenizer::kGpt2:
      return ForEachWord(text, Gpt2WordEnd, word);
    case PreTokenizer::kLlamaBpe:
      return ForEachWord(text, llama(3), word);
    case PreTokenizer::kQwen2:
      return ForEachWord(text, llama(1), word);
    case PreTokenizer::kGpt4o:
      return ForEachWord(text, Gpt4oWordEnd, word);
    case PreTokenizer::kSmolLm:
      return SplitSmolLm(text, word);
  }
}

}  // namespace fedge
