#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "common/formats/adapter_files.h"
#include "common/formats/safetensors.h"
#include "nlohmann/json.hpp"
#include "tests/common/formats/example_adapter.h"
#include "tests/testing/shared_data.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using testing::ExampleAdapter;
using testing::ExampleInfo;
using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnsupported = absl::StatusCode::kUnimplemented;
constexpr auto kWrongState = absl::StatusCode::kFailedPrecondition;

// A folder of this process's own (tests run side by side), new for each test.
class AdapterPeftTest : public ::testing::Test {
 protected:
  AdapterPeftTest() : dir_(absl::StrCat(::testing::TempDir(), "/fedge_peft_", getpid())) {
    Env::Posix()->Remove(dir_).IgnoreError();
  }
  ~AdapterPeftTest() override { Env::Posix()->Remove(dir_).IgnoreError(); }

  void Write(absl::string_view file, absl::string_view bytes) {
    ASSERT_TRUE(Env::Posix()->CreateDirs(dir_).ok());
    ASSERT_TRUE(Env::Posix()->WriteFileAtomic(JoinPath(dir_, file), bytes).ok());
  }
  // A PEFT folder as somebody else may have written it.
  void WriteForeign(const std::vector<SafetensorsEntry>& tensors, const Json& extra_config,
                    const std::map<std::string, std::string>& metadata = {{"format", "pt"}}) {
    Json config = {{"peft_type", "LORA"}, {"r", 2}, {"lora_alpha", 16}, {"bias", "none"}};
    if (extra_config.is_object()) config.update(extra_config);
    Write("adapter_config.json", config.dump());
    Write("adapter_model.safetensors", SerializeSafetensors(tensors, metadata));
  }
  absl::StatusOr<LoadedAdapter> Read(const AdapterInfo& info = {}) {
    return ReadAdapter(dir_, info, *Env::Posix());
  }
  void ExpectRejected(absl::StatusCode code, absl::string_view message,
                      const AdapterInfo& info = {}) {
    const absl::Status status = Read(info).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), ::testing::StartsWith(dir_ + "/adapter_"));
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(message)));
  }
  Json Config() {
    return Json::parse(*Env::Posix()->ReadFile(JoinPath(dir_, "adapter_config.json")));
  }
  std::shared_ptr<const SafetensorsFile> Tensors() {
    return *SafetensorsFile::Open(JoinPath(dir_, "adapter_model.safetensors"), *Env::Posix());
  }

  const std::string dir_;
};

std::string Name(const std::string& module, const char* factor) {
  return "base_model.model." + module + ".lora_" + factor + ".weight";
}

// A [1, 1] = 1 and B [out, 1] = 0, 1, 2, ..
std::vector<SafetensorsEntry> Pair(const std::string& module, int64_t out) {
  std::vector<float> b;
  for (int64_t i = 0; i < out; ++i) b.push_back(static_cast<float>(i));
  return {{Name(module, "A"), {1, 1}, {1.0f}}, {Name(module, "B"), {out, 1}, b}};
}

std::vector<SafetensorsEntry> PairOfRank(const std::string& module, int64_t rank) {
  const std::vector<float> ones(static_cast<size_t>(rank), 1.0f);
  return {{Name(module, "A"), {rank, 1}, ones}, {Name(module, "B"), {1, rank}, ones}};
}

std::vector<SafetensorsEntry> operator+(std::vector<SafetensorsEntry> a,
                                        const std::vector<SafetensorsEntry>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

AdapterInfo Heads(int64_t heads, int64_t kv_heads) {
  AdapterInfo info;
  info.num_heads = heads;
  info.num_kv_heads = kv_heads;
  return info;
}

const char kV[] = "model.layers.0.self_attn.v_proj";

TEST_F(AdapterPeftTest, WhatIsWrittenIsRead) {
  for (const char* const architecture : {"llama", "qwen2", "qwen3", "gemma3"}) {
    const LoraAdapter adapter = ExampleAdapter(architecture);
    ASSERT_TRUE(WriteAdapterPeft(adapter, ExampleInfo(), dir_, *Env::Posix()).ok());
    const auto loaded = Read();
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->adapter.spec().layout_hash(), adapter.spec().layout_hash());
    EXPECT_THAT(loaded->adapter.values(), ElementsAreArray(adapter.values()));
    EXPECT_EQ(loaded->info.base_model, "base.gguf");
    EXPECT_EQ(loaded->info.base_model_sha256, ExampleInfo().base_model_sha256);
    EXPECT_EQ(loaded->info.num_heads, 4);
    EXPECT_EQ(loaded->info.num_kv_heads, 2);
    EXPECT_EQ(loaded->info.architecture, architecture);
  }
}

