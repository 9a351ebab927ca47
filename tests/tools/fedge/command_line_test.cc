#include "tests/tools/fedge/fedge_fixture.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

class CommandLineTest : public testing::FedgeTest {};

TEST_F(CommandLineTest, EveryCommandExplainsItselfWithAnExample) {
  for (const char* const command :
       {"finetune", "eval", "generate", "tokenize", "inspect", "export", "pretrain"}) {
    const testing::FedgeRun run = Run({command, "--help"});
    EXPECT_EQ(run.code, 0);
    EXPECT_THAT(run.out, HasSubstr(absl::StrCat("Example:\n  fedge ", command, " ")));
  }
  EXPECT_THAT(Run({"--help"}).out, HasSubstr("finetune"));
}

TEST_F(CommandLineTest, AWrongCommandLineIsOneLineAndCodeTwo) {
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{},
                                             {"frobnicate"},
                                             {"eval", "--model"},
                                             {"eval", "--model", model_},
                                             {"inspect", model_, "--format", "xml"},
                                             {"tokenize", "--model", model_},
                                             {"inspect", model_, "--no-such-option"}}) {
    const testing::FedgeRun run = Run(arguments);
    EXPECT_EQ(run.code, 2);
    EXPECT_TRUE(run.IsOneErrorLine()) << run.err;
    EXPECT_EQ(run.out, "");
  }
}

TEST_F(CommandLineTest, ANameWithALineFeedStaysOnOneLine) {
  const testing::FedgeRun run = Run({"inspect", Path("no\nsuch")});
  EXPECT_EQ(run.code, 3);
  EXPECT_TRUE(run.IsOneErrorLine()) << run.err;
}

class TokenizeTest : public testing::FedgeTest {};

TEST_F(TokenizeTest, PrintsAListOfIdsThatDecodesBack) {
  const testing::FedgeRun run =
      Run({"tokenize", "--model", model_, "--text", "the cat", "--format", "json"});
  ASSERT_EQ(run.code, 0) << run.err;
  ASSERT_TRUE(run.Json().is_array());
  EXPECT_EQ(run.Json()[0], 1);
  const testing::FedgeRun plain =
      Run({"tokenize", "--model", model_, "--text", "the cat", "--no-special"});
  EXPECT_EQ(plain.Json().size() + 1, run.Json().size());
  const testing::FedgeRun back =
      Run({"tokenize", "--model", model_, "--decode", "--no-special", "--text", plain.out});
  EXPECT_EQ(back.out, "the cat\n");
}

TEST_F(TokenizeTest, ReadsAFileAndShowsPieces) {
  const std::string file = Write("text", "the \"cat\"");
  const testing::FedgeRun run =
      Run({"tokenize", "--model", model_, "--file", file, "--pieces", "--no-special"});
  EXPECT_EQ(run.code, 0);
  EXPECT_THAT(run.out, HasSubstr("\t\" the\"\n"));
  EXPECT_THAT(run.out, HasSubstr("\t\"\\\"\"\n"));
}

TEST_F(TokenizeTest, RefusesIdsThatAreNone) {
  for (const char* const text : {"1 two", "320", "-1", "1.5"}) {
    const testing::FedgeRun run = Run({"tokenize", "--model", model_, "--decode", "--text", text});
    EXPECT_EQ(run.code, 2) << text;
    EXPECT_TRUE(run.IsOneErrorLine()) << run.err;
  }
}

TEST_F(TokenizeTest, TakesTextOrFileButNotBoth) {
  EXPECT_EQ(Run({"tokenize", "--model", model_, "--text", "a", "--file", model_}).code, 2);
}

}  // namespace
}  // namespace fedge
