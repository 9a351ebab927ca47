#include "absl/strings/str_join.h"
#include "common/formats/gguf.h"
#include "tests/tools/fedge/fedge_fixture.h"
#include "tests/tools/prepare/hf_folder.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class PrepareCommandsTest : public testing::FedgeTest {
 protected:
  // A random model in F32; returns its path.
  std::string MakeModel(const std::string& name, const std::string& type = "F32") {
    const testing::FedgeRun run = Run({"make-model", "--layers", "1", "--vocab", "600", "--type",
                                       type, "--out", Path(name), "--format", "json"});
    EXPECT_EQ(run.code, 0) << run.err;
    EXPECT_EQ(run.Json()["parameters"], 744'192);
    return Path(name);
  }
  std::vector<std::string> Files() { return env_.ListDir(Path("d")).value(); }
};

TEST_F(PrepareCommandsTest, ExplainThemselvesWithAnExample) {
  for (const char* const command : {"quantize", "make-model", "import"}) {
    const testing::FedgeRun run = Run({command, "--help"});
    EXPECT_EQ(run.code, 0);
    EXPECT_THAT(run.out, HasSubstr(absl::StrCat("  fedge ", command, " ")));
  }
}

TEST_F(PrepareCommandsTest, QuantizeTellsSizesAndErrors) {
  const std::string model = MakeModel("d/m.gguf");
  const testing::FedgeRun run = Run({"quantize", "--model", model, "--type", "q4_k", "--out",
                                     Path("d/q.gguf"), "--threads", "2", "--format", "json"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.Json()["output_bytes"], *env_.FileSize(Path("d/q.gguf")));
  EXPECT_EQ(run.Json()["types"]["Q4_K"]["bits"], 4.5);
  EXPECT_EQ(run.Json()["types"]["Q6_K"]["tensors"], 1);
  const double error = run.Json()["types"]["Q4_K"]["relative_rmse"];
  EXPECT_NEAR(error, 0.07, 0.003);
  EXPECT_THAT(Files(), ElementsAre("m.gguf", "q.gguf"));

  const testing::FedgeRun text = Run({"quantize", "--model", model, "--type", "Q8_0", "--out",
                                      Path("d/q.gguf"), "--output-type", "f16"});
  ASSERT_EQ(text.code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("Q8_0"));
  EXPECT_THAT(text.out, HasSubstr("as it was"));
  const auto file = GgufFile::Open(Path("d/q.gguf"), env_);
  EXPECT_EQ((*file)->FindTensor("token_embd.weight")->type, DType::kF16);
}

TEST_F(PrepareCommandsTest, ImportedModelGenerates) {
  const testing::FedgeRun made =
      Run({"make-model", "--family", "qwen2", "--layers", "1", "--vocab", "600", "--type", "F32",
           "--output-type", "F32", "--out", Path("d/m.gguf")});
  ASSERT_EQ(made.code, 0) << made.err;
  const auto source = GgufFile::Open(Path("d/m.gguf"), env_).value();
  testing::HfFolder(*source).Write(Path("hf"));
  const testing::FedgeRun run = Run({"import", "--from", Path("hf"), "--out", Path("d/i.gguf"),
                                     "--type", "Q4_K_M", "--format", "json"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.Json()["architecture"], "qwen2");
  EXPECT_EQ(run.Json()["tokens"], 600);
  EXPECT_EQ(run.Json()["bytes"], *env_.FileSize(Path("d/i.gguf")));
  EXPECT_EQ(run.Json()["types"]["Q6_K"]["tensors"], 3);  // embedding, attn_v, ffn_down
  const testing::FedgeRun text = Run(
      {"generate", "--model", Path("d/i.gguf"), "--prompt", "the", "-n", "4", "--threads", "1"});
  EXPECT_EQ(text.code, 0) << text.err;

  const testing::FedgeRun without =
      Run({"import", "--from", Path("hf"), "--out", Path("d/x.gguf"), "--output-type", "Q8_0"});
  EXPECT_EQ(without.code, 2);
  EXPECT_TRUE(without.IsOneErrorLine()) << without.err;
  EXPECT_EQ(Run({"import", "--from", Path("none"), "--out", Path("d/x.gguf")}).code, 3);
  EXPECT_FALSE(env_.Exists(Path("d/x.gguf")));
}

TEST_F(PrepareCommandsTest, ErrorsAreOneLineAndLeaveNothing) {
  const std::string model = MakeModel("d/m.gguf", "Q8_0");
  const std::string out = Path("d/out.gguf");
  const std::vector<std::pair<std::vector<std::string>, int>> cases = {
      {{"quantize", "--model", model, "--type", "Q4_0", "--out", model}, 2},
      {{"quantize", "--model", model, "--type", "Q4_0", "--out", out}, 2},  // Q8_0 already
      {{"quantize", "--model", model, "--type", "IQ3", "--out", out}, 2},
      {{"quantize", "--model", Path("none"), "--type", "Q4_0", "--out", out}, 3},
      {{"make-model", "--heads", "5", "--kv-heads", "2", "--out", out}, 2},
      {{"make-model", "--family", "gpt5", "--out", out}, 2},
      {{"make-model", "--heads", "0", "--out", out}, 2},
      {{"make-model", "--vocab", "3", "--out", out}, 2},
  };
  for (const auto& [arguments, code] : cases) {
    const testing::FedgeRun run = Run(arguments);
    EXPECT_EQ(run.code, code) << absl::StrJoin(arguments, " ");
    EXPECT_TRUE(run.IsOneErrorLine()) << run.err;
    EXPECT_THAT(Files(), ElementsAre("m.gguf"));
  }
}

}  // namespace
}  // namespace fedge
