// The vocabulary of a GGUF file: pieces, their types and scores, and the special tokens.
//
// Untrusted input, checked once here: what the tokenizers get cannot be inconsistent any more.
#ifndef FEDGE_COMMON_MODEL_VOCABULARY_H_
#define FEDGE_COMMON_MODEL_VOCABULARY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/formats/gguf.h"

namespace fedge {

using TokenId = int32_t;
inline constexpr TokenId kNoToken = -1;

// tokenizer.ggml.token_type
enum class TokenType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

inline constexpr uint64_t kMaxVocabularyTokens = uint64_t{1} << 24;
inline constexpr uint64_t kMaxPieceBytes = uint64_t{1} << 16;

struct Vocabulary {
  Vocabulary() = default;
  Vocabulary(Vocabulary&&) = default;  // moving keeps the pieces where `index` points at them
  Vocabulary& operator=(Vocabulary&&) = default;
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  // The id of an exact piece; kNoToken when there is none.
  TokenId Find(absl::string_view piece) const {
    const auto found = index.find(piece);
    return found == index.end() ? kNoToken : found->second;
  }
  TokenType type(TokenId id) const { return types[static_cast<size_t>(id)]; }
  const std::string& piece(TokenId id) const { return pieces[static_cast<size_t>(id)]; }
  // May plain text become this token? Control, unknown and byte tokens are never spelled by text:
  // otherwise a user who writes "</s>" would end the conversation.
  bool IsSpellable(TokenId id) const {
    const TokenType t = type(id);
    return t == TokenType::kNormal || t == TokenType::kUserDefined || t == TokenType::kUnused;
  }

  std::vector<std::string> pieces;
  std::vector<TokenType> types;                           // as many as pieces
  std::vector<float> scores;                              // as many as pieces, or none; never NaN
  absl::flat_hash_map<absl::string_view, TokenId> index;  // no empty piece
  std::vector<TokenId> special;            // control, unknown and user-defined, longest piece first
  std::vector<bool> strips_right;          // by token: swallows the white space behind it
  std::vector<TokenId> byte_tokens;        // [256] the token "<0xHH>" of each byte, or kNoToken
  std::vector<TokenId> end_of_generation;  // sorted
  TokenId bos = kNoToken;
  TokenId eos = kNoToken;
  TokenId unknown = kNoToken;
  bool add_bos = false;  // then bos is a token
  bool add_eos = false;  // then eos is a token
};

// What a tokenizer model assumes where the metadata is silent.
struct VocabularyDefaults {
  TokenId bos = kNoToken;
  TokenId eos = kNoToken;
  TokenId unknown = kNoToken;
  bool add_bos = false;
};

// Reads tokenizer.ggml.{tokens,token_type,scores,*_token_id,add_*_token}. InvalidArgument, with the
// file, the key and the token: arrays of other lengths or types, a piece that is too long or occurs
// twice, a type or an id out of range, a score that is not a number, a byte token that names no
// byte. NotFound: no tokens at all.
absl::StatusOr<Vocabulary> ReadVocabulary(const GgufFile& file, const VocabularyDefaults& defaults);

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_VOCABULARY_H_
