// A vocabulary that is about to be written as GGUF metadata.
#ifndef FEDGE_TOOLS_PREPARE_TOKENIZER_DATA_H_
#define FEDGE_TOOLS_PREPARE_TOKENIZER_DATA_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/formats/gguf_writer.h"
#include "common/model/vocabulary.h"

namespace fedge {

struct TokenizerData {
  std::string model;  // tokenizer.ggml.model: "llama" (SentencePiece) or "gpt2" (byte-level BPE)
  std::string pre;    // tokenizer.ggml.pre
  std::vector<std::string> pieces;
  std::vector<int32_t> types;       // TokenType of each piece
  std::vector<float> scores;        // of each piece, or none ("gpt2")
  std::vector<std::string> merges;  // "left right", or none ("llama")
  std::optional<TokenId> bos, eos, unknown, padding;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
  std::string chat_template;
  // Special tokens swallow the white space behind them: phi-3's do, and GGUF says so by no key but
  // by the model's name.
  bool specials_strip_right = false;
  // The pieces that llama.cpp insists on in a model named phi-3.
  bool has_phi3_pieces = false;

  // Appends a piece and returns its id.
  TokenId Add(absl::string_view piece, TokenType type) {
    pieces.emplace_back(piece);
    types.push_back(static_cast<int32_t>(type));
    return static_cast<TokenId>(pieces.size()) - 1;
  }
};

void WriteTokenizer(const TokenizerData& data, GgufWriter& writer);

// The character of byte-level BPE that stands for `byte`, in UTF-8: printable Latin-1 for itself,
// the others U+0100 and up in the order of their values.
std::string ByteLevelCharacter(uint8_t byte);

}  // namespace fedge

#endif  // FEDGE_TOOLS_PREPARE_TOKENIZER_DATA_H_
