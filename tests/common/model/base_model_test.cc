#include "common/model/base_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "tests/testing/load_model.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using testing::LoadBytes;
using testing::MakeTinyModelGguf;
using testing::TinyModelOptions;

void ExpectRefused(const TinyModelOptions& options, absl::StatusCode code,
                   const std::string& message) {
  const std::string bytes = MakeTinyModelGguf(options);
  const auto model = LoadBytes(bytes);
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.status().code(), code) << model.status();
  EXPECT_THAT(model.status().message(), HasSubstr(message));
  EXPECT_THAT(model.status().message(), HasSubstr("test.gguf"));
}

TEST(BaseModelTest, ReadsSizesAndWeights) {
  TinyModelOptions options;
  options.head_dim = 16;
  options.tied_output = false;
  const std::string bytes = MakeTinyModelGguf(options);
  const auto loaded = LoadBytes(bytes);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const BaseModel& model = **loaded;
  EXPECT_EQ(model.config().architecture, "llama");
  EXPECT_EQ(model.config().vocab_size, 320);
  EXPECT_EQ(model.config().context_length, 128);
  EXPECT_EQ(model.config().embedding_length, 32);
  EXPECT_EQ(model.config().block_count, 2);
  EXPECT_EQ(model.config().feed_forward_length, 64);
  EXPECT_EQ(model.config().head_count, 4);
  EXPECT_EQ(model.config().head_count_kv, 2);
  EXPECT_EQ(model.config().head_dim, 16);
  EXPECT_EQ(model.config().rope_dim, 16);
  ASSERT_EQ(model.layers().size(), 2u);
  EXPECT_EQ(model.layers()[1].linear[kQ].rows, 64);
  EXPECT_EQ(model.layers()[1].linear[kK].rows, 32);
  EXPECT_EQ(model.layers()[1].linear[kO].cols, 64);
  EXPECT_EQ(model.layers()[1].linear[kDown].cols, 64);
  EXPECT_FALSE(model.tied_output());
  EXPECT_NE(model.output().data, model.token_embedding().data);
  EXPECT_EQ(model.sha256(), Sha256Of(bytes));
  EXPECT_EQ(model.sha256(), Sha256Of(bytes));
}

TEST(BaseModelTest, TiedHeadIsTheEmbedding) {
  const std::string bytes = MakeTinyModelGguf(TinyModelOptions());
  const auto model = LoadBytes(bytes);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE((*model)->tied_output());
  EXPECT_EQ((*model)->output().data, (*model)->token_embedding().data);
}

TEST(BaseModelTest, RopeFrequenciesUseBaseScalingAndFactors) {
  TinyModelOptions options;
  options.rope_frequency_factors = true;  // 1, 2, 3, 4
  options.extra = [](GgufWriter& writer) {
    writer.SetString("llama.rope.scaling.type", "linear");
    writer.SetFloat32("llama.rope.scaling.factor", 4);
  };
  const std::string bytes = MakeTinyModelGguf(options);
  const auto model = LoadBytes(bytes);
  ASSERT_TRUE(model.ok()) << model.status();
  const std::vector<float>& theta = (*model)->rope(kGlobalRope).theta;
  ASSERT_EQ(theta.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const double k = static_cast<double>(i);
    EXPECT_FLOAT_EQ(theta[i], static_cast<float>(0.25 * std::pow(10000.0, -2 * k / 8) / (k + 1)));
  }
}

TEST(BaseModelTest, HalfPrecisionNormsAreConverted) {
  TinyModelOptions options;
  options.omit_tensors = {"output_norm.weight"};
  options.extra = [](GgufWriter& writer) {
    std::string ones;
    for (int i = 0; i < 32; ++i) ones += std::string("\x00\x3c", 2);  // 1.0 in F16
    writer.AddTensor("output_norm.weight", DType::kF16, {32}, ones);
  };
  const std::string bytes = MakeTinyModelGguf(options);
  const auto model = LoadBytes(bytes);
  ASSERT_TRUE(model.ok()) << model.status();
  for (int i = 0; i < 32; ++i) EXPECT_EQ((*model)->output_norm()[i], 1.0f);
}

TEST(BaseModelTest, LeftoverTensorsAreIgnored) {
  TinyModelOptions options;
  options.extra = [](GgufWriter& writer) {
    writer.AddTensor("something.else", DType::kF32, {1}, std::string(4, 0));
  };
  const std::string bytes = MakeTinyModelGguf(options);
  EXPECT_TRUE(LoadBytes(bytes).ok());
}

