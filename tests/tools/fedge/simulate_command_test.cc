#include "tests/tools/fedge/fedge_fixture.h"
#include "tests/tools/simulate/tiny_federation.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

class SimulateCommandTest : public testing::FedgeTest {
 protected:
  testing::FedgeRun Simulate(std::vector<std::string> flags) {
    const std::string data = JoinPath(dir_, "data.jsonl");
    EXPECT_TRUE(env_.WriteFileAtomic(data, testing::TinyData()).ok());
    std::vector<std::string> arguments = {"simulate",
                                          "--model",
                                          model_,
                                          "--data",
                                          data,
                                          "--out",
                                          JoinPath(dir_, "out"),
                                          "--rounds",
                                          "1",
                                          "--cohort",
                                          "4",
                                          "--rank",
                                          "2",
                                          "--steps",
                                          "1",
                                          "--length",
                                          "32",
                                          "--no-centralized"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return Run(arguments);
  }
};

TEST_F(SimulateCommandTest, ATrellisTakesTheSettingsMeasuredForIt) {
  const testing::FedgeRun run = Simulate({"--support", "trellis", "--format", "json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const std::string settings = run.Json()["settings"].dump();
  EXPECT_THAT(settings, HasSubstr("trellis, 0.125 bits a value, error feedback on"));
  EXPECT_THAT(settings, HasSubstr("0.25 bits a parameter, trellis"));
  EXPECT_THAT(settings, HasSubstr("learning rate 2.2"));
}

TEST_F(SimulateCommandTest, SaysWhichFlagIsNotForATrellis) {
  const testing::FedgeRun run = Simulate({"--support", "trellis", "--density", "0.1"});
  EXPECT_NE(run.code, 0);
  EXPECT_THAT(run.err, HasSubstr("not for a trellis; use bits_per_parameter"));
}

}  // namespace
}  // namespace fedge