TEST_F(AdapterPeftTest, PartsOfATensorAreWrittenAsOneModuleOnAllOfIt) {
  const LoraAdapter adapter = testing::PartsAdapter();
  ASSERT_TRUE(WriteAdapterPeft(adapter, ExampleInfo(), dir_, *Env::Posix()).ok());
  const auto file = Tensors();
  EXPECT_EQ(file->tensors().size(), 6u);
  EXPECT_THAT(file->Find(Name("model.layers.0.self_attn.qkv_proj", "A"))->shape,
              ElementsAre(6, 16));
  EXPECT_THAT(file->Find(Name("model.layers.0.self_attn.qkv_proj", "B"))->shape,
              ElementsAre(32, 6));
  EXPECT_THAT(file->Find(Name("model.layers.0.mlp.gate_up_proj", "B"))->shape, ElementsAre(48, 2));
  EXPECT_EQ(Config()["rank_pattern"], Json({{"model.layers.0.self_attn.qkv_proj", 6}}));
  EXPECT_EQ(Config()["target_modules"], Json({"down_proj", "gate_up_proj", "qkv_proj"}));
  const auto loaded = Read();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const LoraAdapter whole = WithoutParts(adapter).value();
  EXPECT_EQ(loaded->adapter.spec().layout_hash(), whole.spec().layout_hash());
  EXPECT_THAT(loaded->adapter.values(), ElementsAreArray(whole.values()));
}

TEST_F(AdapterPeftTest, ConfigIsWhatPeftLoads) {
  ASSERT_TRUE(WriteAdapterPeft(ExampleAdapter("llama"), ExampleInfo(), dir_, *Env::Posix()).ok());
  const Json config = Config();
  EXPECT_EQ(config["peft_type"], "LORA");
  EXPECT_EQ(config["task_type"], "CAUSAL_LM");
  EXPECT_EQ(config["r"], 2);
  EXPECT_EQ(config["lora_alpha"].dump(), "8");
  EXPECT_EQ(config["bias"], "none");
  EXPECT_EQ(config["inference_mode"], true);
  EXPECT_EQ(config["fan_in_fan_out"], false);
  EXPECT_EQ(config["use_rslora"], false);
  EXPECT_EQ(config["base_model_name_or_path"], "base.gguf");
  EXPECT_EQ(config["rank_pattern"], Json({{"lm_head", 3}}));
  EXPECT_EQ(config["target_modules"], Json({"down_proj", "gate_proj", "k_proj", "lm_head", "o_proj",
                                            "q_proj", "up_proj", "v_proj"}));
  const auto file = Tensors();
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_THAT(file->Find(Name("model.layers.1.mlp.down_proj", "A"))->shape, ElementsAre(2, 24));
  EXPECT_THAT(file->Find(Name("model.layers.1.mlp.down_proj", "B"))->shape, ElementsAre(16, 2));
  EXPECT_THAT(file->Find(Name("lm_head", "B"))->shape, ElementsAre(40, 3));
}

TEST_F(AdapterPeftTest, TargetsAreWholeNamesWhenALayerIsLeftOut) {
  WriteForeign(Pair(kV, 2) + Pair("model.layers.1.self_attn.v_proj", 2) +
                   Pair("model.layers.1.self_attn.o_proj", 2),
               {});
  const auto loaded = Read();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_TRUE(WriteAdapterPeft(loaded->adapter, {}, dir_, *Env::Posix()).ok());
  EXPECT_EQ(Config()["target_modules"],
            Json({"model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj",
                  "model.layers.1.self_attn.o_proj"}));
  EXPECT_TRUE(Config()["base_model_name_or_path"].is_null());
}

