#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/model/base_model.h"
#include "tests/testing/load_model.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using testing::LoadBytes;
using testing::MakeTinyModelGguf;
using testing::TinyModelOptions;

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

TEST_F(LoraTargetsTest, LayersCanBeARange) {
  TinyModelOptions options;
  options.block_count = 5;
  const std::string bytes = MakeTinyModelGguf(options);
  const auto model = *LoadBytes(bytes);
  LoraTargets targets;
  targets.modules = {"v"};
  const auto layers = [&](int64_t first, int64_t last) {
    targets.first_layer = first;
    targets.last_layer = last;
    std::string names;
    const LoraSpec spec = model->MakeLoraSpec(targets).value();
    for (const LoraModule& module : spec.modules()) {
      names += module.tensor.substr(4, 1);
    }
    return names;
  };
  EXPECT_EQ(layers(0, -1), "01234");
  EXPECT_EQ(layers(3, -1), "34");
  EXPECT_EQ(layers(1, 1), "1");
  for (const auto& [first, last] :
       {std::pair(-1, 2), std::pair(3, 2), std::pair(0, 5), std::pair(5, -1), std::pair(0, -2)}) {
    targets.first_layer = first;
    targets.last_layer = last;
    const auto spec = model->MakeLoraSpec(targets);
    EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(spec.status().message(), HasSubstr("layers 0 to 4"));
  }
}

TEST_F(LoraTargetsTest, LayerRangesAreWritten) {
  const auto range = [](absl::string_view text) {
    LoraTargets targets;
    targets.first_layer = 7;
    targets.last_layer = 9;
    const absl::Status parsed = ParseLayerRange(text, targets);
    EXPECT_TRUE(parsed.ok()) << parsed;
    return std::pair(targets.first_layer, targets.last_layer);
  };
  EXPECT_EQ(range("8-23"), std::pair(int64_t{8}, int64_t{23}));
  EXPECT_EQ(range("8-"), std::pair(int64_t{8}, int64_t{-1}));
  EXPECT_EQ(range("0"), std::pair(int64_t{0}, int64_t{0}));
  LoraTargets targets;
  for (const char* const bad : {"", "-", "-3", "x", "1-x", "1-2-3", "--1", "1--1"}) {
    const absl::Status parsed = ParseLayerRange(bad, targets);
    EXPECT_EQ(parsed.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(targets.first_layer, 0);
    EXPECT_EQ(targets.last_layer, -1);
  }
}

TEST_F(LoraTargetsTest, NamedPartsOfFusedLinearsHaveModulesOfTheirOwn) {
  TinyModelOptions options;
  options.architecture = "phi3";
  options.block_count = 1;
  const std::string bytes = MakeTinyModelGguf(options);
  const auto model = *LoadBytes(bytes);
  LoraTargets targets;
  targets.modules = {"up", "v", "q", "o"};
  const auto spec = model->MakeLoraSpec(targets);
  ASSERT_TRUE(spec.ok()) << spec.status();
  ASSERT_EQ(spec->modules().size(), 4u);
  const auto expect = [&](size_t i, const char* tensor, int64_t first, int64_t rows, int64_t of) {
    const LoraModule& module = spec->modules()[i];
    EXPECT_EQ(module.tensor, tensor);
    EXPECT_EQ(module.first_row, first);
    EXPECT_EQ(module.out_features, rows);
    EXPECT_EQ(module.tensor_rows, of);
  };
  expect(0, "blk.0.attn_qkv.weight", 0, 32, 64);   // q of 4 heads of 8
  expect(1, "blk.0.attn_qkv.weight", 48, 16, 64);  // v of 2
  expect(2, "blk.0.attn_output.weight", 0, 32, 0);
  expect(3, "blk.0.ffn_up.weight", 64, 64, 128);
  EXPECT_TRUE(model->CheckAdapter(*spec).ok());
  // Rows across two parts, and a part of a linear that is none.
  std::vector<LoraModule> modules = {spec->modules()[0]};
  modules[0].out_features = 40;
  absl::Status fits = model->CheckAdapter(LoraSpec::Create("phi3", 2, modules).value());
  EXPECT_EQ(fits.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(fits.message(), HasSubstr("40 rows from 0 on of tensor blk.0.attn_qkv.weight"));
  modules = {spec->modules()[2]};
  modules[0].out_features = 16;
  modules[0].tensor_rows = 32;
  fits = model->CheckAdapter(LoraSpec::Create("phi3", 2, modules).value());
  EXPECT_EQ(fits.code(), absl::StatusCode::kFailedPrecondition);
  modules = {spec->modules()[0]};
  modules[0].tensor_rows = 65;
  fits = model->CheckAdapter(LoraSpec::Create("phi3", 2, modules).value());
  EXPECT_THAT(fits.message(), HasSubstr("maps 32 to 65 features"));
}

TEST_F(LoraTargetsTest, FusedLinearsHaveOneModule) {
  TinyModelOptions options;
  options.architecture = "phi3";
  const std::string bytes = MakeTinyModelGguf(options);
  const auto model = *LoadBytes(bytes);
  const auto all = model->MakeLoraSpec(LoraTargets());
  ASSERT_TRUE(all.ok()) << all.status();
  std::vector<std::string> names;
  for (const LoraModule& module : all->modules()) names.push_back(module.tensor);
  EXPECT_THAT(names, ::testing::ElementsAre("blk.0.attn_qkv.weight", "blk.0.attn_output.weight",
                                            "blk.0.ffn_up.weight", "blk.0.ffn_down.weight",
                                            "blk.1.attn_qkv.weight", "blk.1.attn_output.weight",
                                            "blk.1.ffn_up.weight", "blk.1.ffn_down.weight"));
  EXPECT_EQ(all->modules()[0].out_features, 64);
  EXPECT_EQ(all->modules()[2].out_features, 128);
  EXPECT_TRUE(model->CheckAdapter(*all).ok());
  LoraTargets targets;
  targets.modules = {"qkv_proj"};
  EXPECT_EQ(model->MakeLoraSpec(targets)->modules().size(), 2u);
  targets.modules = {"q", "k", "v", "gate_up"};
  EXPECT_EQ(model->MakeLoraSpec(targets)->modules().size(), 4u);
  // In a model with separate linears the same names stand for the parts.
  targets.modules = {"qkv", "gate_up"};
  EXPECT_EQ(model_->MakeLoraSpec(targets)->modules().size(), 10u);
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
