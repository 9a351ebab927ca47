#include "tools/recipes/command.h"

#include "gtest/gtest.h"

namespace fedge {
namespace {

TEST(CommandRunnerTest, ReturnsOutputErrorsAndExitCode) {
  const auto output = CommandRunner::System()->Run({"sh", "-c", "echo out; echo err >&2; exit 3"});
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(output->text, "out\n");
  EXPECT_EQ(output->error_text, "err\n");
  EXPECT_EQ(output->exit_code, 3);
}

TEST(CommandRunnerTest, GivesNoInputAndTheCLocale) {
  const auto output = CommandRunner::System()->Run({"sh", "-c", "cat; echo $LC_ALL"});
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(output->text, "C\n");
}

TEST(CommandRunnerTest, PassesArgumentsUntouched) {
  const auto output = CommandRunner::System()->Run({"printf", "%s|", "a b", "$HOME", "*"});
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(output->text, "a b|$HOME|*|");
}

TEST(CommandRunnerTest, ReportsAMissingProgram) {
  const auto output = CommandRunner::System()->Run({"fedge-no-such-program"});
  EXPECT_EQ(output.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(output.status().message(), "program fedge-no-such-program not found");
}

TEST(CommandRunnerTest, EndsAProgramThatWritesTooMuch) {
  CommandRunner::Limits limits;
  limits.output_bytes = 1000;
  const auto output = CommandRunner::System()->Run({"yes"}, limits);
  EXPECT_EQ(output.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(output.status().message(), "yes: more than 1000 bytes of output, which is the limit");
}

TEST(CommandRunnerTest, EndsAProgramThatTakesTooLong) {
  CommandRunner::Limits limits;
  limits.time = absl::ZeroDuration();
  const auto output = CommandRunner::System()->Run({"sleep", "600"}, limits);
  EXPECT_EQ(output.status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(CommandRunnerTest, ReadsMuchOnBothStreams) {
  const auto output = CommandRunner::System()->Run(
      {"sh", "-c", "head -c 3000000 /dev/zero >&2; head -c 3000000 /dev/zero"});
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(output->text.size(), 3000000u);
  EXPECT_GE(output->error_text.size(), 65536u);
  EXPECT_LE(output->error_text.size(), 131072u);
}

}  // namespace
}  // namespace fedge
