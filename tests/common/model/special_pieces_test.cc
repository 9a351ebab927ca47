#include "common/model/special_pieces.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "tests/testing/tiny_vocabulary.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Vocabulary WithSpecials(const std::vector<std::string>& pieces) {
  testing::TinyVocabulary tiny = testing::TinySpm();
  for (const std::string& piece : pieces) tiny.Add(piece, TokenType::kUserDefined);
  const std::string bytes = tiny.Bytes();
  const auto file = GgufFile::Parse(bytes, "tiny.gguf").value();
  return ReadVocabulary(*file, {}).value();
}

TEST(SpecialPiecesTest, FindsThoseThatOccurLongestFirst) {
  const Vocabulary vocabulary = WithSpecials({"\n", "\n\n", "<a>", "<ab>", "$", "<unused9>"});
  const SpecialPieces special(vocabulary);
  const auto id = [&](absl::string_view piece) { return vocabulary.Find(piece); };
  EXPECT_THAT(special.Occurring("x\n\n<a>"), ElementsAre(id("<a>"), id("\n\n"), id("\n")));
  EXPECT_THAT(special.Occurring("$<ab>$</s>$"), ElementsAre(id("</s>"), id("<ab>"), id("$")));
  EXPECT_THAT(special.Occurring("<a"), IsEmpty());
  EXPECT_THAT(special.Occurring("the <unused8>"), IsEmpty());
  EXPECT_THAT(special.Occurring(""), IsEmpty());
}

TEST(SpecialPiecesTest, AgreesWithSearchingEachPiece) {
  Rng rng(4);
  const auto random_text = [&rng](uint64_t size) {
    std::string text;
    for (uint64_t i = 0; i < size; ++i) text.push_back("<ab> "[rng.Below(5)]);
    return text;
  };
  std::vector<std::string> pieces = {"  ", "b"};
  for (int i = 0; i < 60; ++i) pieces.push_back(absl::StrCat(random_text(4 + rng.Below(3)), i));
  pieces.push_back("<ab>");
  const Vocabulary vocabulary = WithSpecials(pieces);
  const SpecialPieces special(vocabulary);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (int i = 0; i < 8; ++i) {
      absl::StrAppend(&text, random_text(rng.Below(4)), pieces[rng.Below(pieces.size())]);
    }
    std::vector<TokenId> expected;
    for (const TokenId id : vocabulary.special) {
      if (text.find(vocabulary.piece(id)) != std::string::npos) expected.push_back(id);
    }
    EXPECT_EQ(special.Occurring(text), expected) << text;
  }
}

}  // namespace
}  // namespace fedge
