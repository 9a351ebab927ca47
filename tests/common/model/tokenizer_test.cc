#include "common/model/tokenizer.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/tiny_vocabulary.h"

namespace fedge {
namespace {

using ::fedge::testing::TinyBpe;
using ::fedge::testing::TinySpm;
using ::fedge::testing::TinyVocabulary;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::shared_ptr<const Tokenizer> MustLoad(const TinyVocabulary& vocabulary) {
  auto tokenizer = vocabulary.Load();
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

// The pieces of the ids, readable.
std::vector<std::string> Pieces(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  std::vector<std::string> pieces;
  for (const TokenId id : ids) pieces.push_back(tokenizer.TokenBytes(id, true));
  return pieces;
}

std::vector<std::string> Encode(const Tokenizer& tokenizer, absl::string_view text,
                                bool parse_special = false, bool continuation = false) {
  Tokenizer::EncodeOptions options;
  options.add_special = false;
  options.parse_special = parse_special;
  options.continuation = continuation;
  return Pieces(tokenizer, tokenizer.Encode(text, options));
}

std::string RandomBytes(Rng& rng, size_t size, bool mostly_text) {
  const std::vector<std::string> words = {" the", " python", "\xe2\x96\x81", "\n\n",
                                          "  ",   "</s>",    "<0x41>",       "\xf0\x9f\x98\x80",
                                          "3333", "\xe2",    "'ll"};
  std::string text;
  while (text.size() < size) {
    if (mostly_text && rng.Below(3) != 0) {
      text += words[rng.Below(words.size())];
    } else {
      text.push_back(static_cast<char>(rng.Below(256)));
    }
  }
  return text;
}

void ExpectRoundTripsOfAnyBytes(const Tokenizer& tokenizer) {
  Rng rng(7);
  Tokenizer::EncodeOptions options;
  options.add_special = false;
  for (int i = 0; i < 400; ++i) {
    const std::string text = RandomBytes(rng, rng.Below(60), i % 2 == 0);
    EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(text, options)), text) << i;
  }
}

TEST(SpmTokenizerTest, MergesTheBestScoredPairFirst) {
  const auto tokenizer = MustLoad(TinySpm());
  EXPECT_THAT(Encode(*tokenizer, "the python"), ElementsAre(" the", " python"));
  // "th" would make "thon" first, but "he" has the higher score.
  EXPECT_THAT(Encode(*tokenizer, "pythehe"), ElementsAre(" py", "t", "he", "he"));
}

TEST(SpmTokenizerTest, PutsTheDummySpaceInFrontOnly) {
  const auto tokenizer = MustLoad(TinySpm());
  EXPECT_THAT(Encode(*tokenizer, ""), IsEmpty());
  EXPECT_THAT(Encode(*tokenizer, " the"), ElementsAre(" ", " the"));
  EXPECT_THAT(Encode(*tokenizer, "thee"), ElementsAre(" the", "e"));
  TinyVocabulary without = TinySpm();
  without.add_space_prefix = false;
  EXPECT_THAT(Encode(*MustLoad(without), "the"), ElementsAre("t", "he"));
}

TEST(SpmTokenizerTest, ContinuationHasNeitherBosNorDummySpace) {
  const auto tokenizer = MustLoad(TinySpm());
  EXPECT_THAT(Encode(*tokenizer, " python", false, true), ElementsAre(" python"));
  EXPECT_THAT(Encode(*tokenizer, "python", false, true), ElementsAre("python"));
  Tokenizer::EncodeOptions options;
  options.continuation = true;
  EXPECT_THAT(Pieces(*tokenizer, tokenizer->Encode(" the", options)), ElementsAre(" the"));
}

TEST(SpmTokenizerTest, FallsBackToBytes) {
  const auto tokenizer = MustLoad(TinySpm());
  EXPECT_THAT(tokenizer->Encode("\xc3\xa9"), ElementsAre(1, 259, 3 + 0xC3, 3 + 0xA9));
  EXPECT_THAT(tokenizer->Encode("\n"), ElementsAre(1, 259, 3 + 10));
  EXPECT_EQ(tokenizer->TokenBytes(3 + 0xC3), "\xc3");
  EXPECT_EQ(tokenizer->TokenBytes(3), std::string(1, '\0'));
}

TEST(SpmTokenizerTest, RoundTripsAnyBytes) { ExpectRoundTripsOfAnyBytes(*MustLoad(TinySpm())); }

TEST(SpmTokenizerTest, KeepsALiteralSpaceMarkApartFromASpace) {
  const auto tokenizer = MustLoad(TinySpm());
  const std::string text = "the\xe2\x96\x81the the";
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
}

TEST(SpmTokenizerTest, AddsBosAndEosAsTheMetadataSays) {
  EXPECT_THAT(MustLoad(TinySpm())->Encode(""), ElementsAre(1));
  TinyVocabulary v = TinySpm();
  v.add_bos = false;
  v.add_eos = true;
  EXPECT_THAT(MustLoad(v)->Encode("the"), ElementsAre(262, 2));
}

TEST(SpmTokenizerTest, TextNeverSpellsControlOrByteTokens) {
  TinyVocabulary v = TinySpm();
  v.Add("</", TokenType::kNormal, 5);  // with these, the merges of "</s>" lead to the control token
  v.Add("</s", TokenType::kNormal, 6);
  const auto tokenizer = MustLoad(v);
  EXPECT_THAT(Encode(*tokenizer, "</s>"), ElementsAre(" ", "</s", ">"));
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("<0x41></s><s>")), "<0x41></s><s>");
  EXPECT_THAT(tokenizer->Encode("</s>", {false, true, false}), ElementsAre(2));
}

