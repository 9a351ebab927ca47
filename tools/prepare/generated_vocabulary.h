// A valid vocabulary of any size for models with random weights: real text becomes about as many
// tokens as with a trained vocabulary of that size, but the tokens mean nothing.
#ifndef FEDGE_TOOLS_PREPARE_GENERATED_VOCABULARY_H_
#define FEDGE_TOOLS_PREPARE_GENERATED_VOCABULARY_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tools/prepare/tokenizer_data.h"

namespace fedge {

inline constexpr int64_t kMinGeneratedVocabulary = 512;
inline constexpr int64_t kMaxGeneratedVocabulary = 1'000'000;

// The kind of vocabulary that the models of `architecture` have: SentencePiece for gemma3 and for
// llama and phi3 of up to 40,000 tokens, else byte-level BPE with the family's pre-tokenizer.
// Pieces are the letter sequences of length 2, 3, ... with and without a space in front, the most
// frequent English letters first. InvalidArgument for a size out of range.
absl::StatusOr<TokenizerData> GenerateVocabulary(absl::string_view architecture, int64_t size);

}  // namespace fedge

#endif  // FEDGE_TOOLS_PREPARE_GENERATED_VOCABULARY_H_