TEST(BaseModelTest, RefusesOtherArchitectures) {
  TinyModelOptions options;
  options.architecture = "mamba";
  ExpectRefused(options, absl::StatusCode::kUnimplemented,
                "architecture \"mamba\" is not supported (supported: llama, qwen2, qwen3, gemma3, "
                "phi3)");
}

TEST(BaseModelTest, RefusesMissingTensor) {
  TinyModelOptions options;
  options.omit_tensors = {"blk.1.ffn_up.weight"};
  ExpectRefused(options, absl::StatusCode::kInvalidArgument,
                "tensor blk.1.ffn_up.weight is missing");
}

TEST(BaseModelTest, RefusesWrongShape) {
  TinyModelOptions options;
  options.omit_tensors = {"blk.0.attn_k.weight"};
  options.extra = [](GgufWriter& writer) {
    writer.AddTensor("blk.0.attn_k.weight", DType::kF32, {32, 8}, std::string(32 * 8 * 4, 0));
  };
  ExpectRefused(options, absl::StatusCode::kInvalidArgument,
                "tensor blk.0.attn_k.weight has shape [8, 32], expected [16, 32]");
}

TEST(BaseModelTest, RefusesVocabularyThatDoesNotFitTheEmbedding) {
  TinyModelOptions options;
  options.omit_tensors = {"token_embd.weight"};
  options.extra = [](GgufWriter& writer) {
    writer.AddTensor("token_embd.weight", DType::kF32, {32, 319}, std::string(319 * 32 * 4, 0));
  };
  ExpectRefused(options, absl::StatusCode::kInvalidArgument,
                "tensor token_embd.weight has shape [319, 32], expected [320, 32]");
}

TEST(BaseModelTest, RefusesTensorsThatWouldChangeTheResult) {
  for (const char* const name :
       {"blk.0.attn_q_norm.weight", "blk.0.attn_qkv.bias", "blk.2.attn_norm.weight",
        "output_norm.bias", "token_embd_norm.weight", "rope_factors_other.weight"}) {
    TinyModelOptions options;
    options.extra = [&](GgufWriter& writer) {
      writer.AddTensor(name, DType::kF32, {8}, std::string(32, 0));
    };
    ExpectRefused(options, absl::StatusCode::kUnimplemented,
                  std::string("tensor ") + name + " is not part of architecture llama");
  }
  TinyModelOptions options;
  options.architecture = "qwen2";
  options.rope_frequency_factors = true;
  ExpectRefused(options, absl::StatusCode::kUnimplemented, "tensor rope_freqs.weight");
}

TEST(BaseModelTest, NamesWhatAFamilyNeedsAndAFileLacks) {
  const std::pair<const char*, const char*> needed[] = {
      {"qwen2", "blk.1.attn_k.bias"},
      {"qwen3", "blk.0.attn_q_norm.weight"},
      {"gemma3", "blk.1.post_ffw_norm.weight"},
      {"phi3", "blk.0.ffn_up.weight"},
      {"gemma3", "blk.0.post_attention_norm.weight"},
  };
  for (const auto& [architecture, tensor] : needed) {
    TinyModelOptions options;
    options.architecture = architecture;
    options.omit_tensors = {tensor};
    ExpectRefused(options, absl::StatusCode::kInvalidArgument,
                  std::string("tensor ") + tensor + " is missing");
  }
  TinyModelOptions options;
  options.architecture = "phi3";
  options.rope_frequency_factors = true;
  options.omit_tensors = {"rope_factors_long.weight"};
  ExpectRefused(options, absl::StatusCode::kInvalidArgument,
                "tensor rope_factors_long.weight is missing beside rope_factors_short.weight");
}