TEST(SpmTokenizerTest, ParsesSpecialTokensAndStartsAfreshBehindThem) {
  const auto tokenizer = MustLoad(TinySpm());
  EXPECT_THAT(Encode(*tokenizer, "the</s><s>the", true),
              ElementsAre(" the", "</s>", "<s>", " the"));
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("the</s>the", {false, true, false}), true),
            "the</s>the");
}

TEST(SpmTokenizerTest, UserDefinedTokensAreFoundInPlainText) {
  TinyVocabulary v = TinySpm();
  const TokenId feed = v.Add("\n", TokenType::kUserDefined);
  const TokenId feeds = v.Add("\n\n", TokenType::kUserDefined);
  const auto tokenizer = MustLoad(v);
  EXPECT_THAT(tokenizer->Encode("the\nthe"), ElementsAre(1, 262, feed, 262));
  EXPECT_THAT(tokenizer->Encode("\n\n\n"), ElementsAre(1, feeds, feed));
  ExpectRoundTripsOfAnyBytes(*tokenizer);
}

TEST(SpmTokenizerTest, UnknownBytesBecomeTheUnknownToken) {
  TinyVocabulary v;
  v.model = "llama";
  v.Add("<unk>");
  v.Add("<s>");
  v.Add("</s>");
  v.Add("\xe2\x96\x81");
  v.Add("a");
  EXPECT_THAT(MustLoad(v)->Encode("ab"), ElementsAre(1, 3, 4, 0));
}

TEST(SpmTokenizerTest, PiecesAcrossWordsMergeToo) {
  TinyVocabulary v = TinySpm();
  const TokenId both = v.Add("e\xe2\x96\x81", TokenType::kNormal, 9);
  EXPECT_THAT(MustLoad(v)->Encode("the the"), ElementsAre(1, 260, 271, both, 270, 261));
}

TEST(SpmTokenizerTest, LongRunsStayFast) {
  TinyVocabulary v = TinySpm();
  std::string piece = "a";
  for (int i = 0; i < 5; ++i) v.Add(piece += piece, TokenType::kNormal, -50);
  const auto tokenizer = MustLoad(v);
  const std::string text(1 << 20, 'a');
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
}

TEST(SpmTokenizerTest, Phi3MarksSwallowTheWhiteSpaceBehindThem) {
  TinyVocabulary v = TinySpm();
  v.name = "Phi-3 mini";
  v.Add("<|user|>", TokenType::kControl);
  EXPECT_THAT(Encode(*MustLoad(v), "<|user|>\n the<s> the", true),
              ElementsAre("<|user|>", " the", "<s>", " ", " the"));
}

TEST(BpeTokenizerTest, MergesByRank) {
  const auto tokenizer = MustLoad(TinyBpe());
  EXPECT_THAT(Encode(*tokenizer, "the the python"), ElementsAre("t", "he", " the", " ", "python"));
}

TEST(BpeTokenizerTest, EqualRanksMergeFromTheLeft) {
  TinyVocabulary v = TinyBpe();
  v.merges->push_back("a a");
  v.Add("aa");
  EXPECT_THAT(Encode(*MustLoad(v), "aaaaa"), ElementsAre("aa", "aa", "a"));
}

TEST(BpeTokenizerTest, RoundTripsAnyBytes) {
  for (const char* pre : {"gpt-2", "llama-bpe", "qwen2", "default"}) {
    TinyVocabulary v = TinyBpe();
    v.pre = pre;
    ExpectRoundTripsOfAnyBytes(*MustLoad(v));
  }
  TinyVocabulary v = TinyBpe();
  v.pre.reset();  // means default
  ExpectRoundTripsOfAnyBytes(*MustLoad(v));
}

