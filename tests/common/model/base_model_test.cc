#include "common/model/base_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using testing::MakeTinyModelGguf;
using testing::TinyModelOptions;

// Parses bytes that must outlive the model; tests keep them on their stack.
absl::StatusOr<std::shared_ptr<const BaseModel>> LoadBytes(const std::string& bytes) {
  auto file = GgufFile::Parse(bytes, "test.gguf");
  if (!file.ok()) return file.status();
  return BaseModel::FromGguf(*file);
}

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
  EXPECT_EQ(model.layers()[1].q.rows, 64);
  EXPECT_EQ(model.layers()[1].k.rows, 32);
  EXPECT_EQ(model.layers()[1].o.cols, 64);
  EXPECT_EQ(model.layers()[1].down.cols, 64);
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
  const std::vector<float>& theta = (*model)->rope_frequencies();
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
                "architecture \"mamba\" is not supported (supported: llama");
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

TEST(BaseModelTest, RefusesBiases) {
  TinyModelOptions options;
  options.extra = [](GgufWriter& writer) {
    writer.AddTensor("blk.0.attn_q.bias", DType::kF32, {32}, std::string(128, 0));
  };
  ExpectRefused(options, absl::StatusCode::kUnimplemented, "tensor blk.0.attn_q.bias");
}

TEST(BaseModelTest, RefusesHeadsThatDoNotDivide) {
  TinyModelOptions options;
  options.head_count_kv = 3;
  ExpectRefused(options, absl::StatusCode::kInvalidArgument, "not a multiple of 3");
}

TEST(BaseModelTest, RefusesOtherRopeScaling) {
  TinyModelOptions options;
  options.extra = [](GgufWriter& writer) {
    writer.SetString("llama.rope.scaling.type", "yarn");
    writer.SetFloat32("llama.rope.scaling.factor", 4);
  };
  ExpectRefused(options, absl::StatusCode::kUnimplemented, "\"yarn\"");
}

TEST(BaseModelTest, RefusesExperts) {
  TinyModelOptions options;
  options.extra = [](GgufWriter& writer) { writer.SetUint32("llama.expert_count", 8); };
  ExpectRefused(options, absl::StatusCode::kUnimplemented, "experts");
}

class LoraTargetsTest : public ::testing::Test {
 protected:
  LoraTargetsTest() : bytes_(MakeTinyModelGguf(TinyModelOptions())), model_(*LoadBytes(bytes_)) {}

  std::string bytes_;
  std::shared_ptr<const BaseModel> model_;
};

TEST_F(LoraTargetsTest, AllModulesStandInLayerOrder) {
  const auto spec = model_->MakeLoraSpec(LoraTargets());
  ASSERT_TRUE(spec.ok()) << spec.status();
  ASSERT_EQ(spec->modules().size(), 14u);
  EXPECT_EQ(spec->modules()[0].tensor, "blk.0.attn_q.weight");
  EXPECT_EQ(spec->modules()[6].tensor, "blk.0.ffn_down.weight");
  EXPECT_EQ(spec->modules()[6].in_features, 64);
  EXPECT_EQ(spec->modules()[6].out_features, 32);
  EXPECT_EQ(spec->modules()[7].tensor, "blk.1.attn_q.weight");
  EXPECT_EQ(spec->architecture(), "llama");
  EXPECT_TRUE(model_->CheckAdapter(*spec).ok());
}

TEST_F(LoraTargetsTest, AllSpellingsNameTheSameModules) {
  Digest first;
  for (const std::vector<std::string>& modules :
       std::vector<std::vector<std::string>>{{"q", "down", "v"},
                                             {"attn_v", "ffn_down", "attn_q"},
                                             {"v_proj", "q_proj", "down_proj", "q"}}) {
    LoraTargets targets;
    targets.modules = modules;
    const auto spec = model_->MakeLoraSpec(targets);
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(spec->modules().size(), 6u);
    if (first == Digest()) first = spec->layout_hash();
    EXPECT_EQ(spec->layout_hash(), first);
  }
}

TEST_F(LoraTargetsTest, RefusesUnknownModuleRankAndTiedHead) {
  LoraTargets targets;
  targets.modules = {"q", "experts"};
  EXPECT_EQ(model_->MakeLoraSpec(targets).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(model_->MakeLoraSpec(targets).status().message(), HasSubstr("\"experts\""));
  targets.modules = {"output"};
  EXPECT_EQ(model_->MakeLoraSpec(targets).status().code(), absl::StatusCode::kInvalidArgument);
  targets.modules = {};
  EXPECT_EQ(model_->MakeLoraSpec(targets).status().code(), absl::StatusCode::kInvalidArgument);
  targets.modules = {"q"};
  targets.rank = 0;
  EXPECT_EQ(model_->MakeLoraSpec(targets).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(LoraTargetsTest, CheckAdapterNamesTheFirstMisfit) {
  const auto spec = [](const std::string& architecture, const std::string& tensor, int64_t in) {
    LoraModule module;
    module.tensor = tensor;
    module.in_features = in;
    module.out_features = 16;
    module.rank = 2;
    return *LoraSpec::Create(architecture, 2, {module});
  };
  EXPECT_TRUE(model_->CheckAdapter(spec("llama", "blk.1.attn_k.weight", 32)).ok());
  for (const LoraSpec& bad :
       {spec("qwen2", "blk.1.attn_k.weight", 32), spec("llama", "blk.1.attn_k.weight", 31),
        spec("llama", "blk.2.attn_k.weight", 32), spec("llama", "output.weight", 32)}) {
    EXPECT_EQ(model_->CheckAdapter(bad).code(), absl::StatusCode::kFailedPrecondition);
  }
}

}  // namespace
}  // namespace fedge