// Two heads of four rows: PEFT's rows r0 r1 | r2 r3 of a head are the first and second members of
// the pairs (r0, r2) and (r1, r3), which GGUF has side by side.
TEST_F(AdapterPeftTest, RowsOfQueryAndKeyArePermutedForLlama) {
  const auto tensors = Pair("model.layers.0.self_attn.q_proj", 8) +
                       Pair("model.layers.0.self_attn.k_proj", 4) + Pair(kV, 4);
  WriteForeign(tensors, {});
  const auto loaded = Read(Heads(2, 1));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_THAT(loaded->adapter.b(0), ElementsAre(0, 2, 1, 3, 4, 6, 5, 7));
  EXPECT_THAT(loaded->adapter.b(1), ElementsAre(0, 2, 1, 3));
  EXPECT_THAT(loaded->adapter.b(2), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(loaded->adapter.a(0), ElementsAre(1));

  ASSERT_TRUE(WriteAdapterPeft(loaded->adapter, loaded->info, dir_, *Env::Posix()).ok());
  for (const SafetensorsEntry& tensor : tensors) {
    EXPECT_EQ(Tensors()->Find(tensor.name)->ToFloats(), tensor.values) << tensor.name;
  }
}

TEST_F(AdapterPeftTest, HeadsOfSixRowsArePermutedByPairs) {
  WriteForeign(Pair("model.layers.0.self_attn.q_proj", 12), {});
  const auto loaded = Read(Heads(2, 2));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_THAT(loaded->adapter.b(0), ElementsAre(0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11));
}

TEST_F(AdapterPeftTest, OtherArchitecturesAreNotPermuted) {
  WriteForeign(Pair("model.layers.0.self_attn.q_proj", 8), {});
  AdapterInfo info;
  info.architecture = "qwen2";
  const auto loaded = Read(info);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_THAT(loaded->adapter.b(0), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
}

TEST_F(AdapterPeftTest, NeedsTheHeadCountsOfLlama) {
  WriteForeign(Pair("model.layers.0.self_attn.q_proj", 8), {});
  ExpectRejected(kWrongState, "blk.0.attn_q.weight: the number of heads is needed");
  EXPECT_TRUE(Read(Heads(2, 1)).ok());
  ExpectRejected(kInvalid, "8 rows do not divide into 3 heads", Heads(3, 1));
  ExpectRejected(kInvalid, "8 rows do not divide into 8 heads of even size", Heads(8, 1));
  WriteForeign(Pair(kV, 8), {});
  EXPECT_TRUE(Read().ok());
  const LoraAdapter adapter = ExampleAdapter("llama");
  EXPECT_EQ(WriteAdapterPeft(adapter, {}, dir_, *Env::Posix()).code(), kWrongState);
}

TEST_F(AdapterPeftTest, ContradictingBaseModelsAreRefused) {
  ASSERT_TRUE(WriteAdapterPeft(ExampleAdapter("llama"), ExampleInfo(), dir_, *Env::Posix()).ok());
  ExpectRejected(kWrongState, "fedge.num_heads 4, not 8", Heads(8, 2));
  AdapterInfo info;
  info.architecture = "qwen2";
  ExpectRejected(kWrongState, "made for architecture llama, not qwen2", info);
}

TEST_F(AdapterPeftTest, FusedProjectionsOfPhi3) {
  const std::string up = "model.layers.0.mlp.gate_up_proj";
  const std::string qkv = "model.layers.0.self_attn.qkv_proj";
  WriteForeign(Pair(up, 4) + Pair(qkv, 6), {});
  const auto loaded = Read();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->info.architecture, "phi3");
  EXPECT_EQ(loaded->adapter.spec().modules()[0].tensor, "blk.0.attn_qkv.weight");
  EXPECT_EQ(loaded->adapter.spec().modules()[1].tensor, "blk.0.ffn_up.weight");
  EXPECT_THAT(loaded->adapter.b(1), ElementsAre(0, 1, 2, 3));
  ASSERT_TRUE(WriteAdapterPeft(loaded->adapter, loaded->info, dir_, *Env::Posix()).ok());
  EXPECT_NE(Tensors()->Find(Name(up, "B")), nullptr);
  EXPECT_NE(Tensors()->Find(Name(qkv, "B")), nullptr);
}

TEST_F(AdapterPeftTest, RsloraBecomesAlpha) {
  WriteForeign(PairOfRank(kV, 4), {{"use_rslora", true}});
  const auto loaded = Read();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const LoraSpec& spec = loaded->adapter.spec();
  EXPECT_EQ(spec.alpha(), 32);
  EXPECT_EQ(spec.scale(spec.modules()[0]), 16 / std::sqrt(4.0f));
  WriteForeign(PairOfRank(kV, 4) + PairOfRank("lm_head", 2), {{"use_rslora", true}});
  ExpectRejected(kUnsupported, "module lm_head is scaled by another alpha");
}

TEST_F(AdapterPeftTest, RsloraIsWrittenAsSuchWithTheSameStrength) {
  for (const int64_t rank : {4, 8, 10}) {
    const auto alpha = static_cast<float>(16 * std::sqrt(static_cast<double>(rank)));
    const LoraAdapter adapter(
        LoraSpec::Create("qwen2", alpha, {{"blk.0.attn_v.weight", 6, 4, rank, 0}}).value());
    AdapterInfo info = ExampleInfo();
    info.use_rslora = true;
    ASSERT_TRUE(WriteAdapterPeft(adapter, info, dir_, *Env::Posix()).ok());
    EXPECT_EQ(Config()["use_rslora"], true);
    EXPECT_EQ(Config()["lora_alpha"].dump(), "16");
    const auto loaded = Read();
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->adapter.spec().alpha(), alpha);
    EXPECT_TRUE(loaded->info.use_rslora);
  }
}