TEST(BaseModelTest, NamesMisshapenNormsBiasesAndFusedLinears) {
  const auto expect = [](const char* architecture, const std::string& tensor,
                         std::vector<int64_t> dims, const std::string& message) {
    TinyModelOptions options;
    options.architecture = architecture;
    options.omit_tensors = {tensor};
    options.extra = [&](GgufWriter& writer) {
      const int64_t values = dims[0] * (dims.size() > 1 ? dims[1] : 1);
      writer.AddTensor(tensor, DType::kF32, dims, std::string(static_cast<size_t>(4 * values), 0));
    };
    ExpectRefused(options, absl::StatusCode::kInvalidArgument, message);
  };
  expect("qwen3", "blk.0.attn_k_norm.weight", {9},
         "tensor blk.0.attn_k_norm.weight has shape [1, 9], expected [1, 8]");
  expect("qwen2", "blk.0.attn_q.bias", {31},
         "tensor blk.0.attn_q.bias has shape [1, 31], expected [1, 32]");
  expect("phi3", "blk.1.attn_qkv.weight", {32, 63},
         "tensor blk.1.attn_qkv.weight has shape [63, 32], expected [64, 32]");
  expect("phi3", "blk.1.ffn_up.weight", {32, 64},
         "tensor blk.1.ffn_up.weight has shape [64, 32], expected [128, 32]");
}

TEST(BaseModelTest, RefusesHeadsThatDoNotDivide) {
  TinyModelOptions options;
  options.head_count_kv = 3;
  ExpectRefused(options, absl::StatusCode::kInvalidArgument, "not a multiple of 3");
}

TEST(BaseModelTest, RefusesOtherRopeScaling) {
  TinyModelOptions options;
  options.extra = [](GgufWriter& writer) {
    writer.SetString("llama.rope.scaling.type", "dynamic");
    writer.SetFloat32("llama.rope.scaling.factor", 4);
  };
  ExpectRefused(options, absl::StatusCode::kUnimplemented,
                "\"dynamic\" is not supported (supported: none, linear, yarn, longrope)");
}

TEST(BaseModelTest, RefusesVariantsThatComputeSomethingElse) {
  for (const char* const key : {"attn_logit_softcapping", "residual_scale", "logit_scale"}) {
    TinyModelOptions options;
    options.architecture = "gemma3";
    options.extra = [&](GgufWriter& writer) {
      writer.SetFloat32(std::string("gemma3.") + key, 50);
    };
    ExpectRefused(options, absl::StatusCode::kUnimplemented,
                  std::string("key gemma3.") + key + " is 50");
  }
}

TEST(BaseModelTest, ReadsFusedLinearsAndNorms) {
  TinyModelOptions options;
  options.architecture = "phi3";
  std::string bytes = MakeTinyModelGguf(options);
  auto model = LoadBytes(bytes);
  ASSERT_TRUE(model.ok()) << model.status();
  const LayerWeights& phi = (*model)->layers()[1];
  EXPECT_TRUE(phi.Has(kQkv) && phi.Has(kGateUp) && phi.Has(kO) && phi.Has(kDown));
  EXPECT_FALSE(phi.Has(kQ) || phi.Has(kK) || phi.Has(kV) || phi.Has(kGate) || phi.Has(kUp));
  EXPECT_EQ(phi.linear[kQkv].rows, 64);
  EXPECT_EQ(phi.linear[kGateUp].rows, 128);
  EXPECT_EQ(phi.norm[kPostAttnNorm], nullptr);

  options.architecture = "gemma3";
  options.block_count = 7;
  options.sliding_window = 4;
  bytes = MakeTinyModelGguf(options);
  model = LoadBytes(bytes);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT((*model)->config().windows, ::testing::ElementsAre(4, 4, 4, 4, 4, 0, 4));
  EXPECT_NE((*model)->layers()[0].norm[kPostFfnNorm], nullptr);
  EXPECT_EQ((*model)->config().embedding_scale, std::sqrt(32.0f));
  EXPECT_EQ((*model)->RopeKindOf((*model)->layers()[0], 1000), kLocalRope);
  EXPECT_EQ((*model)->RopeKindOf((*model)->layers()[5], 1000), kGlobalRope);
}

