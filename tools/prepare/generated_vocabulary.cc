#include "tools/prepare/generated_vocabulary.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr absl::string_view kLetters = "etaoinshrdlucmfwypvbgkjqxz";
constexpr absl::string_view kSpaceMark = "\xe2\x96\x81";  // U+2581
constexpr int64_t kLargestSentencePiece = 40'000;

// Calls `piece(left, right)` for letter sequences of growing length, each the join of a sequence it
// has seen before (or a first character) and one letter, until it returns false. The first
// character may be `space`.
template <typename Piece>
void ForEachSequence(absl::string_view space, Piece piece) {
  std::vector<std::string> shorter = {std::string(space)};
  for (const char letter : kLetters) shorter.emplace_back(1, letter);
  while (true) {
    std::vector<std::string> longer;
    for (const std::string& left : shorter) {
      for (const char letter : kLetters) {
        const std::string right(1, letter);
        if (!piece(left, right)) return;
        longer.push_back(left + right);
      }
    }
    shorter = std::move(longer);
  }
}

void AddControls(const std::vector<absl::string_view>& marks, TokenizerData& data) {
  for (const absl::string_view mark : marks) data.Add(mark, TokenType::kControl);
}

TokenizerData MakeByteLevel(absl::string_view architecture, int64_t size) {
  TokenizerData data;
  data.model = "gpt2";
  data.pre = architecture == "llama" ? "llama-bpe" : architecture == "phi3" ? "gpt-4o" : "qwen2";
  const std::vector<absl::string_view> marks = {"<|begin_of_text|>", "<|endoftext|>",
                                                "<|im_start|>", "<|im_end|>"};
  for (int byte = 0; byte < 256; ++byte) {
    data.Add(ByteLevelCharacter(static_cast<uint8_t>(byte)), TokenType::kNormal);
  }
  const size_t pieces = static_cast<size_t>(size) - marks.size();
  ForEachSequence(ByteLevelCharacter(' '), [&](const std::string& left, const std::string& right) {
    if (data.pieces.size() == pieces) return false;
    data.Add(left + right, TokenType::kNormal);
    data.merges.push_back(absl::StrCat(left, " ", right));
    return true;
  });
  const auto first_mark = static_cast<TokenId>(data.pieces.size());
  AddControls(marks, data);
  data.bos = first_mark;
  data.eos = first_mark + 1;
  data.add_bos = architecture == "llama";
  return data;
}

TokenizerData MakeSentencePiece(absl::string_view architecture, int64_t size) {
  TokenizerData data;
  data.model = "llama";
  data.pre = "default";
  data.unknown = data.Add("<unk>", TokenType::kUnknown);
  data.bos = data.Add("<s>", TokenType::kControl);
  data.eos = data.Add("</s>", TokenType::kControl);
  AddControls({"<start_of_turn>", "<end_of_turn>"}, data);
  for (int byte = 0; byte < 256; ++byte) {
    data.Add(absl::StrFormat("<0x%02X>", byte), TokenType::kByte);
  }
  data.Add(kSpaceMark, TokenType::kNormal);
  for (char c = '!'; c <= '~'; ++c) data.Add(std::string(1, c), TokenType::kNormal);
  ForEachSequence(kSpaceMark, [&](const std::string& left, const std::string& right) {
    if (static_cast<int64_t>(data.pieces.size()) == size) return false;
    data.Add(left + right, TokenType::kNormal);
    return true;
  });
  // Scores fall with the id, as in a trained vocabulary: frequent pieces merge first.
  for (size_t i = 0; i < data.pieces.size(); ++i) {
    const bool normal = data.types[i] == static_cast<int32_t>(TokenType::kNormal);
    data.scores.push_back(normal ? -static_cast<float>(i) : 0.0f);
  }
  data.add_bos = true;
  data.add_eos = false;
  data.add_space_prefix = architecture != "gemma3";
  return data;
}

}  // namespace

absl::StatusOr<TokenizerData> GenerateVocabulary(absl::string_view architecture, int64_t size) {
  if (size < kMinGeneratedVocabulary || size > kMaxGeneratedVocabulary) {
    return absl::InvalidArgumentError(
        absl::StrCat("a vocabulary of ", size, " tokens cannot be generated; choose ",
                     kMinGeneratedVocabulary, " to ", kMaxGeneratedVocabulary));
  }
  const bool small = size <= kLargestSentencePiece;
  if (architecture == "gemma3" || (small && (architecture == "llama" || architecture == "phi3"))) {
    return MakeSentencePiece(architecture, size);
  }
  return MakeByteLevel(architecture, size);
}

}  // namespace fedge