TEST_F(AdapterPeftTest, RsloraIsNotWrittenForSeveralRanks) {
  AdapterInfo info = ExampleInfo();
  info.use_rslora = true;
  ASSERT_TRUE(WriteAdapterPeft(ExampleAdapter("llama"), info, dir_, *Env::Posix()).ok());
  EXPECT_EQ(Config()["use_rslora"], false);
  EXPECT_EQ(Config()["lora_alpha"].dump(), "8");
}

TEST_F(AdapterPeftTest, AlphaPatternsThatComeToOneAlpha) {
  const auto tensors = PairOfRank(kV, 4) + PairOfRank("lm_head", 4);
  WriteForeign(tensors, {{"alpha_pattern", {{"v_proj", 8}, {"^lm_head", 8}}}});
  const auto loaded = Read();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->adapter.spec().alpha(), 8);
  WriteForeign(tensors, {{"alpha_pattern", {{"0.self_attn.v_proj", 8}}}});
  ExpectRejected(kUnsupported, "another alpha");
  WriteForeign(tensors, {{"alpha_pattern", {{"_proj", 8}}}});  // no whole part of a name
  EXPECT_EQ(Read()->adapter.spec().alpha(), 16);
  WriteForeign(tensors, {{"alpha_pattern", {{"layers.[0-9]+.self_attn.v_proj", 8}}}});
  ExpectRejected(kUnsupported, "alpha_pattern has a regular expression");
  WriteForeign(tensors, {{"alpha_pattern", {{"v_proj", "8"}}}});
  ExpectRejected(kInvalid, "alpha_pattern has a value that is not a number");
}

TEST_F(AdapterPeftTest, RanksMayDiffer) {
  WriteForeign(PairOfRank(kV, 4) + PairOfRank("lm_head", 2), {{"rank_pattern", {{"lm_head", 2}}}});
  const auto loaded = Read();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->adapter.spec().modules()[0].rank, 4);
  EXPECT_EQ(loaded->adapter.spec().modules()[1].rank, 2);
}

TEST_F(AdapterPeftTest, RejectsOptionsThatChangeTheMeaning) {
  const std::pair<Json, const char*> cases[] = {
      {{{"use_dora", true}}, "use_dora"},
      {{{"fan_in_fan_out", true}}, "fan_in_fan_out"},
      {{{"lora_bias", true}}, "lora_bias"},
      {{{"modules_to_save", {"lm_head"}}}, "modules_to_save"},
      {{{"layer_replication", {1}}}, "layer_replication"},
      {{{"trainable_token_indices", {1}}}, "trainable_token_indices"},
      {{{"target_parameters", {"experts"}}}, "target_parameters"},
      {{{"bias", "all"}}, "bias"},
  };
  for (const auto& [option, name] : cases) {
    WriteForeign(Pair(kV, 2), option);
    ExpectRejected(kUnsupported, name);
  }
  WriteForeign(Pair(kV, 2), {{"use_dora", false}, {"modules_to_save", nullptr}, {"bias", "none"}});
  EXPECT_TRUE(Read().ok());
}

