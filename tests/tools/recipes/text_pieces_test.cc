#include "tools/recipes/text_pieces.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(CutAtBlankTest, CutsBeforeABlankWithinTheLimit) {
  EXPECT_EQ(CutAtBlank("one two", 7), 7u);
  EXPECT_EQ(CutAtBlank("one two", 6), 3u);
  EXPECT_EQ(CutAtBlank("one  two", 5), 3u);
  EXPECT_EQ(CutAtBlank("one two", 3), 3u);
}

TEST(CutAtBlankTest, NeverSplitsAUtf8Character) {
  EXPECT_EQ(CutAtBlank("ab\xC3\xA9", 3), 2u);        // e acute is two bytes
  EXPECT_EQ(CutAtBlank("  \xC3\xA9xyz", 4), 4u);     // only blanks before: cut behind the character
  EXPECT_EQ(CutAtBlank("\x80\x80\x80\x80", 2), 2u);  // broken bytes still make progress
}

TEST(SplitProseTest, KeepsParagraphsTogetherWhereTheyFit) {
  EXPECT_THAT(SplitProse("aaa\nbbb\n\nccc", 7), ElementsAre("aaa\nbbb", "ccc"));
  EXPECT_THAT(SplitProse("aaa\nbbb\n\nccc", 100), ElementsAre("aaa\nbbb\nccc"));
}

TEST(SplitProseTest, CutsLongParagraphsAtSentenceEnds) {
  EXPECT_THAT(SplitProse("One two. \"Three?\" Four five! Six.", 18),
              ElementsAre("One two. \"Three?\"", "Four five! Six."));
}

TEST(SplitProseTest, CutsLongSentencesAtBlanksAndWordsAnywhere) {
  EXPECT_THAT(SplitProse("alpha beta gamma", 11), ElementsAre("alpha beta", "gamma"));
  EXPECT_THAT(SplitProse("abcdefgh", 3), ElementsAre("abc", "def", "gh"));
}

TEST(SplitProseTest, ReturnsNothingForWhiteSpace) {
  EXPECT_THAT(SplitProse(" \n\n  ", 10), IsEmpty());
}

TEST(JsonStringTest, EscapesAndMendsBrokenUtf8) {
  EXPECT_EQ(JsonString("a\"\n\xC3\xA9"), "\"a\\\"\\n\xC3\xA9\"");
  EXPECT_EQ(JsonString("x\xFFy"), "\"x\xEF\xBF\xBDy\"");
}

}  // namespace
}  // namespace fedge
