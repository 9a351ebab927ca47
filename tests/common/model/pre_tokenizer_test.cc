#include "common/model/pre_tokenizer.h"

#include <string>
#include <vector>

#include "common/base/rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Words(PreTokenizer kind, absl::string_view text) {
  std::vector<std::string> words;
  SplitWords(kind, text, [&](absl::string_view word) { words.emplace_back(word); });
  return words;
}

TEST(PreTokenizerTest, KnowsItsNames) {
  EXPECT_EQ(FindPreTokenizer("llama-bpe"), PreTokenizer::kLlamaBpe);
  EXPECT_EQ(FindPreTokenizer("qwen2"), PreTokenizer::kQwen2);
  EXPECT_EQ(FindPreTokenizer("gpt-4o"), PreTokenizer::kGpt4o);
  EXPECT_EQ(FindPreTokenizer("smollm"), PreTokenizer::kSmolLm);
  EXPECT_EQ(FindPreTokenizer("gpt-2"), PreTokenizer::kGpt2);
  EXPECT_EQ(FindPreTokenizer("default"), PreTokenizer::kDefault);
  EXPECT_EQ(FindPreTokenizer("falcon"), std::nullopt);
}

TEST(PreTokenizerTest, Gpt2) {
  const auto words = [](absl::string_view text) { return Words(PreTokenizer::kGpt2, text); };
  EXPECT_THAT(words("We've 3333 x2!! \n\n  end"),
              ElementsAre("We", "'ve", " 3333", " x", "2", "!!", " \n\n ", " end"));
  EXPECT_THAT(words("WE'VE"), ElementsAre("WE", "'", "VE"));
  EXPECT_THAT(words("a  "), ElementsAre("a", "  "));
  EXPECT_THAT(words("\t\tx"), ElementsAre("\t", "\t", "x"));
}

TEST(PreTokenizerTest, LlamaBpe) {
  const auto words = [](absl::string_view text) { return Words(PreTokenizer::kLlamaBpe, text); };
  EXPECT_THAT(words("We'VE 33333 (x)\n\ny"),
              ElementsAre("We", "'VE", " ", "333", "33", " (", "x", ")\n\n", "y"));
  EXPECT_THAT(words("a \n \n  b"), ElementsAre("a", " \n \n", " ", " b"));
  EXPECT_THAT(words("\tx\n"), ElementsAre("\tx", "\n"));
  EXPECT_THAT(words("'tis 'dx"), ElementsAre("'t", "is", " '", "dx"));
}

TEST(PreTokenizerTest, Qwen2TakesDigitsOneByOne) {
  EXPECT_THAT(Words(PreTokenizer::kQwen2, "x 123\xc2\xbd"),
              ElementsAre("x", " ", "1", "2", "3", "\xc2\xbd"));
}

TEST(PreTokenizerTest, Gpt4oCutsAtCapitals) {
  const auto words = [](absl::string_view text) { return Words(PreTokenizer::kGpt4o, text); };
  EXPECT_THAT(words("HelloWorld we'Ve it's XMLHttp ABC'S"),
              ElementsAre("Hello", "World", " we'Ve", " it's", " XMLHttp", " ABC'S"));
  EXPECT_THAT(words("12345 a/b //\n/x (y)"),
              ElementsAre("123", "45", " a", "/b", " //\n/", "x", " (", "y", ")"));
  EXPECT_THAT(words("a \n \n  b\t"), ElementsAre("a", " \n \n", " ", " b", "\t"));
  EXPECT_THAT(words("'tis A"), ElementsAre("'tis", " A"));
  // Capitals with accents have a case; letters of other scripts count as both.
  EXPECT_THAT(words("\xc3\x84pfel\xc3\xa4\xc3\x84"),
              ElementsAre("\xc3\x84pfel\xc3\xa4", "\xc3\x84"));
  EXPECT_THAT(words("\xe6\x97\xa5"
                    "A"),
              ElementsAre("\xe6\x97\xa5", "A"));
  EXPECT_THAT(words("\xe6\x97\xa5"
                    "a"
                    "A"),
              ElementsAre("\xe6\x97\xa5"
                          "a",
                          "A"));
  EXPECT_THAT(words("A\xe6\x97\xa5"
                    "BC"),
              ElementsAre("A\xe6\x97\xa5", "BC"));
  // A combining mark is part of a word, or leads it.
  EXPECT_THAT(words("e\xcc\x81x \xcc\x81"
                    "A"),
              ElementsAre("e\xcc\x81x", " \xcc\x81", "A"));
  EXPECT_THAT(words("\xcc\x81"
                    "A"),
              ElementsAre("\xcc\x81", "A"));
  EXPECT_THAT(words("1\xcc\x81"
                    "a"),
              ElementsAre("1",
                          "\xcc\x81"
                          "a"));
}

TEST(PreTokenizerTest, SmolLmTakesDigitsOneByOneBeforeGpt2) {
  EXPECT_THAT(Words(PreTokenizer::kSmolLm, "x 12  3's ok"),
              ElementsAre("x", " ", "1", "2", "  ", "3", "'s", " ok"));
}

TEST(PreTokenizerTest, DefaultSetsPunctuationAndNumbersApart) {
  const auto words = [](absl::string_view text) { return Words(PreTokenizer::kDefault, text); };
  EXPECT_THAT(words("It costs $12345.6, x=3!"), ElementsAre("It", " costs", " ", "$", "123", "45",
                                                            ".", "6", ",", " x", "=", "3", "!"));
  EXPECT_THAT(words("a 1234567"), ElementsAre("a", " ", "123", "456", "7"));
  EXPECT_THAT(words("it's"), ElementsAre("it", "'", "s"));
}

TEST(PreTokenizerTest, UnicodeCategoriesDecide) {
  // Cyrillic letters, an ideographic space, a superscript two (number), an emoji (symbol).
  EXPECT_THAT(
      Words(PreTokenizer::kLlamaBpe, "\xd0\xbd\xd0\xb0\xe3\x80\x80\xc2\xb2\xf0\x9f\x98\x80"),
      ElementsAre("\xd0\xbd\xd0\xb0", "\xe3\x80\x80", "\xc2\xb2", "\xf0\x9f\x98\x80"));
}

TEST(PreTokenizerTest, BadBytesCountAsSymbols) {
  EXPECT_THAT(Words(PreTokenizer::kGpt2, "a\xff\xe2\x82z"), ElementsAre("a", "\xff\xe2\x82", "z"));
}

TEST(PreTokenizerTest, WordsJoinedAreTheText) {
  Rng rng(3);
  const std::string alphabet = "ab1 \n\r'sS.$\xc2\xa0\xe2\x80\xa8\xff";
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    const size_t size = rng.Below(24);
    while (text.size() < size) text.push_back(alphabet[rng.Below(alphabet.size())]);
    for (const PreTokenizer kind :
         {PreTokenizer::kDefault, PreTokenizer::kGpt2, PreTokenizer::kLlamaBpe,
          PreTokenizer::kQwen2, PreTokenizer::kGpt4o, PreTokenizer::kSmolLm}) {
      std::string joined;
      for (const std::string& word : Words(kind, text)) {
        ASSERT_FALSE(word.empty());
        joined += word;
      }
      ASSERT_EQ(joined, text);
    }
  }
}

}  // namespace
}  // namespace fedge
