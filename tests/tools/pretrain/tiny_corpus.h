// A vocabulary and a text for pre-training tests.
#ifndef FEDGE_TESTS_TOOLS_PRETRAIN_TINY_CORPUS_H_
#define FEDGE_TESTS_TOOLS_PRETRAIN_TINY_CORPUS_H_

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/base/rng.h"

namespace fedge::testing {

inline std::string ProtoField(int field, absl::string_view bytes) {
  std::string result(1, static_cast<char>(field * 8 + 2));
  size_t size = bytes.size();
  for (; size >= 128; size >>= 7) result += static_cast<char>(size % 128 + 128);
  result += static_cast<char>(size);
  return absl::StrCat(result, bytes);
}

inline std::string SentencePieceEntry(absl::string_view text, float score, int type) {
  std::string raw_score(4, '\0');
  std::memcpy(raw_score.data(), &score, 4);
  const std::string type_field = {'\x18', static_cast<char>(type)};
  return ProtoField(1, absl::StrCat(ProtoField(1, text), "\x15", raw_score, type_field));
}

// A serialized SentencePiece BPE model: <unk>, <s>, </s>, 256 byte pieces, the letters a-z, the
// blank mark and the period. `model_type` 2 is BPE.
inline std::string TinySentencePieceModel(char model_type = 2, bool with_bytes = true) {
  std::string model = SentencePieceEntry("<unk>", 0, 2) + SentencePieceEntry("<s>", 0, 3) +
                      SentencePieceEntry("</s>", 0, 3);
  for (int byte = 0; byte < 256 && with_bytes; ++byte) {
    const std::string hex = absl::StrCat(absl::Hex(byte, absl::kZeroPad2));
    std::string upper;
    for (const char c : hex) upper += static_cast<char>(c >= 'a' ? c - 32 : c);
    model += SentencePieceEntry(absl::StrCat("<0x", upper, ">"), 0, 6);
  }
  float score = 0;
  model += SentencePieceEntry("\xE2\x96\x81", --score, 1);
  model += SentencePieceEntry(".", --score, 1);
  for (char c = 'a'; c <= 'z'; ++c) {
    model += SentencePieceEntry(absl::string_view(&c, 1), --score, 1);
  }
  const std::string trainer = {'\x18', model_type};  // TrainerSpec.model_type
  return absl::StrCat(model, ProtoField(2, trainer));
}

// About `bytes` of sentences over a few words, in documents of some sentences.
inline std::string SyntheticText(size_t bytes, uint64_t seed) {
  constexpr absl::string_view kWords[] = {"the", "cat", "sat", "on", "a",
                                          "mat", "and", "saw", "dog"};
  Rng rng(seed);
  std::string text;
  while (text.size() < bytes) {
    const uint64_t sentences = 3 + rng.Below(5);
    for (uint64_t s = 0; s < sentences; ++s) {
      for (uint64_t w = 0; w < 5; ++w) absl::StrAppend(&text, kWords[rng.Below(9)], " ");
      text.back() = '.';
      text += ' ';
    }
    text += "\n\f\n";
  }
  return text;
}

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TOOLS_PRETRAIN_TINY_CORPUS_H_
