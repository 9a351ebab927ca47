// tokenizer.json, the file of Hugging Face's tokenizers library. Not for others: use
// hf_tokenizer.h.
#ifndef FEDGE_TOOLS_PREPARE_HF_TOKENIZER_JSON_H_
#define FEDGE_TOOLS_PREPARE_HF_TOKENIZER_JSON_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tools/prepare/json_object.h"
#include "tools/prepare/tokenizer_data.h"

namespace fedge {

// A token beside the model's own vocabulary.
struct AddedToken {
  int64_t id = 0;
  std::string text;
  bool special = false;
  bool strips_right = false;  // swallows the white space behind it
};

// Of "added_tokens", in any order.
absl::StatusOr<std::vector<AddedToken>> ReadAddedTokens(const JsonObject& tokenizer);

// Whether the model is BPE over characters with byte fallback, as SentencePiece's is.
bool IsCharacterLevel(const JsonObject& tokenizer);

// Fills pieces, types, merges (byte-level) or scores (character-level), pre and add_space_prefix.
// Ids without a token keep an empty piece. Added tokens are not placed yet.
absl::Status ReadByteLevelModel(const JsonObject& tokenizer, int64_t vocabulary,
                                TokenizerData& data);
absl::Status ReadCharacterModel(const JsonObject& tokenizer, int64_t vocabulary,
                                TokenizerData& data);

// GGUF's name of the pre-tokenizer. Unimplemented shows the expression that is not known.
absl::StatusOr<std::string> PreTokenizerName(const JsonObject& tokenizer);

// Whether the template of the post-processor puts `token` in front of (behind) a text.
bool TemplateHas(const JsonObject& tokenizer, absl::string_view token, bool in_front);

// Puts a piece at its id, which must be free and within the vocabulary.
absl::Status PlacePiece(const JsonObject& tokenizer, int64_t id, absl::string_view piece,
                        TokenType type, TokenizerData& data);

}  // namespace fedge

#endif  // FEDGE_TOOLS_PREPARE_HF_TOKENIZER_JSON_H_
