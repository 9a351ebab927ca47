#include "tools/prepare/random_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/formats/gguf.h"
#include "common/model/tokenizer.h"
#include "common/tensor/quantize.h"
#include "tests/testing/fault_env.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string NewFolder(absl::string_view name) {
  const std::string dir = absl::StrCat(::testing::TempDir(), "/random_model_", name);
  Env::Posix()->Remove(dir).IgnoreError();
  EXPECT_TRUE(Env::Posix()->CreateDirs(dir).ok());
  return dir;
}

RandomModelOptions TinyOptions(absl::string_view family, const std::string& path) {
  RandomModelOptions options;
  options.outline = MakeNamedOutline({std::string(family), "tiny"}).value();
  options.outline.layers = 2;
  options.output_file = path;
  return options;
}

class RandomModelTest : public ::testing::TestWithParam<const char*> {};

TEST_P(RandomModelTest, WritesAllTensorsAndAVocabulary) {
  const std::string path = NewFolder(GetParam()) + "/x.gguf";
  RandomModelOptions options = TinyOptions(GetParam(), path);
  const auto result = MakeRandomModel(options, *Env::Posix());
  ASSERT_TRUE(result.ok()) << result.status();
  const auto file = GgufFile::Open(path, *Env::Posix());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(result->bytes, (*file)->bytes().size());
  EXPECT_EQ(*(*file)->GetString("general.architecture"), GetParam());
  EXPECT_EQ(*(*file)->GetUint(absl::StrCat(GetParam(), ".embedding_length")), 256u);
  EXPECT_EQ((*file)->tensors().size(), OutlineTensors(options.outline).size());
  const GgufTensor* const down = (*file)->FindTensor("blk.1.ffn_down.weight");
  ASSERT_NE(down, nullptr);
  EXPECT_EQ(down->type, DType::kQ4_0);
  EXPECT_THAT(down->dims, ElementsAre(512, 256));
  EXPECT_EQ((*file)->FindTensor("token_embd.weight")->type, DType::kQ6_K);
  EXPECT_EQ((*file)->FindTensor("output_norm.weight")->type, DType::kF32);

  const auto tokenizer = Tokenizer::FromGguf(**file);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 1024);
  const std::string text = "The cat's 12 hats,\nand \xc3\xa4 \xf0\x9f\x98\x80 too.";
  const std::vector<TokenId> ids = (*tokenizer)->Encode(text);
  EXPECT_EQ((*tokenizer)->Decode(ids), text);
  EXPECT_LT((*tokenizer)->Encode("the other interest").size(), 13u);
}

INSTANTIATE_TEST_SUITE_P(Families, RandomModelTest,
                         ::testing::Values("llama", "qwen2", "qwen3", "gemma3", "phi3"),
                         [](const auto& test) { return std::string(test.param); });

TEST(RandomModelFileTest, DependsOnTheSeedOnly) {
  const std::string dir = NewFolder("seeds");
  for (const char* name : {"a", "b", "c"}) {
    RandomModelOptions options = TinyOptions("qwen3", absl::StrCat(dir, "/", name));
    options.seed = name[0] == 'c' ? 2 : 1;
    ASSERT_TRUE(MakeRandomModel(options, *Env::Posix()).ok());
  }
  const std::string a = *Env::Posix()->ReadFile(dir + "/a");
  EXPECT_EQ(a, *Env::Posix()->ReadFile(dir + "/b"));
  EXPECT_NE(a, *Env::Posix()->ReadFile(dir + "/c"));
}

TEST(RandomModelFileTest, WeightsHaveTheDeviationOfATrainedStart) {
  const std::string path = NewFolder("deviation") + "/x.gguf";
  RandomModelOptions options = TinyOptions("llama", path);
  options.type = DType::kQ8_0;
  ASSERT_TRUE(MakeRandomModel(options, *Env::Posix()).ok());
  const auto file = GgufFile::Open(path, *Env::Posix()).value();
  const auto deviation = [&](absl::string_view name) {
    const GgufTensor* const tensor = file->FindTensor(name);
    std::vector<float> values(static_cast<size_t>(tensor->num_elements()));
    Dequantize(tensor->type, reinterpret_cast<const uint8_t*>(tensor->data.data()),
               tensor->num_elements(), values.data());
    double squares = 0;
    for (const float v : values) squares += static_cast<double>(v) * static_cast<double>(v);
    return std::sqrt(squares / static_cast<double>(values.size()));
  };
  EXPECT_NEAR(deviation("blk.0.ffn_gate.weight"), 0.02, 0.0002);
  EXPECT_NEAR(deviation("blk.0.ffn_down.weight"), 0.01, 0.0001);  // 0.02 / sqrt(2 * 2 layers)
}

TEST(RandomModelFileTest, UsesFallbacksForOddRows) {
  const std::string path = NewFolder("fallback") + "/x.gguf";
  RandomModelOptions options = TinyOptions("qwen2", path);
  options.outline.hidden = 96;
  options.outline.head_dim = options.outline.rope_dim = 24;
  options.outline.feed_forward = 200;
  options.type = DType::kQ4_K;
  ASSERT_TRUE(MakeRandomModel(options, *Env::Posix()).ok());
  const auto file = GgufFile::Open(path, *Env::Posix()).value();
  EXPECT_EQ(file->FindTensor("blk.0.ffn_up.weight")->type, DType::kQ5_0);
  EXPECT_EQ(file->FindTensor("blk.0.ffn_down.weight")->type, DType::kF16);
  EXPECT_EQ(file->FindTensor("token_embd.weight")->type, DType::kQ8_0);
  EXPECT_EQ(file->FindTensor("blk.0.attn_q.bias")->type, DType::kF32);
}

TEST(RandomModelFileTest, NamesWhatDoesNotFit) {
  RandomModelOptions options = TinyOptions("llama", "unwritten");
  options.outline.heads = 3;
  EXPECT_THAT(std::string(MakeRandomModel(options, *Env::Posix()).status().message()),
              HasSubstr("3 heads are not a multiple of 2"));
  options = TinyOptions("llama", "unwritten");
  options.outline.vocabulary = 100;
  EXPECT_THAT(std::string(MakeRandomModel(options, *Env::Posix()).status().message()),
              HasSubstr("choose 512 to 1000000"));
  EXPECT_THAT(std::string(MakeNamedOutline({"mamba", "tiny"}).status().message()),
              HasSubstr("llama, qwen2, qwen3, gemma3, phi3"));
  EXPECT_THAT(std::string(MakeNamedOutline({"", "7b"}).status().message()),
              HasSubstr("tiny, 0.5b and 1b"));
}

TEST(RandomModelFileTest, LeavesNothingOnAFullDisk) {
  const std::string dir = NewFolder("full");
  testing::FaultEnv env;
  env.FailFrom(9, absl::StatusCode::kResourceExhausted, testing::FaultEnv::Span::kOnce);
  EXPECT_EQ(MakeRandomModel(TinyOptions("llama", dir + "/x.gguf"), env).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(*Env::Posix()->ListDir(dir), ElementsAre());
}

}  // namespace
}  // namespace fedge
