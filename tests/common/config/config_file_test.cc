#include "common/config/config_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fedge/v1/config.pb.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

absl::Status Parse(absl::string_view yaml, v1::ServerConfig& config) {
  return ParseConfig(yaml, "fedge.yaml", config);
}

std::string ErrorOf(absl::string_view yaml) {
  v1::ServerConfig config;
  const absl::Status status = Parse(yaml, config);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  return std::string(status.message());
}

TEST(ConfigFileTest, ReadsNestedFieldsOfEveryType) {
  v1::ServerConfig config;
  ASSERT_TRUE(Parse("listen: 0.0.0.0:9480\n"
                    "run:\n"
                    "  id: demo\n"
                    "  seed: 18446744073709551615\n"
                    "  rounds: 7\n"
                    "  quorum: 0.25\n"
                    "  lora: {rank: 4, alpha: 1e1, target_modules: [q, v]}\n"
                    "  codec:\n"
                    "    no_error_feedback: true\n",
                    config)
                  .ok());
  EXPECT_EQ(config.listen(), "0.0.0.0:9480");
  EXPECT_EQ(config.run().id(), "demo");
  EXPECT_EQ(config.run().seed(), 18446744073709551615u);
  EXPECT_EQ(config.run().rounds(), 7u);
  EXPECT_EQ(config.run().quorum(), 0.25);
  EXPECT_EQ(config.run().lora().alpha(), 10.0f);
  EXPECT_THAT(config.run().lora().target_modules(), ElementsAre("q", "v"));
  EXPECT_TRUE(config.run().codec().no_error_feedback());
}

TEST(ConfigFileTest, ReadsJson) {
  v1::ServerConfig config;
  ASSERT_TRUE(
      Parse(R"({"listen": "a:1", "run": {"rounds": 3, "lora": {"target_modules": ["all"]}}})",
            config)
          .ok());
  EXPECT_EQ(config.listen(), "a:1");
  EXPECT_EQ(config.run().rounds(), 3u);
}

TEST(ConfigFileTest, DistinguishesZeroFromUnset) {
  v1::ServerConfig config;
  ASSERT_TRUE(Parse("run: {quorum: 0}", config).ok());
  EXPECT_TRUE(config.run().has_quorum());
  EXPECT_FALSE(config.run().has_rounds());
}

TEST(ConfigFileTest, KeepsFieldsItDoesNotName) {
  v1::ServerConfig config;
  config.set_listen("before:1");
  config.mutable_run()->set_seed(5);
  ASSERT_TRUE(Parse("run:\n  rounds: 2\n", config).ok());
  EXPECT_EQ(config.listen(), "before:1");
  EXPECT_EQ(config.run().seed(), 5u);
}

TEST(ConfigFileTest, TakesEmptyTextAndEmptyFieldsAsNotWritten) {
  v1::ServerConfig config;
  EXPECT_TRUE(Parse("", config).ok());
  EXPECT_TRUE(Parse("# nothing yet\nrun:\n", config).ok());
  EXPECT_FALSE(config.has_run());
}

TEST(ConfigFileTest, NamesUnknownFieldWithLineAndKnownOnes) {
  EXPECT_EQ(ErrorOf("listen: a:1\nrun:\n  lora:\n    rnak: 3\n"),
            "fedge.yaml:4:5: run.lora: unknown field 'rnak'; known: rank, alpha, target_modules, "
            "layers, rslora, init, init_from, node_ranks");
}

TEST(ConfigFileTest, NamesWrongTypeWithLine) {
  EXPECT_EQ(ErrorOf("run:\n  rounds: many\n"),
            "fedge.yaml:2:11: run.rounds: 'many' is not a whole number of at least 0 up to "
            "4294967295");
  EXPECT_EQ(ErrorOf("run:\n  rounds: -1\n"),
            "fedge.yaml:2:11: run.rounds: '-1' is not a whole number of at least 0 up to "
            "4294967295");
  EXPECT_EQ(ErrorOf("run:\n  rounds: 4294967296\n"),
            "fedge.yaml:2:11: run.rounds: '4294967296' is not a whole number of at least 0 up to "
            "4294967295");
  EXPECT_EQ(ErrorOf("run: 3\n"),
            "fedge.yaml:1:6: run: must be a mapping of fields, not a single value");
  EXPECT_EQ(ErrorOf("listen: [a, b]\n"),
            "fedge.yaml:1:9: listen: must be a single value, not a list");
  EXPECT_EQ(ErrorOf("run: {lora: {target_modules: q}}\n"),
            "fedge.yaml:1:30: run.lora.target_modules: must be a list, not a single value");
  EXPECT_EQ(ErrorOf("run: {codec: {no_error_feedback: yes}}\n"),
            "fedge.yaml:1:34: run.codec.no_error_feedback: 'yes' is not true or false");
  EXPECT_THAT(ErrorOf("[1, 2]"), HasSubstr("must be a mapping of fields, not a list"));
}

TEST(ConfigFileTest, RejectsNonFiniteNumbers) {
  EXPECT_THAT(ErrorOf("run: {quorum: nan}"), HasSubstr("'nan' is not a finite number"));
  EXPECT_THAT(ErrorOf("run: {quorum: inf}"), HasSubstr("'inf' is not a finite number"));
  EXPECT_THAT(ErrorOf("run: {lora: {alpha: 1e39}}"), HasSubstr("'1e39' is not a finite number"));
}

TEST(ConfigFileTest, RejectsRepeatedField) {
  EXPECT_EQ(ErrorOf("listen: a:1\nlisten: b:2\n"), "fedge.yaml:2:1: listen: given twice");
}

TEST(ConfigFileTest, ReportsBrokenYamlWithLine) {
  EXPECT_THAT(ErrorOf("listen: a\nrun: {rounds: 3\n"), StartsWith("fedge.yaml:"));
  EXPECT_THAT(ErrorOf("run:\n\trounds: 3\n"), StartsWith("fedge.yaml:2:"));
  EXPECT_THAT(ErrorOf(std::string(100000, '[')), StartsWith("fedge.yaml:"));
  EXPECT_THAT(ErrorOf("run: *nothing"), StartsWith("fedge.yaml:1:"));
}

TEST(ConfigFileTest, NamesMissingFile) {
  v1::ServerConfig config;
  const absl::Status status = LoadConfigFile("/nonexistent/fedge.yaml", *Env::Posix(), config);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), StartsWith("/nonexistent/fedge.yaml: cannot open"));
}

TEST(ConfigFileTest, DescribesEveryField) {
  const std::string text = DescribeConfig(*v1::ServerConfig::descriptor());
  EXPECT_THAT(text, HasSubstr("listen: text"));
  EXPECT_THAT(text, HasSubstr("# host:port, port 0 picks a free one; default 127.0.0.1:9480\n"));
  EXPECT_THAT(text, HasSubstr("\n    rank: whole number"));
  EXPECT_THAT(text, HasSubstr("\n    target_modules: [text, ...]"));
  EXPECT_EQ(text.find("#  \n"), std::string::npos);  // nothing undocumented
  EXPECT_EQ(text.find("# \n"), std::string::npos);
}

}  // namespace
}  // namespace fedge
