#include "common/training/evaluation.h"
#include "tests/tools/fedge/fedge_fixture.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class EvalCommandTest : public testing::FedgeTest {
 protected:
  void SetUp() override {
    FedgeTest::SetUp();
    std::string text;
    for (int i = 0; i < 20; ++i) text += "the cat and the dog are in the house. ";
    text_ = Write("text.txt", text);
  }
  double Eval(const std::string& lora) {
    std::vector<std::string> arguments = {"eval",      "--model", model_,     "--data", text_,
                                          "--context", "32",      "--format", "json"};
    if (!lora.empty()) arguments.insert(arguments.end(), {"--lora", lora});
    const testing::FedgeRun run = Run(arguments);
    EXPECT_EQ(run.code, 0) << run.err;
    return run.Json().value("perplexity", 0.0);
  }
  std::string text_;
};

TEST_F(EvalCommandTest, PrintsThePerplexityAsJson) {
  const auto model = BaseModel::Load(model_, env_).value();
  ThreadPool pool(1);
  Transformer transformer(model, &pool);
  PerplexityOptions options;
  options.context = 32;
  const PerplexityResult expected =
      Perplexity(transformer, nullptr, Read(text_), options, {}).value();
  EXPECT_DOUBLE_EQ(Eval(""), expected.perplexity);
  const testing::FedgeRun run = Run({"eval", "--model", model_, "--data", text_, "--context", "32",
                                     "--chunks", "2", "--format", "json"});
  EXPECT_EQ(run.Json()["windows"], 2);
  EXPECT_EQ(run.Json()["scored_tokens"], 2 * 15);
}

TEST_F(EvalCommandTest, PrecisionIsFp32UnlessAsked) {
  const auto eval = [this](const std::string& precision) {
    return Run({"eval", "--model", model_, "--data", text_, "--context", "32", "--format", "json",
                "--precision", precision})
        .Json();
  };
  EXPECT_EQ(eval("fp32")["perplexity"].get<double>(), Eval(""));
  const nlohmann::json rounded = eval("bf16");
  EXPECT_EQ(rounded["precision"], "bf16");
  const double ratio = rounded["perplexity"].get<double>() / Eval("");
  EXPECT_EQ(ratio != 1, HasBFloat16Dot());
  EXPECT_NEAR(ratio, 1, 0.01);
}

TEST_F(EvalCommandTest, ScalesTheAdapter) {
  const std::string adapter = WriteAdapter("a.gguf");
  EXPECT_NE(Eval(adapter), Eval(""));
  EXPECT_DOUBLE_EQ(Eval(adapter + ":0"), Eval(""));
  EXPECT_DOUBLE_EQ(Eval(adapter + ":1.0"), Eval(adapter));
  EXPECT_NE(Eval(adapter + ":0.5"), Eval(adapter));
  EXPECT_NE(Eval(adapter + ":-1"), Eval(adapter));
}

TEST_F(EvalCommandTest, TakesAPathWithAColon) {
  const std::string adapter = WriteAdapter("a.gguf");
  ASSERT_TRUE(env_.Rename(adapter, Path("b:2")).ok());
  EXPECT_NE(Eval(Path("b:2")), Eval(""));
  EXPECT_DOUBLE_EQ(Eval(Path("b:2") + ":0"), Eval(""));
}

TEST_F(EvalCommandTest, TextOutputIsAlignedLines) {
  const testing::FedgeRun run =
      Run({"eval", "--model", model_, "--data", text_, "--context", "32"});
  EXPECT_EQ(run.code, 0);
  EXPECT_THAT(run.out, StartsWith("perplexity      "));
}

TEST_F(EvalCommandTest, EachBadInputIsOneLine) {
  const auto code = [this](const std::vector<std::string>& arguments) {
    const testing::FedgeRun run = Run(arguments);
    EXPECT_TRUE(run.IsOneErrorLine()) << run.err;
    EXPECT_EQ(run.out, "");
    return run.code;
  };
  EXPECT_EQ(code({"eval", "--model", Path("none"), "--data", text_}), 3);
  EXPECT_EQ(code({"eval", "--model", text_, "--data", text_}), 2);
  EXPECT_EQ(code({"eval", "--model", model_, "--data", Path("none")}), 3);
  EXPECT_EQ(code({"eval", "--model", model_, "--data", text_, "--context", "512"}), 2);
  EXPECT_EQ(code({"eval", "--model", model_, "--data", text_, "--lora", Path("none:0.5")}), 3);
  const std::string whole = Read(model_);
  const std::string cut = Write("cut.gguf", whole.substr(0, whole.size() / 2));
  EXPECT_EQ(code({"eval", "--model", cut, "--data", text_}), 2);
}

TEST_F(EvalCommandTest, RefusesAnAdapterOfAnotherShape) {
  const std::string adapter = WriteAdapter("a.gguf");
  testing::TinyModelOptions wide;
  wide.embedding_length = 64;
  const std::string other = testing::WriteTinyModel(Path("wide"), wide);
  const testing::FedgeRun run =
      Run({"eval", "--model", other, "--data", text_, "--lora", adapter, "--context", "32"});
  EXPECT_EQ(run.code, 4);
  EXPECT_THAT(run.err, HasSubstr(adapter));
}

class GenerateCommandTest : public testing::FedgeTest {};

TEST_F(GenerateCommandTest, StreamsThePromptAndItsContinuation) {
  const testing::FedgeRun run =
      Run({"generate", "--model", model_, "--prompt", "the cat", "-n", "12", "--temp", "0"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_THAT(run.out, StartsWith("the cat"));
  const testing::FedgeRun json = Run({"generate", "--model", model_, "--prompt", "the cat", "-n",
                                      "12", "--temp", "0", "--ignore-end", "--format", "json"});
  EXPECT_EQ(json.Json()["tokens"].size(), 12u);
  EXPECT_EQ(json.Json()["stop"], "length");
  EXPECT_EQ(json.Json()["prompt"], "the cat");
}

TEST_F(GenerateCommandTest, TheSeedDecides) {
  const auto text = [this](const std::string& seed) {
    return Run({"generate", "--model", model_, "--prompt", "a", "-n", "20", "--temp", "2", "--seed",
                seed, "--format", "json"})
        .Json()["text"]
        .get<std::string>();
  };
  EXPECT_EQ(text("1"), text("1"));
  EXPECT_NE(text("1"), text("2"));
}

TEST_F(GenerateCommandTest, TakesTypesOfTheCacheAndPrecisions) {
  const auto generate = [this](const std::string& option, const std::string& value) {
    return Run(
        {"generate", "--model", model_, "--prompt", "the cat sat", "-n", "6", option, value});
  };
  for (const char* type : {"f32", "f16", "q8", "q4"}) {
    const testing::FedgeRun run = generate("--kv-cache", type);
    EXPECT_EQ(run.code, 0) << run.err;
  }
  for (const char* precision : {"fp32", "bf16"}) {
    EXPECT_EQ(generate("--precision", precision).code, 0) << precision;
  }
  EXPECT_EQ(generate("--kv-cache", "q2").code, 2);
  EXPECT_EQ(generate("--precision", "fp8").code, 2);
}

TEST_F(GenerateCommandTest, RefusesOptionsOutOfRange) {
  const testing::FedgeRun run =
      Run({"generate", "--model", model_, "--prompt", "a", "--temp", "-1"});
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("temperature -1"));
}

}  // namespace
}  // namespace fedge
