// Text <-> token ids, as llama.cpp does it from the vocabulary in a GGUF's metadata.
//
// Two deliberate differences, both so that no text can be read as something it is not:
// - without `parse_special`, text never becomes a control, unknown or byte token, not even where
//   the merges of a vocabulary would allow it (SentencePiece itself behaves like this);
// - bytes that are not UTF-8 and a literal U+2581 in SentencePiece text become byte tokens, so that
//   Decode(Encode(x)) == x for any bytes (of a vocabulary that has all byte tokens).
#ifndef FEDGE_COMMON_MODEL_TOKENIZER_H_
#define FEDGE_COMMON_MODEL_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/formats/gguf.h"
#include "common/model/special_pieces.h"
#include "common/model/vocabulary.h"

namespace fedge {

// Immutable and thread-safe.
class Tokenizer {
 public:
  // Reads tokenizer.ggml.*. Models: "llama" (SentencePiece BPE) and "gpt2" (byte-level BPE with
  // pre-tokenizer llama-bpe, qwen2, gpt-4o, gpt-2, smollm or default). Unimplemented names the
  // model or pre-tokenizer it does not know; InvalidArgument for inconsistent vocabularies (sizes,
  // ids, types out of range, merges of unknown pieces).
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromGguf(const GgufFile& file);
  virtual ~Tokenizer() = default;

  struct EncodeOptions {
    bool add_special = true;     // BOS/EOS where the model's metadata asks for them
    bool parse_special = false;  // text such as "<|im_end|>" becomes its control token
    // The text goes on behind other text (a completion behind its prompt): no BOS, and no dummy
    // space of SentencePiece in front, so that " python" is the token it is inside a sentence.
    bool continuation = false;
  };
  std::vector<TokenId> Encode(absl::string_view text, const EncodeOptions& options) const;
  std::vector<TokenId> Encode(absl::string_view text) const {
    return Encode(text, EncodeOptions());
  }

  // A stretch of a text, and whether special tokens may be in it.
  struct TextPart {
    absl::string_view text;
    bool parse_special = false;
  };
  // Appends the ids of `parts` read as one text: merges run across their borders, but a control
  // token is only seen where every byte of it lies in parts that may hold one. No BOS or EOS.
  // `after_special`: in: whether this text starts a record or stands behind a special token (there
  // SentencePiece has its dummy space); out: the same for the text that follows.
  void AppendParts(absl::Span<const TextPart> parts, bool& after_special,
                   std::vector<TokenId>& ids) const;

  // Bytes of one token (byte tokens are the byte; control and unknown tokens are empty unless
  // `special`). Empty for an id out of range.
  std::string TokenBytes(TokenId id, bool special = false) const;
  // Inverse of Encode without specials: the SentencePiece dummy space in front (and behind special
  // tokens) is removed.
  std::string Decode(absl::Span<const TokenId> ids, bool special = false) const;

  int64_t vocab_size() const { return static_cast<int64_t>(vocabulary_.pieces.size()); }
  TokenId bos() const { return vocabulary_.bos; }  // kNoToken when the model has none
  TokenId eos() const { return vocabulary_.eos; }
  bool adds_bos() const { return vocabulary_.add_bos; }
  bool IsEndOfGeneration(TokenId id) const;  // eos, eot, "<|im_end|>", ...
  // The exact piece as the file has it, e.g. "<|im_end|>"; kNoToken when absent.
  TokenId Find(absl::string_view piece) const { return vocabulary_.Find(piece); }
  // tokenizer.chat_template or empty
  const std::string& chat_template() const { return chat_template_; }

 protected:
  explicit Tokenizer(Vocabulary vocabulary)
      : vocabulary_(std::move(vocabulary)), special_pieces_(vocabulary_) {}
  const Vocabulary& vocabulary() const { return vocabulary_; }

  // Appends the ids of a stretch of plain text (no special tokens in it).
  virtual void EncodePlain(absl::string_view text, bool after_special,
                           std::vector<TokenId>& ids) const = 0;
  // Bytes of a normal or unused piece.
  virtual std::string PieceBytes(TokenId id) const = 0;
  virtual bool AddsDummySpace() const { return false; }

 private:
  struct Fragment {
    size_t begin = 0;
    size_t end = 0;
    TokenId token = kNoToken;  // kNoToken: the text [begin, end)
  };
  void SplitAt(TokenId token, absl::string_view text,
               absl::Span<const std::pair<size_t, size_t>> allowed,
               std::vector<Fragment>& fragments) const;
  bool IsSpecial(TokenId id) const;  // control, unknown or user-defined

  Vocabulary vocabulary_;
  SpecialPieces special_pieces_;  // of vocabulary_
  std::string chat_template_;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_TOKENIZER_H_