TEST(BpeTokenizerTest, LlamaTakesWholeWordsWhateverTheMergesSay) {
  TinyVocabulary v = TinyBpe();
  v.Add("hello");  // no merges lead there
  EXPECT_THAT(Encode(*MustLoad(v), "hello"), ElementsAre("he", "l", "l", "o"));
  v.pre = "llama-bpe";
  EXPECT_THAT(Encode(*MustLoad(v), "hello"), ElementsAre("hello"));
}

TEST(BpeTokenizerTest, TextNeverSpellsControlTokens) {
  TinyVocabulary v = TinyBpe();
  v.pre = "llama-bpe";
  v.Add("hello", TokenType::kControl);
  v.merges->push_back("y p");
  v.Add("yp", TokenType::kControl);
  const auto tokenizer = MustLoad(v);
  EXPECT_THAT(Encode(*tokenizer, "hello"), ElementsAre("he", "l", "l", "o"));
  EXPECT_THAT(Encode(*tokenizer, "yp"), ElementsAre("y", "p"));
  EXPECT_THAT(Encode(*tokenizer, "hello", true), ElementsAre("hello"));
}

TEST(BpeTokenizerTest, ParsesTheLongestSpecialTokenFirst) {
  const auto tokenizer = MustLoad(TinyBpe({"<|a|>", "<|a|><|b|>", "<|b|>"}));
  EXPECT_THAT(Encode(*tokenizer, "<|b|><|a|><|b|>h<|a|>", true),
              ElementsAre("<|b|>", "<|a|><|b|>", "h", "<|a|>"));
  EXPECT_EQ(Encode(*tokenizer, "<|a|>").size(), 5u);
}

TEST(BpeTokenizerTest, ControlTokensMustLieWhereTheyAreAllowed) {
  const auto tokenizer = MustLoad(TinyBpe({"<|a|>"}));
  const TokenId mark = tokenizer->Find("<|a|>");
  const std::vector<Tokenizer::TextPart> parts = {
      {"<|a|>t", true}, {"he <|a|><|a", false}, {"|><|a", true}, {"|>", true}};
  std::vector<TokenId> ids;
  bool after_special = true;
  tokenizer->AppendParts(parts, after_special, ids);
  // Merges run across parts ("t" + "he" stay apart here for want of a merge, " " + "<" too).
  EXPECT_EQ(ids.front(), mark);
  EXPECT_EQ(ids.back(), mark);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), mark), 2);
  EXPECT_TRUE(after_special);
  std::string text;
  for (const TokenId id : ids) text += tokenizer->TokenBytes(id, true);
  EXPECT_EQ(text, "<|a|>the <|a|><|a|><|a|>");
}

TEST(BpeTokenizerTest, MergesRunAcrossParts) {
  const auto tokenizer = MustLoad(TinyBpe());
  std::vector<TokenId> ids;
  bool after_special = true;
  tokenizer->AppendParts({{"p", true}, {"yt", false}, {"hon", true}}, after_special, ids);
  EXPECT_THAT(Pieces(*tokenizer, ids), ElementsAre("python"));
  EXPECT_FALSE(after_special);
}

TEST(BpeTokenizerTest, BytesTheVocabularyLacksAreLeftOut) {
  TinyVocabulary v = TinyBpe();
  v.pieces['z'] = "not a byte";
  EXPECT_THAT(Encode(*MustLoad(v), "hzh"), ElementsAre("h", "h"));
  v.unknown = 256;
  EXPECT_THAT(Encode(*MustLoad(v), "hzh"), ElementsAre("h", " t", "h"));
}

TEST(BpeTokenizerTest, LongWordsStayFast) {
  TinyVocabulary v = TinyBpe();
  std::string piece = "a";
  for (int i = 0; i < 5; ++i) {
    v.merges->push_back(absl::StrCat(piece, " ", piece));
    v.Add(piece += piece);
  }
  const auto tokenizer = MustLoad(v);
  const std::string text(1 << 20, 'a');
  EXPECT_EQ(tokenizer->Encode(text).size(), text.size() / 32);
}

TEST(TokenizerTest, IdsOutOfRangeDecodeToNothing) {
  const auto tokenizer = MustLoad(TinySpm());
  EXPECT_EQ(tokenizer->TokenBytes(-1), "");
  EXPECT_EQ(tokenizer->TokenBytes(288), "");
  EXPECT_EQ(tokenizer->Decode({kNoToken, 262, 1 << 30}), "the");
}

TEST(TokenizerTest, KeepsTheChatTemplate) {
  TinyVocabulary v = TinySpm();
  EXPECT_EQ(MustLoad(v)->chat_template(), "");
  v.chat_template = "{{ x }}";
  EXPECT_EQ(MustLoad(v)->chat_template(), "{{ x }}");
}

}  // namespace
}  // namespace fedge
