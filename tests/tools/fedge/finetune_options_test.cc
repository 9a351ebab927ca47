// What finetune's adapter and memory options do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/tools/fedge/fedge_fixture.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

class FinetuneOptionsTest : public testing::FedgeTest {
 protected:
  void SetUp() override {
    FedgeTest::SetUp();
    std::string text;
    for (int i = 0; i < 12; ++i) absl::StrAppend(&text, "the cat of house ", i, " is asleep\n\n");
    data_ = Write("notes.txt", text);
  }
  testing::FedgeRun Finetune(const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"finetune", "--model",   model_,    "--data",   data_,
                                          "--out",    Path("out"), "--steps", "2",        "--batch",
                                          "4",        "--length",  "32",      "--format", "json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Run(arguments);
  }
  LoraAdapter Adapter() { return ReadAdapterGguf(Path("out/adapter.gguf"), env_)->adapter; }
  nlohmann::json PeftConfig() {
    return nlohmann::json::parse(Read(Path("out/peft/adapter_config.json")), nullptr, false);
  }

  std::string data_;
};

TEST_F(FinetuneOptionsTest, RsloraScalesByTheRootOfTheRank) {
  const testing::FedgeRun run = Finetune({"--rslora", "--rank", "16", "--alpha", "8"});
  ASSERT_EQ(run.code, 0) << run.err;
  const LoraAdapter adapter = Adapter();
  EXPECT_EQ(adapter.spec().alpha(), 32.0f);  // what llama.cpp divides by the rank
  EXPECT_EQ(adapter.spec().scale(adapter.spec().modules()[0]), 2.0f);
  EXPECT_EQ(PeftConfig()["use_rslora"], true);
  EXPECT_EQ(PeftConfig()["lora_alpha"], 8);
}

TEST_F(FinetuneOptionsTest, LayersAndLoraPlus) {
  const testing::FedgeRun run =
      Finetune({"--layers", "1", "--target-modules", "q,v", "--rank", "2", "--lora-plus", "16"});
  ASSERT_EQ(run.code, 0) << run.err;
  const LoraAdapter adapter = Adapter();
  ASSERT_EQ(adapter.spec().modules().size(), 2u);
  EXPECT_EQ(adapter.spec().modules()[0].tensor, "blk.1.attn_q.weight");
  for (const char* const layers : {"1-0", "7", "x", "1-2-3", "-1"}) {
    const testing::FedgeRun refused = Finetune({"--layers", layers});
    EXPECT_NE(refused.code, 0) << layers;
    EXPECT_THAT(refused.err, HasSubstr("layer")) << layers;
  }
}

TEST_F(FinetuneOptionsTest, StartsFromTheQuantizationError) {
  const std::string full = model_;
  testing::TinyModelOptions quantized;
  quantized.dtype = DType::kQ4_0;
  model_ = testing::WriteTinyModel(Path("quantized"), quantized);
  const testing::FedgeRun run =
      Finetune({"--init", "loftq", "--init-from", full, "--rank", "2", "--learning-rate", "1e-9"});
  ASSERT_EQ(run.code, 0) << run.err;
  double norm = 0;
  const LoraAdapter adapter = Adapter();
  for (const float x : adapter.b(0)) norm += double{x} * double{x};
  EXPECT_GT(norm, 1e-3);  // zero where a training of no learning rate starts otherwise
  EXPECT_THAT(Finetune({"--init", "loftq"}).err, HasSubstr("needs the unquantized model"));
  EXPECT_THAT(Finetune({"--init", "pissa"}).err, HasSubstr("known: zero-b, loftq"));
  EXPECT_THAT(Finetune({"--lora", Path("out/adapter.gguf"), "--rslora"}).err,
              HasSubstr("--lora continues one"));
}

TEST_F(FinetuneOptionsTest, PlansForALimitAndSaysSo) {
  const testing::FedgeRun run =
      Finetune({"--memory-limit", "1GB", "--optimizer-bits", "8", "--rank", "4"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_THAT(run.err, HasSubstr(" of 1000 MB (model file "));
  EXPECT_THAT(run.err, HasSubstr("4 rows of 32 tokens in 1 pass, activations of 2 of 2 layers "
                                 "kept, rank 4, 8-bit optimizer"));
  EXPECT_GT(run.Json()["estimated_memory_bytes"], 1'000'000);
}

TEST_F(FinetuneOptionsTest, RefusesTooLittleMemoryWithThePlanThatWouldFit) {
  const testing::FedgeRun run = Finetune({"--memory-limit", "3MB"});
  EXPECT_NE(run.code, 0);
  EXPECT_TRUE(run.IsOneErrorLine()) << run.err;
  EXPECT_THAT(run.err, HasSubstr("a memory limit of 3 MB is too little: the smallest plan, 1 row"));
  EXPECT_THAT(Finetune({"--memory-limit", "much"}).err, HasSubstr("\"much\" is no size"));
}

}  // namespace
}  // namespace fedge