TEST(BaseModelTest, WindowPatternOfTheFileCounts) {
  TinyModelOptions options;
  options.architecture = "gemma3";
  options.block_count = 4;
  options.sliding_window = 4;
  options.extra = [](GgufWriter& writer) {
    writer.SetUint32("gemma3.attention.sliding_window_pattern", 2);
  };
  std::string bytes = MakeTinyModelGguf(options);
  EXPECT_THAT((*LoadBytes(bytes))->config().windows, ::testing::ElementsAre(4, 0, 4, 0));
  options.extra = [](GgufWriter& writer) {
    writer.SetInt32s("gemma3.attention.sliding_window_pattern", {0, 1, 1, 0});
  };
  bytes = MakeTinyModelGguf(options);
  EXPECT_THAT((*LoadBytes(bytes))->config().windows, ::testing::ElementsAre(0, 4, 4, 0));
  options.block_count = 3;
  ExpectRefused(options, absl::StatusCode::kInvalidArgument,
                "sliding_window_pattern has 4 values for 3 blocks");
  // Other families have the key and ignore it.
  options.architecture = "phi3";
  options.extra = nullptr;
  bytes = MakeTinyModelGguf(options);
  EXPECT_THAT((*LoadBytes(bytes))->config().windows, ::testing::ElementsAre(0, 0, 0));
}

TEST(BaseModelTest, ListsOfEqualSizesAreOneSize) {
  TinyModelOptions options;
  const auto with = [&](std::vector<int32_t> sizes) {
    options.extra = [sizes](GgufWriter& writer) {
      writer.SetInt32s("llama.rope.scaling.original_context_length", sizes);
    };
    return MakeTinyModelGguf(options);
  };
  const std::string equal = with({2, 2});
  EXPECT_TRUE(LoadBytes(equal).ok());
  with({2, 4});
  ExpectRefused(options, absl::StatusCode::kUnimplemented, "models whose blocks differ");
}

TEST(BaseModelTest, CheckFiniteNamesTensorAndPlace) {
  TinyModelOptions options;
  options.dtype = DType::kQ8_0;
  std::string bytes = MakeTinyModelGguf(options);
  const auto model = LoadBytes(bytes);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE((*model)->CheckFinite().ok());
  const GgufTensor* const tensor = (*model)->file().FindTensor("blk.1.ffn_down.weight");
  const size_t at = static_cast<size_t>(tensor->data.data() - bytes.data());
  // The scale of block 7: [32, 64] has two blocks a row.
  bytes[at + 7 * 34] = 0;
  bytes[at + 7 * 34 + 1] = 0x7e;
  const absl::Status status = (*model)->CheckFinite();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(),
              HasSubstr("test.gguf: tensor blk.1.ffn_down.weight: row 3, column 32 is nan"));
}

TEST(BaseModelTest, RefusesExperts) {
  TinyModelOptions options;
  options.extra = [](GgufWriter& writer) { writer.SetUint32("llama.expert_count", 8); };
  ExpectRefused(options, absl::StatusCode::kUnimplemented, "experts");
}

// YaRN as its authors write it, against MakeRopeFrequencies: pairs that turn more than beta_fast
// times over the original context keep their frequency, those below beta_slow are interpolated.
TEST(RopeFrequenciesTest, YarnKeepsFastPairsAndStretchesSlowOnes) {
  RopeScaling scaling;
  scaling.freq_base = 1e6f;
  scaling.freq_scale = 0.25f;
  scaling.original_context = 32768;
  scaling.yarn_mix = 1;
  const int64_t dim = 128;
  const RopeFrequencies rope = MakeRopeFrequencies(scaling, dim, {});
  ASSERT_EQ(rope.theta.size(), 64u);
  EXPECT_NEAR(rope.magnitude, 1 + 0.1 * std::log(4.0), 1e-6);
  const auto pair_that_turns = [&](double turns) {
    return 128 * std::log(32768 / (turns * 2 * 3.14159265358979)) / (2 * std::log(1e6));
  };
  const double low = std::floor(pair_that_turns(32)), high = std::ceil(pair_that_turns(1));
  EXPECT_EQ(low, 23);
  EXPECT_EQ(high, 40);
  for (size_t i = 0; i < 64; ++i) {
    const double k = static_cast<double>(i);
    const double theta = std::pow(1e6, -2 * k / 128);
    const double slow = k <= low ? 0 : k >= high ? 1 : (k - low) / (high - low);
    EXPECT_NEAR(rope.theta[i] / (theta * (slow / 4 + 1 - slow)), 1, 1e-6) << i;
  }
  scaling.freq_scale = 1;  // nothing to stretch
  const RopeFrequencies plain = MakeRopeFrequencies(scaling, dim, {});
  EXPECT_EQ(plain.magnitude, 1);
  EXPECT_FLOAT_EQ(plain.theta[63], static_cast<float>(std::pow(1e6, -126.0 / 128)));
}

}  // namespace
}  // namespace fedge
