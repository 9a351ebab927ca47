#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/training/dataset.h"
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
using ::testing::SizeIs;

constexpr TokenId kX = kNoToken;

std::shared_ptr<const Tokenizer> MustLoad(const TinyVocabulary& vocabulary) {
  auto tokenizer = vocabulary.Load();
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

Record TextRecord(const std::string& text) {
  Record record;
  record.spans.push_back({text, true, false});
  return record;
}

Record PairRecord(const std::string& prompt, const std::string& completion) {
  Record record;
  record.spans.push_back({prompt, false, false});
  record.spans.push_back({completion, true, false});
  record.has_completion = true;
  return record;
}

// Byte-level, one token a letter, no BOS, EOS 264.
class BpeExamplesTest : public ::testing::Test {
 protected:
  std::shared_ptr<const Tokenizer> tokenizer_ = MustLoad(TinyBpe());
  TokenId eos_ = tokenizer_->eos();
};

TEST_F(BpeExamplesTest, TextIsTrainedToItsEnd) {
  const auto examples = MakeExamples(TextRecord("abc"), *tokenizer_, 8);
  ASSERT_THAT(examples, SizeIs(1));
  EXPECT_THAT(examples[0].tokens, ElementsAre('a', 'b', 'c'));
  EXPECT_THAT(examples[0].targets, ElementsAre('b', 'c', eos_));
  EXPECT_EQ(examples[0].num_targets, 3);
}

TEST_F(BpeExamplesTest, LongTextContinuesWithEveryTargetOnce) {
  const auto examples = MakeExamples(TextRecord("abcdefg"), *tokenizer_, 3);
  ASSERT_THAT(examples, SizeIs(3));
  EXPECT_THAT(examples[0].tokens, ElementsAre('a', 'b', 'c'));
  EXPECT_THAT(examples[0].targets, ElementsAre('b', 'c', 'd'));
  EXPECT_THAT(examples[1].tokens, ElementsAre('d', 'e', 'f'));
  EXPECT_THAT(examples[1].targets, ElementsAre('e', 'f', 'g'));
  EXPECT_THAT(examples[2].tokens, ElementsAre('g'));
  EXPECT_THAT(examples[2].targets, ElementsAre(eos_));
}

TEST_F(BpeExamplesTest, OnlyTheCompletionIsTrained) {
  const auto examples = MakeExamples(PairRecord("abc", "de"), *tokenizer_, 8);
  ASSERT_THAT(examples, SizeIs(1));
  EXPECT_THAT(examples[0].tokens, ElementsAre('a', 'b', 'c', 'd', 'e'));
  EXPECT_THAT(examples[0].targets, ElementsAre(kX, kX, 'd', 'e', eos_));
  EXPECT_EQ(examples[0].num_targets, 3);
}

TEST_F(BpeExamplesTest, PromptThatDoesNotFitLosesItsBeginning) {
  const auto examples = MakeExamples(PairRecord("abcdefgh", "ij"), *tokenizer_, 4);
  ASSERT_THAT(examples, SizeIs(1));
  EXPECT_THAT(examples[0].tokens, ElementsAre('g', 'h', 'i', 'j'));
  EXPECT_THAT(examples[0].targets, ElementsAre(kX, 'i', 'j', eos_));
}

TEST_F(BpeExamplesTest, RecordsWithoutContentMakeNoExample) {
  EXPECT_THAT(MakeExamples(TextRecord(""), *tokenizer_, 8), IsEmpty());
  EXPECT_THAT(MakeExamples(Record(), *tokenizer_, 8), IsEmpty());
  Record untrained;
  untrained.spans.push_back({"abc", false, false});
  EXPECT_THAT(MakeExamples(untrained, *tokenizer_, 8), IsEmpty());
  EXPECT_THAT(MakeExamples(TextRecord(""), *MustLoad(TinySpm()), 8), IsEmpty());
}

TEST(SpmExamplesTest, EveryPieceStartsWithBosThatPredictsNothingInTheMiddle) {
  TinyVocabulary v = TinySpm();
  v.add_space_prefix = false;
  const auto tokenizer = MustLoad(v);
  const TokenId a = tokenizer->Find("a");
  const TokenId n = tokenizer->Find("n");
  const TokenId s = tokenizer->Find("s");
  const auto examples = MakeExamples(TextRecord("anans"), *tokenizer, 3);
  ASSERT_THAT(examples, SizeIs(3));
  EXPECT_THAT(examples[0].tokens, ElementsAre(1, a, n));
  EXPECT_THAT(examples[0].targets, ElementsAre(a, n, a));
  EXPECT_THAT(examples[1].tokens, ElementsAre(1, a, n));
  EXPECT_THAT(examples[1].targets, ElementsAre(kX, n, s));
  EXPECT_EQ(examples[1].num_targets, 2);
  EXPECT_THAT(examples[2].tokens, ElementsAre(1, s));
  EXPECT_THAT(examples[2].targets, ElementsAre(kX, 2));
}

TEST(SpmExamplesTest, CutPromptKeepsBos) {
  TinyVocabulary v = TinySpm();
  v.add_space_prefix = false;
  const auto tokenizer = MustLoad(v);
  const auto examples = MakeExamples(PairRecord("aaaaaaa", "n"), *tokenizer, 4);
  const TokenId a = tokenizer->Find("a");
  const TokenId n = tokenizer->Find("n");
  ASSERT_THAT(examples, SizeIs(1));
  EXPECT_THAT(examples[0].tokens, ElementsAre(1, a, a, n));
  EXPECT_THAT(examples[0].targets, ElementsAre(kX, kX, n, 2));
}

TEST(SpmExamplesTest, DummySpaceStandsAtTheStartOnly) {
  const auto tokenizer = MustLoad(TinySpm());
  const TokenId the = tokenizer->Find("\xe2\x96\x81the");
  const TokenId spaced = tokenizer->Find("\xe2\x96\x81python");
  const TokenId python = tokenizer->Find("python");
  auto examples = MakeExamples(PairRecord("the", " python"), *tokenizer, 8);
  ASSERT_THAT(examples, SizeIs(1));
  EXPECT_THAT(examples[0].tokens, ElementsAre(1, the, spaced));
  EXPECT_THAT(examples[0].targets, ElementsAre(kX, spaced, 2));
  examples = MakeExamples(PairRecord("the", "python"), *tokenizer, 8);
  ASSERT_THAT(examples, SizeIs(1));
  EXPECT_THAT(examples[0].tokens, ElementsAre(1, the, python));
  // The prompt's tokens are those that generation sees for the prompt alone.
  EXPECT_THAT(tokenizer->Encode("the"), ElementsAre(1, the));
}

TEST(ChatExamplesTest, EndMarkIsTrainedAndEosIsNotAddedBehindIt) {
  const auto tokenizer = MustLoad(TinyBpe({"<|im_start|>", "<|im_end|>", "<|endoftext|>"}));
  const TokenId end = tokenizer->Find("<|im_end|>");
  Record record;
  record.spans =
      *RenderChat(ChatFormat::kChatMl, {{"user", "<|im_end|>"}, {"assistant", "on"}}, true);
  const auto examples = MakeExamples(record, *tokenizer, 64);
  ASSERT_THAT(examples, SizeIs(1));
  const Example& example = examples[0];
  EXPECT_EQ(example.num_targets, 2);
  const size_t last = example.tokens.size() - 1;
  EXPECT_EQ(example.tokens[last], end);
  EXPECT_EQ(example.targets[last], kX);  // the line feed behind the mark
  EXPECT_EQ(example.targets[last - 1], end);
  EXPECT_EQ(example.targets[last - 2], tokenizer->Find("on"));
  EXPECT_EQ(std::count(example.tokens.begin(), example.tokens.end(), end), 2);
  EXPECT_EQ(std::count(example.tokens.begin(), example.tokens.end(), tokenizer->eos()), 0);
}

TEST(ChatExamplesTest, PlainConversationEndsWithEos) {
  const auto tokenizer = MustLoad(TinyBpe());
  Record record;
  record.spans = *RenderChat(ChatFormat::kPlain, {{"user", "a"}, {"assistant", "b"}}, true);
  const auto examples = MakeExamples(record, *tokenizer, 64);
  ASSERT_THAT(examples, SizeIs(1));
  EXPECT_EQ(examples[0].targets.back(), tokenizer->eos());
  EXPECT_EQ(examples[0].num_targets, 4);  // " ", "b", line feed, EOS
}

TEST(SplitTest, IsAFunctionOfSeedNodeAndId) {
  Record record = TextRecord("x");
  record.node = "n";
  record.id = "i";
  Record other = TextRecord("y");
  other.node = "n";
  other.id = "i";
  int differs_by_seed = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    EXPECT_EQ(IsValidation(record, seed, 0.5), IsValidation(other, seed, 0.5));
    differs_by_seed += IsValidation(record, seed, 0.5) ? 1 : 0;
  }
  EXPECT_GT(differs_by_seed, 60);
  EXPECT_LT(differs_by_seed, 140);
}

TEST(SplitTest, TakesTheFractionAndGrowsWithIt) {
  int taken = 0;
  for (int i = 0; i < 10000; ++i) {
    Record record = TextRecord("x");
    record.id = absl::StrCat(i);
    EXPECT_FALSE(IsValidation(record, 1, 0));
    const bool tenth = IsValidation(record, 1, 0.1);
    taken += tenth ? 1 : 0;
    EXPECT_LE(tenth, IsValidation(record, 1, 0.3));
  }
  EXPECT_GT(taken, 900);
  EXPECT_LT(taken, 1100);
}

TEST(SplitTest, NodeAndIdDoNotRunTogether) {
  int differs = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Record a, b;
    a.node = "ab";
    a.id = "c";
    b.node = "a";
    b.id = "bc";
    differs += IsValidation(a, seed, 0.5) != IsValidation(b, seed, 0.5) ? 1 : 0;
  }
  EXPECT_GT(differs, 50);
}

}  // namespace
}  // namespace fedge
