#include "common/model/vocabulary.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr char kTokens[] = "tokenizer.ggml.tokens";
constexpr char kTypes[] = "tokenizer.ggml.token_type";
constexpr char kScores[] = "tokenizer.ggml.scores";

// Pieces that llama.cpp takes for the end of a generation, and makes control tokens, whatever type
// the file gives them.
const absl::flat_hash_set<absl::string_view>& EndPieces() {
  static const auto* const kPieces = new absl::flat_hash_set<absl::string_view>({
      "<|eot_id|>",
      "<|im_end|>",
      "<|end|>",
      "<|return|>",
      "<|call|>",
      "<|flush|>",
      "<|calls|>",
      "<end_of_turn>",
      "<|endoftext|>",
      "</s>",
      "<|eom_id|>",
      "<EOT>",
      "_<EOT>",
      "[EOT]",
      "[EOS]",
      "<|end_of_text|>",
      "<end_of_utterance>",
      "<eos>",
      "<turn|>",
      "<\xef\xbd\x9c"
      "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
      // Padding and separators of the fill-in-the-middle format.
      "<|fim_pad|>",
      "<fim-pad>",
      "<fim_pad>",
      "<PAD>",
      "[PAD]",
      "<|fim_repo|>",
      "<|repo_name|>",
      "<fim-repo>",
      "<REPO>",
      "<reponame>",
      "<|file_sep|>",
  });
  return *kPieces;
}

// Pieces that llama.cpp makes control tokens although they end nothing.
const absl::flat_hash_set<absl::string_view>& MiddlePieces() {
  static const auto* const kPieces = new absl::flat_hash_set<absl::string_view>({
      "<|fim_prefix|>",
      "<fim-prefix>",
      "<fim_prefix>",
      "<PRE>",
      "\xe2\x96\x81<PRE>",
      "<|code_prefix|>",
      "<|fim_suffix|>",
      "<fim-suffix>",
      "<fim_suffix>",
      "<SUF>",
      "\xe2\x96\x81<SUF>",
      "<|code_suffix|>",
      "<|fim_middle|>",
      "<fim-middle>",
      "<fim_middle>",
      "<MID>",
      "\xe2\x96\x81<MID>",
      "<|code_middle|>",
      "<\xef\xbd\x9c"
      "fim\xe2\x96\x81"
      "begin\xef\xbd\x9c>",
      "<\xef\xbd\x9c"
      "fim\xe2\x96\x81hole\xef\xbd\x9c>",
      "<\xef\xbd\x9c"
      "fim\xe2\x96\x81"
      "end\xef\xbd\x9c>",
  });
  return *kPieces;
}

