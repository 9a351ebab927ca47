// Cuts text into the words inside which byte-level BPE merges: hand-written scanners for the
// regular expressions of the model families, over Unicode's general categories.
#ifndef FEDGE_COMMON_MODEL_PRE_TOKENIZER_H_
#define FEDGE_COMMON_MODEL_PRE_TOKENIZER_H_

#include <optional>

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"

namespace fedge {

enum class PreTokenizer {
  kDefault,   // punctuation apart, then gpt-2, then numbers apart in groups of three
  kGpt2,      // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  kLlamaBpe,  // (?i:'s|...)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|
              // \s*[\r\n]+|\s+(?!\S)|\s+
  kQwen2,     // as kLlamaBpe, with \p{N} in place of \p{N}{1,3}
  kGpt4o,     // words of capitals then small letters, contractions behind them; the expression of
              // the models' own tokenizer.json (llama.cpp's differs for marks and letters with
              // accents: it cannot tell their case)
  kSmolLm,    // numbers one by one, then gpt-2
};

// The pre-tokenizer that GGUF calls `name` ("llama-bpe"); nothing when it is not known here.
std::optional<PreTokenizer> FindPreTokenizer(absl::string_view name);

// Calls `word` with each word of `text` in order. The words joined are the text, byte for byte; a
// byte that is not UTF-8 counts as a symbol of its own. Linear in the size of the text.
void SplitWords(PreTokenizer kind, absl::string_view text,
                absl::FunctionRef<void(absl::string_view)> word);

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_PRE_TOKENIZER_H_
