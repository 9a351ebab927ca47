// Reads the vocabulary out of a SentencePiece model file (spm.model), so that `fedge pretrain` can
// put it into a GGUF. It reads the file only; tokenizing is common/model/tokenizer.h.
#ifndef FEDGE_TOOLS_RECIPES_SENTENCEPIECE_MODEL_H_
#define FEDGE_TOOLS_RECIPES_SENTENCEPIECE_MODEL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fedge {

// SentencePiece's types have the numbers of GGUF's tokenizer.ggml.token_type.
enum class SentencePieceType : int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

struct SentencePiece {
  std::string text;  // U+2581 stands for a blank; a byte piece is spelled "<0x0A>"
  float score = 0;
  SentencePieceType type = SentencePieceType::kNormal;
};

struct SentencePieceVocab {
  enum class ModelType : int32_t { kUnigram = 1, kBpe = 2, kWord = 3, kChar = 4 };

  std::vector<SentencePiece> pieces;  // the index is the token id
  ModelType model_type = ModelType::kUnigram;
  int32_t unk_id = 0;  // -1: the model has none (also below)
  int32_t bos_id = 1;
  int32_t eos_id = 2;
  int32_t pad_id = -1;
  std::string normalizer;  // "identity", "nmt_nfkc", ...
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
};

inline constexpr size_t kMaxSentencePieces = size_t{1} << 20;
inline constexpr size_t kMaxSentencePieceBytes = 1024;

// Parses a serialized sentencepiece.ModelProto (the protobuf wire format; unknown fields are
// skipped). InvalidArgument with the byte offset: truncated or over-long fields, wrong wire types,
// more than kMaxSentencePieces pieces, a piece longer than kMaxSentencePieceBytes or empty, an
// unknown piece type, a score that is not finite, special ids outside the vocabulary, no pieces at
// all. Memory: about 64 bytes a piece, bounded by kMaxSentencePieces.
absl::StatusOr<SentencePieceVocab> ParseSentencePieceModel(absl::string_view bytes);

}  // namespace fedge

#endif  // FEDGE_TOOLS_RECIPES_SENTENCEPIECE_MODEL_H_