absl::Status Invalid(const GgufFile& file, absl::string_view key, absl::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", key, ": ", reason));
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The byte of "<0xHH>"; -1 for anything else ("<0x-1>", "<0x100>").
int ByteOfPiece(absl::string_view piece) {
  if (piece.size() != 6 || !absl::StartsWith(piece, "<0x") || piece[5] != '>') return -1;
  const int high = HexDigit(piece[3]);
  const int low = HexDigit(piece[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

absl::Status ReadPieces(const GgufFile& file, Vocabulary& vocabulary) {
  const GgufValue* const value = file.Find(kTokens);
  if (value == nullptr) {
    return absl::NotFoundError(
        absl::StrCat(file.path(), ": no ", kTokens,
                     ": the file holds no vocabulary; convert the model again with its tokenizer"));
  }
  const auto strings = value->AsStrings();
  if (!strings.ok()) return Invalid(file, kTokens, strings.status().message());
  if (strings->empty()) return Invalid(file, kTokens, "the vocabulary is empty");
  if (strings->size() > kMaxVocabularyTokens) {
    return Invalid(
        file, kTokens,
        absl::StrCat(strings->size(), " tokens exceed the limit ", kMaxVocabularyTokens));
  }
  vocabulary.pieces.reserve(strings->size());
  vocabulary.index.reserve(strings->size());
  for (const absl::string_view piece : *strings) {
    const size_t id = vocabulary.pieces.size();
    if (piece.size() > kMaxPieceBytes) {
      return Invalid(file, kTokens,
                     absl::StrCat("token ", id, " has ", piece.size(),
                                  " bytes, more than the limit ", kMaxPieceBytes));
    }
    vocabulary.pieces.emplace_back(piece);
    if (piece.empty()) continue;
    const auto added = vocabulary.index.emplace(vocabulary.pieces.back(), static_cast<TokenId>(id));
    if (!added.second) {
      return Invalid(file, kTokens,
                     absl::StrCat("tokens ", added.first->second, " and ", id, " are the same"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadTypes(const GgufFile& file, Vocabulary& vocabulary) {
  const size_t count = vocabulary.pieces.size();
  vocabulary.types.assign(count, TokenType::kNormal);
  const GgufValue* const value = file.Find(kTypes);
  if (value == nullptr) return absl::OkStatus();
  const auto types = value->AsInts();
  if (!types.ok()) return Invalid(file, kTypes, types.status().message());
  if (types->size() != count) {
    return Invalid(file, kTypes, absl::StrCat(types->size(), " types for ", count, " tokens"));
  }
  for (size_t i = 0; i < count; ++i) {
    const int64_t type = (*types)[i];
    if (type < 1 || type > 6) {
      return Invalid(file, kTypes, absl::StrCat("token ", i, " has type ", type, ", not 1 to 6"));
    }
    vocabulary.types[i] = static_cast<TokenType>(type);
  }
  return absl::OkStatus();
}

absl::Status ReadScores(const GgufFile& file, Vocabulary& vocabulary) {
  const GgufValue* const value = file.Find(kScores);
  if (value == nullptr) return absl::OkStatus();
  auto scores = value->AsFloats();
  if (!scores.ok()) return Invalid(file, kScores, scores.status().message());
  if (scores->size() != vocabulary.pieces.size()) {
    return Invalid(
        file, kScores,
        absl::StrCat(scores->size(), " scores for ", vocabulary.pieces.size(), " tokens"));
  }
  for (size_t i = 0; i < scores->size(); ++i) {
    if (std::isnan((*scores)[i])) {
      return Invalid(file, kScores, absl::StrCat("the score of token ", i, " is not a number"));
    }
  }
  vocabulary.scores = *std::move(scores);
  return absl::OkStatus();
}

absl::StatusOr<TokenId> ReadTokenId(const GgufFile& file, absl::string_view key, TokenId fallback,
                                    const Vocabulary& vocabulary) {
  const size_t count = vocabulary.pieces.size();
  const GgufValue* const value = file.Find(key);
  if (value == nullptr) {
    return fallback >= 0 && static_cast<size_t>(fallback) < count ? fallback : kNoToken;
  }
  const auto id = value->AsUint();
  if (!id.ok()) return Invalid(file, key, id.status().message());
  if (*id >= count) {
    return Invalid(file, key, absl::StrCat("id ", *id, " in a vocabulary of ", count, " tokens"));
  }
  return static_cast<TokenId>(*id);
}

absl::Status CheckByteTokens(const GgufFile& file, Vocabulary& vocabulary) {
  vocabulary.byte_tokens.assign(256, kNoToken);
  const bool typed = file.Find(kTypes) != nullptr;
  for (size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    const int byte = ByteOfPiece(vocabulary.pieces[i]);
    const bool is_byte = vocabulary.types[i] == TokenType::kByte;
    if (is_byte && byte < 0) {
      return Invalid(file, kTokens,
                     absl::StrCat("byte token ", i, " is named \"",
                                  absl::CHexEscape(vocabulary.pieces[i].substr(0, 64)),
                                  "\", not <0x00> to <0xFF>"));
    }
    // A file without types says by the name alone what a byte token is.
    if (!is_byte && (typed || byte < 0)) continue;
    vocabulary.types[i] = TokenType::kByte;
    TokenId& token = vocabulary.byte_tokens[static_cast<size_t>(byte)];
    if (token == kNoToken) token = static_cast<TokenId>(i);
  }
  return absl::OkStatus();
}

absl::Status ReadSpecialIds(const GgufFile& file, const VocabularyDefaults& defaults,
                            Vocabulary& vocabulary) {
  const auto read = [&](absl::string_view key, TokenId fallback) {
    return ReadTokenId(file, key, fallback, vocabulary);
  };
  ASSIGN_OR_RETURN(vocabulary.bos, read("tokenizer.ggml.bos_token_id", defaults.bos));
  ASSIGN_OR_RETURN(vocabulary.eos, read("tokenizer.ggml.eos_token_id", defaults.eos));
  ASSIGN_OR_RETURN(vocabulary.unknown, read("tokenizer.ggml.unknown_token_id", defaults.unknown));
  for (const absl::string_view key :
       {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    ASSIGN_OR_RETURN(const TokenId id, read(key, kNoToken));
    if (id != kNoToken) vocabulary.end_of_generation.push_back(id);
  }
  constexpr char kAddBos[] = "tokenizer.ggml.add_bos_token";
  constexpr char kAddEos[] = "tokenizer.ggml.add_eos_token";
  const bool default_bos = defaults.add_bos && vocabulary.bos != kNoToken;
  ASSIGN_OR_RETURN(vocabulary.add_bos, file.GetBoolOr(kAddBos, default_bos));
  ASSIGN_OR_RETURN(vocabulary.add_eos, file.GetBoolOr(kAddEos, false));
  if (vocabulary.add_bos && vocabulary.bos == kNoToken) {
    return Invalid(file, kAddBos, "true, but tokenizer.ggml.bos_token_id is missing");
  }
  if (vocabulary.add_eos && vocabulary.eos == kNoToken) {
    return Invalid(file, kAddEos, "true, but tokenizer.ggml.eos_token_id is missing");
  }
  if (vocabulary.eos != kNoToken) vocabulary.end_of_generation.push_back(vocabulary.eos);
  return absl::OkStatus();
}

// What the pieces' texts say about the special tokens, after llama.cpp.
void ReadSpecialPieces(const GgufFile& file, Vocabulary& vocabulary) {
  for (const auto& [piece, id] : vocabulary.index) {
    const bool ends = EndPieces().contains(piece);
    if (!ends && !MiddlePieces().contains(piece)) continue;
    vocabulary.types[static_cast<size_t>(id)] = TokenType::kControl;
    if (ends) vocabulary.end_of_generation.push_back(id);
  }
  std::vector<TokenId>& ends = vocabulary.end_of_generation;
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());

  for (size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    const TokenType type = vocabulary.types[i];
    const bool special = type == TokenType::kControl || type == TokenType::kUnknown ||
                         type == TokenType::kUserDefined;
    if (special && !vocabulary.pieces[i].empty()) {
      vocabulary.special.push_back(static_cast<TokenId>(i));
    }
  }
  std::stable_sort(vocabulary.special.begin(), vocabulary.special.end(),
                   [&vocabulary](TokenId a, TokenId b) {
                     return vocabulary.piece(a).size() > vocabulary.piece(b).size();
                   });

  // Phi-3's marks swallow the white space behind them; GGUF has no key for it.
  vocabulary.strips_right.assign(vocabulary.pieces.size(), false);
  const auto name = file.GetStringOr("general.name", "");
  const std::string lower = absl::AsciiStrToLower(name.ok() ? *name : "");
  if (!absl::StrContains(lower, "phi-3") && !absl::StrContains(lower, "phi3")) return;
  for (const TokenId id : vocabulary.special) {
    const std::string& piece = vocabulary.piece(id);
    vocabulary.strips_right[static_cast<size_t>(id)] =
        piece != "<unk>" && piece != "<s>" && piece != "<|endoftext|>";
  }
}

}  // namespace

absl::StatusOr<Vocabulary> ReadVocabulary(const GgufFile& file,
                                          const VocabularyDefaults& defaults) {
  Vocabulary vocabulary;
  RETURN_IF_ERROR(ReadPieces(file, vocabulary));
  RETURN_IF_ERROR(ReadTypes(file, vocabulary));
  RETURN_IF_ERROR(ReadScores(file, vocabulary));
  RETURN_IF_ERROR(CheckByteTokens(file, vocabulary));
  RETURN_IF_ERROR(ReadSpecialIds(file, defaults, vocabulary));
  ReadSpecialPieces(file, vocabulary);
  return vocabulary;
}

}  // namespace fedge
