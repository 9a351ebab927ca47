// Text <-> token ids, exactly as llama.cpp does it from the vocabulary in a GGUF's metadata.
#ifndef FEDGE_COMMON_MODEL_TOKENIZER_H_
#define FEDGE_COMMON_MODEL_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/formats/gguf.h"

namespace fedge {

using TokenId = int32_t;
inline constexpr TokenId kNoToken = -1;

// Immutable and thread-safe.
class Tokenizer {
 public:
  // Reads tokenizer.ggml.*. Models: "llama" (SentencePiece BPE) and "gpt2" (byte-level BPE with
  // pre-tokenizer llama-bpe, qwen2, gpt-2 or default). Unimplemented names the model or
  // pre-tokenizer it does not know; InvalidArgument for inconsistent vocabularies (sizes, ids,
  // types out of range).
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromGguf(const GgufFile& file);
  virtual ~Tokenizer() = default;

  struct EncodeOptions {
    bool add_special = true;     // BOS/EOS where the model's metadata asks for them
    bool parse_special = false;  // text such as "<|im_end|>" becomes its control token
  };
  std::vector<TokenId> Encode(absl::string_view text, const EncodeOptions& options) const;
  std::vector<TokenId> Encode(absl::string_view text) const {
    return Encode(text, EncodeOptions());
  }

  // Bytes of one token (byte tokens are the byte, control tokens are empty unless `special`).
  std::string TokenBytes(TokenId id, bool special = false) const;
  // Inverse of Encode without specials: the SentencePiece dummy space in front is removed.
  std::string Decode(absl::Span<const TokenId> ids, bool special = false) const;

  int64_t vocab_size() const { return static_cast<int64_t>(pieces_.size()); }
  TokenId bos() const { return bos_; }  // kNoToken when the model has none
  TokenId eos() const { return eos_; }
  bool adds_bos() const { return add_bos_; }
  bool IsEndOfGeneration(TokenId id) const;  // eos, eot, "<|im_end|>", ...
  TokenId Find(
      absl::string_view piece) const;  // exact piece, e.g. "<|im_end|>"; kNoToken when absent
  const std::string& chat_template() const {
    return chat_template_;
  }  // tokenizer.chat_template or empty

 protected:
  enum class TokenType : uint8_t {
    kNormal = 1,
    kUnknown = 2,
    kControl = 3,
    kUserDefined = 4,
    kUnused = 5,
    kByte = 6
  };
  Tokenizer() = default;
  // Appends the ids of a stretch of plain text (no special tokens in it).
  virtual void EncodePlain(absl::string_view text, bool at_start,
                           std::vector<TokenId>& ids) const = 0;
  virtual std::string PieceBytes(TokenId id) const = 0;
  virtual bool RemovesLeadingSpace() const = 0;

  friend class TokenizerLoader;
  std::vector<std::string> pieces_;
  std::vector<TokenType> types_;
  absl::flat_hash_map<std::string, TokenId> index_;
  std::vector<TokenId> special_;  // control and user-defined, longest piece first
  std::vector<TokenId> end_of_generation_;
  TokenId bos_ = kNoToken;
  TokenId eos_ = kNoToken;
  TokenId unknown_ = kNoToken;
  bool add_bos_ = false;
  bool add_eos_ = false;
  std::string chat_template_;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_TOKENIZER_H_
