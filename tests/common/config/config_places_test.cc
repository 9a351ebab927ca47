#include "common/config/config_places.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/config/config_file.h"
#include "fedge/v1/config.pb.h"

namespace fedge {
namespace {

constexpr absl::string_view kYaml =
    "base_model: base.gguf\n"
    "run:\n"
    "  rounds: 5\n"
    "  lora:\n"
    "    rank: 5000\n"
    "    node_ranks:\n"
    "      - {rank: 2, share: 0.5}\n"
    "      - rank: 3\n"
    "        share: 0.7\n";

class ConfigPlacesTest : public ::testing::Test {
 protected:
  ConfigPlacesTest() {
    v1::RunFile file;
    EXPECT_TRUE(ParseConfig(kYaml, "run.yaml", file, &places_).ok());
  }
  std::string Located(absl::string_view message) const {
    const absl::Status status = places_.Locate(absl::InvalidArgumentError(message));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  }
  ConfigPlaces places_;
};

TEST_F(ConfigPlacesTest, NamesTheLineOfAField) {
  EXPECT_EQ(Located("run.lora.rank: 5000 is above 1024"),
            "run.yaml:5:5: run.lora.rank: 5000 is above 1024");
  EXPECT_EQ(Located("base_model: no"), "run.yaml:1:1: base_model: no");
  EXPECT_EQ(Located("run.lora.node_ranks[1].share: 7"),
            "run.yaml:9:9: run.lora.node_ranks[1].share: 7");
  EXPECT_EQ(Located("run.lora.node_ranks entries: 9"),
            "run.yaml:6:5: run.lora.node_ranks entries: 9");
}

TEST_F(ConfigPlacesTest, NamesThePartAroundAFieldThatIsNotWritten) {
  EXPECT_EQ(Located("run.training.length: 128 is above 64"),
            "run.yaml:2:1: run.training.length: 128 is above 64");
  EXPECT_EQ(Located("run.lora.alpha: x"), "run.yaml:4:3: run.lora.alpha: x");
  EXPECT_EQ(Located("holdout: x"), "run.yaml: holdout: x");
}

TEST_F(ConfigPlacesTest, LeavesOtherErrorsAlone) {
  EXPECT_EQ(Located("models/base.gguf: no such file"), "models/base.gguf: no such file");
  EXPECT_EQ(Located("disk full"), "disk full");
  EXPECT_EQ(Located("run 'x' does not exist"), "run 'x' does not exist");
  EXPECT_EQ(Located(""), "");
  EXPECT_TRUE(places_.Locate(absl::OkStatus()).ok());
  EXPECT_EQ(ConfigPlaces().Locate(absl::InternalError("run.rounds: 0")).message(), "run.rounds: 0");
}

TEST_F(ConfigPlacesTest, AFlagHasNoLine) {
  places_.Override("run.rounds");
  EXPECT_EQ(Located("run.rounds: 0 is below 1"), "run.rounds: 0 is below 1");
}

TEST(PrintConfigTest, ReadsBackToTheSame) {
  v1::RunFile file;
  ASSERT_TRUE(ParseConfig("holdout: \"a \\\"b\\\"\\u0007.txt\"\n"
                          "run: {id: x, seed: 18446744073709551615, quorum: 0.1,\n"
                          "  lora: {alpha: 1e-3, target_modules: [q, v], rslora: true,\n"
                          "         node_ranks: [{rank: 1, share: 0.25}, {rank: 2}]}}\n",
                          "x", file)
                  .ok());
  const std::string yaml = PrintConfig(file);
  v1::RunFile again;
  const absl::Status status = ParseConfig(yaml, "again", again);
  ASSERT_TRUE(status.ok()) << status << "\n" << yaml;
  EXPECT_EQ(again.SerializeAsString(), file.SerializeAsString()) << yaml;
  EXPECT_EQ(PrintConfig(v1::RunFile()), "");
}

}  // namespace
}  // namespace fedge
