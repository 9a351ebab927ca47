// Vocabularies small enough to check by hand, as GGUF bytes, with every field open to damage.
#ifndef FEDGE_TESTS_TESTING_TINY_VOCABULARY_H_
#define FEDGE_TESTS_TESTING_TINY_VOCABULARY_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "common/formats/gguf.h"
#include "common/formats/gguf_writer.h"
#include "common/model/tokenizer.h"

namespace fedge::testing {

struct TinyVocabulary {
  std::string model;
  std::optional<std::string> pre;
  std::string name = "tiny";
  std::vector<std::string> pieces;
  std::optional<std::vector<int32_t>> types;
  std::optional<std::vector<float>> scores;
  std::optional<std::vector<std::string>> merges;
  std::optional<uint32_t> bos, eos, unknown;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
  std::string chat_template;
  std::function<void(GgufWriter&)> extra;  // further keys

  // Appends a piece and returns its id.
  TokenId Add(absl::string_view piece, TokenType type = TokenType::kNormal, float score = 0) {
    pieces.emplace_back(piece);
    if (types) types->push_back(static_cast<int32_t>(type));
    if (scores) scores->push_back(score);
    return static_cast<TokenId>(pieces.size()) - 1;
  }

  std::string Bytes() const {
    GgufWriter writer;
    writer.SetString("general.name", name);
    writer.SetString("tokenizer.ggml.model", model);
    if (pre) writer.SetString("tokenizer.ggml.pre", *pre);
    if (!pieces.empty()) writer.SetStrings("tokenizer.ggml.tokens", pieces);
    if (types) writer.SetInt32s("tokenizer.ggml.token_type", *types);
    if (scores) writer.SetFloat32s("tokenizer.ggml.scores", *scores);
    if (merges) writer.SetStrings("tokenizer.ggml.merges", *merges);
    if (bos) writer.SetUint32("tokenizer.ggml.bos_token_id", *bos);
    if (eos) writer.SetUint32("tokenizer.ggml.eos_token_id", *eos);
    if (unknown) writer.SetUint32("tokenizer.ggml.unknown_token_id", *unknown);
    if (add_bos) writer.SetBool("tokenizer.ggml.add_bos_token", *add_bos);
    if (add_eos) writer.SetBool("tokenizer.ggml.add_eos_token", *add_eos);
    if (add_space_prefix) {
      writer.SetBool("tokenizer.ggml.add_space_prefix", *add_space_prefix);
    }
    if (!chat_template.empty()) writer.SetString("tokenizer.chat_template", chat_template);
    if (extra) extra(writer);
    return writer.Serialize();
  }

  absl::StatusOr<std::shared_ptr<const Tokenizer>> Load() const {
    const std::string bytes = Bytes();
    const auto file = GgufFile::Parse(bytes, "tiny.gguf");
    if (!file.ok()) return file.status();
    return Tokenizer::FromGguf(**file);
  }
};

// SentencePiece: <unk> <s> </s>, the bytes at 3..258, the space mark at 259, then words.
inline TinyVocabulary TinySpm() {
  TinyVocabulary v;
  v.model = "llama";
  v.types.emplace();
  v.scores.emplace();
  v.Add("<unk>", TokenType::kUnknown);
  v.Add("<s>", TokenType::kControl);
  v.Add("</s>", TokenType::kControl);
  for (int byte = 0; byte < 256; ++byte) v.Add(absl::StrFormat("<0x%02X>", byte), TokenType::kByte);
  // Scores fall with the id, as in a trained SentencePiece model.
  float score = 0;
  for (const char* piece : {"\xe2\x96\x81",
                            "\xe2\x96\x81t",
                            "he",
                            "\xe2\x96\x81the",
                            "py",
                            "on",
                            "th",
                            "thon",
                            "\xe2\x96\x81py",
                            "\xe2\x96\x81python",
                            "python",
                            "t",
                            "h",
                            "e",
                            "p",
                            "y",
                            "o",
                            "n",
                            "a",
                            "s",
                            "<",
                            ">",
                            "/",
                            "[",
                            "]",
                            "I",
                            "N",
                            "S",
                            "T"}) {
    v.Add(piece, TokenType::kNormal, score);
    score -= 1;
  }
  return v;
}

// The character that stands for a byte in byte-level BPE.
inline std::string BpeLetter(int byte) {
  const auto itself = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b != 173); };
  int code = byte;
  if (!itself(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += itself(b) ? 0 : 1;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

// Byte-level BPE: the bytes at 0..255, merged pieces, then the control tokens of `marks`.
inline TinyVocabulary TinyBpe(const std::vector<std::string>& marks = {"<|endoftext|>"}) {
  TinyVocabulary v;
  v.model = "gpt2";
  v.pre = "gpt-2";
  v.types.emplace();
  v.merges.emplace();
  for (int byte = 0; byte < 256; ++byte) v.Add(BpeLetter(byte));
  const std::string space = BpeLetter(' ');
  const std::vector<std::pair<std::string, std::string>> merges = {
      {space, "t"}, {"h", "e"},   {space + "t", "he"}, {"t", "h"},
      {"o", "n"},   {"th", "on"}, {"p", "y"},          {"py", "thon"}};
  for (const auto& [left, right] : merges) {
    v.merges->push_back(left + " " + right);
    v.Add(left + right);
  }
  for (const std::string& mark : marks) v.Add(mark, TokenType::kControl);
  v.eos = static_cast<uint32_t>(v.pieces.size() - 1);
  return v;
}

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_TINY_VOCABULARY_H_