TEST_F(AdapterPeftTest, RejectsForeignTensors) {
  const std::pair<const char*, absl::StatusCode> cases[] = {
      {"base_model.model.model.embed_tokens.lora_embedding_A", kUnsupported},
      {"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight",
       kUnsupported},
      {"base_model.model.model.embed_tokens.lora_A.weight", kUnsupported},
      {"base_model.model.model.layers.0.self_attn.qq_proj.lora_A.weight", kUnsupported},
      {"base_model.model.model.layers.0.mlp.gate_up_proj.lora_A.weight", kInvalid},  // B missing
      {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", kInvalid},
      {"model.layers.0.self_attn.q_proj.lora_A.weight", kInvalid},
      {"base_model.model.model.layers.0.self_attn.q_proj.weight", kInvalid},
  };
  for (const auto& [name, code] : cases) {
    WriteForeign({{name, {1, 1}, {1.0f}}}, {});
    ExpectRejected(code, "tensor ");
  }
}

TEST_F(AdapterPeftTest, RejectsMisshapenFactors) {
  WriteForeign({{Name(kV, "A"), {1, 1}, {1.0f}}}, {});
  ExpectRejected(kInvalid, "has no B beside it");
  WriteForeign({{Name(kV, "A"), {2, 1}, {1, 1}}, {Name(kV, "B"), {1, 1}, {1}}}, {});
  ExpectRejected(kInvalid, "has rank 2, but");
  WriteForeign({{Name(kV, "A"), {2}, {1, 1}}}, {});
  ExpectRejected(kInvalid, "1 dimensions, not 2");
  WriteForeign({{Name(kV, "A"), {0, 1}, {}}, {Name(kV, "B"), {1, 0}, {}}}, {});
  ExpectRejected(kInvalid, "rank 0");
  WriteForeign({{Name(kV, "A"), {1, 1}, {std::nanf("")}}, {Name(kV, "B"), {1, 1}, {1}}}, {});
  ExpectRejected(kInvalid, "not finite");
}

TEST_F(AdapterPeftTest, RejectsBadConfigs) {
  WriteForeign(Pair(kV, 2), {});
  const std::pair<std::string, const char*> cases[] = {
      {"", "not a JSON object"},
      {"[]", "not a JSON object"},
      {"{", "not a JSON object"},
      {std::string(500'000, '['), "not a JSON object"},
      {"{}", "peft_type is not \"LORA\""},
      {R"({"peft_type": "IA3"})", "peft_type is not \"LORA\""},
      {R"({"peft_type": "LORA"})", "lora_alpha is missing"},
      {R"({"peft_type": "LORA", "lora_alpha": "16"})", "lora_alpha is missing or not a number"},
      {R"({"peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": 3})", "not an object"},
  };
  for (const auto& [text, message] : cases) {
    Write("adapter_config.json", text);
    ExpectRejected(kInvalid, message);
  }
  Write("adapter_config.json", R"({"peft_type": "LORA", "lora_alpha": 0})");
  ExpectRejected(kInvalid, "alpha 0");
  Write("adapter_config.json", std::string((1 << 20) + 1, ' '));
  ExpectRejected(absl::StatusCode::kResourceExhausted, "1048576");
}

TEST_F(AdapterPeftTest, NamesTheMissingFile) {
  Write("adapter_config.json", R"({"peft_type": "LORA", "lora_alpha": 1})");
  ExpectRejected(absl::StatusCode::kNotFound, "adapter_model.safetensors");
  ASSERT_TRUE(Env::Posix()->Remove(JoinPath(dir_, "adapter_config.json")).ok());
  ExpectRejected(absl::StatusCode::kNotFound, "adapter_config.json");
}

TEST_F(AdapterPeftTest, RejectsBadMetadata) {
  for (const char* const heads : {"x", "-1", "0", "65537"}) {
    WriteForeign(Pair(kV, 2), {}, {{"fedge.num_heads", heads}});
    ExpectRejected(kInvalid, "metadata fedge.num_heads is no number of heads");
  }
  WriteForeign(Pair(kV, 2), {}, {{"fedge.base_model.sha256", "12"}});
  ExpectRejected(kInvalid, "");
}

TEST_F(AdapterPeftTest, RealAdapterGoesThereAndBack) {
  FEDGE_SHARED_DATA_OR_SKIP(path, "models/rand-tiny-llama-f32.lora-r8a16.gguf");
  const auto gguf = ReadAdapterGguf(path, *Env::Posix());
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  ASSERT_TRUE(WriteAdapterPeft(gguf->adapter, Heads(8, 2), dir_, *Env::Posix()).ok());
  EXPECT_EQ(Tensors()->tensors().size(), 56u);
  const auto peft = Read();
  ASSERT_TRUE(peft.ok()) << peft.status();
  EXPECT_EQ(peft->adapter.spec().layout_hash(), gguf->adapter.spec().layout_hash());
  EXPECT_THAT(peft->adapter.values(), ElementsAreArray(gguf->adapter.values()));
}

}  // namespace
}  // namespace fedge
