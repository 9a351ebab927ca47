// The vocabulary of a Hugging Face folder: tokenizer.json (byte-level BPE, or BPE with byte
// fallback as SentencePiece has it) or tokenizer.model (SentencePiece), with what
// tokenizer_config.json, config.json and chat_template.* say about special tokens and chats.
#ifndef FEDGE_TOOLS_PREPARE_HF_TOKENIZER_H_
#define FEDGE_TOOLS_PREPARE_HF_TOKENIZER_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/env.h"
#include "tools/prepare/json_object.h"
#include "tools/prepare/tokenizer_data.h"

namespace fedge {

// `vocabulary`: rows of the embedding; ids without a token become "[PAD<id>]". NotFound: no
// tokenizer. InvalidArgument: a damaged one, or more tokens than rows. Unimplemented: a model,
// pre-tokenizer (shown) or SentencePiece type that GGUF or Fedge does not have.
absl::StatusOr<TokenizerData> ReadHfTokenizer(absl::string_view dir, const JsonObject& config,
                                              int64_t vocabulary, Env& env);

}  // namespace fedge

#endif  // FEDGE_TOOLS_PREPARE_HF_TOKENIZER_H_
