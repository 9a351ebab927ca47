#include "tools/prepare/import_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "common/model/tokenizer.h"
#include "tests/testing/fault_env.h"
#include "tests/testing/shared_data.h"
#include "tests/tools/prepare/hf_folder.h"
#include "tools/prepare/random_model.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::HfFolder;
using testing::ValuesOf;

std::string NewFolder(absl::string_view name) {
  const std::string dir = absl::StrCat(::testing::TempDir(), "/import_model_", name);
  Env::Posix()->Remove(dir).IgnoreError();
  EXPECT_TRUE(Env::Posix()->CreateDirs(dir).ok());
  return dir;
}

absl::StatusOr<ImportModelResult> Import(const std::string& dir, Env& env = *Env::Posix()) {
  ImportModelOptions options;
  options.folder = dir;
  options.output_file = dir + "/out.gguf";
  options.threads = 2;
  return ImportModel(options, nullptr, env);
}

// Every tensor and every key about the model and its vocabulary.
void ExpectSameModel(const GgufFile& expected, const GgufFile& actual) {
  const bool gemma = *expected.GetString("general.architecture") == "gemma3";
  for (const GgufTensor& tensor : expected.tensors()) {
    const GgufTensor* const found = actual.FindTensor(tensor.name);
    ASSERT_NE(found, nullptr) << tensor.name;
    EXPECT_EQ(found->dims, tensor.dims) << tensor.name;
    EXPECT_EQ(found->type, DType::kF32) << tensor.name;
    const std::vector<float> a = ValuesOf(tensor);
    const std::vector<float> b = ValuesOf(*found);
    // 1 + (w - 1) rounds, and the factors of Llama 3 come from a formula.
    const bool rounds =
        (gemma && absl::StrContains(tensor.name, "norm")) || tensor.name == "rope_freqs.weight";
    for (size_t i = 0; i < a.size(); ++i) {
      ASSERT_NEAR(a[i], b[i], rounds ? 1e-6 * std::fabs(a[i]) : 0) << tensor.name << " " << i;
    }
  }
  EXPECT_EQ(actual.tensors().size(), expected.tensors().size());
  for (const std::string& key : expected.keys()) {
    if (key == "general.name" || key == "general.file_type" || key == "tokenizer.ggml.pre") {
      continue;
    }
    const GgufValue* const found = actual.Find(key);
    ASSERT_NE(found, nullptr) << key;
    EXPECT_EQ(found->type(), expected.Find(key)->type()) << key;
    EXPECT_EQ(found->payload(), expected.Find(key)->payload()) << key;
  }
}

// ---- Real layouts of every family.

class ImportFamilyTest : public ::testing::TestWithParam<const char*> {};

TEST_P(ImportFamilyTest, GivesBackTheModelOfTheFolder) {
  FEDGE_SHARED_DATA_OR_SKIP(path, absl::StrCat("models/rand-tiny-", GetParam(), "-f32.gguf"));
  const auto source = GgufFile::Open(path, *Env::Posix()).value();
  const std::string dir = NewFolder(GetParam());
  HfFolder(*source).Write(dir, 3);
  const auto result = Import(dir);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->architecture, GetParam());
  EXPECT_EQ(result->tokens, 6400);
  const auto imported = GgufFile::Open(dir + "/out.gguf", *Env::Posix());
  ASSERT_TRUE(imported.ok()) << imported.status();
  ExpectSameModel(*source, **imported);
  EXPECT_EQ(*(*imported)->GetString("tokenizer.ggml.pre"), "gpt-2");
}

INSTANTIATE_TEST_SUITE_P(SharedData, ImportFamilyTest,
                         ::testing::Values("llama", "qwen2", "qwen3", "gemma3", "phi3"),
                         [](const auto& test) { return std::string(test.param); });

// ---- Small models made here.

class ImportModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = NewFolder(::testing::UnitTest::GetInstance()->current_test_info()->name());
  }
  HfFolder Folder(absl::string_view family, bool tied = true) {
    RandomModelOptions options;
    options.outline = MakeNamedOutline({std::string(family), "tiny"}).value();
    options.outline.layers = 1;
    options.outline.hidden = 64;
    options.outline.heads = 4;
    options.outline.kv_heads = 2;
    options.outline.head_dim = options.outline.rope_dim = 16;
    options.outline.feed_forward = 96;
    options.outline.vocabulary = 700;
    options.outline.tied = tied;
    options.type = DType::kF32;
    options.output_type = DType::kF32;
    options.output_file = dir_ + "/source.gguf";
    EXPECT_TRUE(MakeRandomModel(options, *Env::Posix()).ok());
    source_ = GgufFile::Open(options.output_file, *Env::Posix()).value();
    return HfFolder(*source_);
  }
  std::shared_ptr<const GgufFile> Imported() {
    return GgufFile::Open(dir_ + "/out.gguf", *Env::Posix()).value();
  }
  std::string ErrorOf(const HfFolder& folder,
                      absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    folder.Write(dir_);
    const absl::Status status = Import(dir_).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_FALSE(Env::Posix()->Exists(dir_ + "/out.gguf"));
    EXPECT_THAT(std::string(status.message()), HasSubstr(dir_));
    return std::string(status.message());
  }

  std::string dir_;
  std::shared_ptr<const GgufFile> source_;
};

// The piece of a pre-tokenizer in tokenizer.json.
testing::Json SplitBy(const std::string& expression) {
  return {{"type", "Sequence"},
          {"pretokenizers",
           {{{"type", "Split"}, {"pattern", {{"Regex", expression}}}, {"behavior", "Isolated"}},
            {{"type", "ByteLevel"}, {"use_regex", false}}}}};
}

constexpr char kQwen2[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kLlama3[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kGpt4o[] =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

TEST_F(ImportModelTest, ReadsAnUntiedModelOfEachByteLevelFamily) {
  for (const char* family : {"qwen2", "qwen3"}) {
    HfFolder folder = Folder(family, false);
    folder.tokenizer["pre_tokenizer"] = SplitBy(kQwen2);
    folder.Write(dir_);
    const auto result = Import(dir_);
    ASSERT_TRUE(result.ok()) << result.status();
    ExpectSameModel(*source_, *Imported());
    EXPECT_EQ(*Imported()->GetString("tokenizer.ggml.pre"), "qwen2");
  }
}

TEST_F(ImportModelTest, RecognisesPreTokenizers) {
  const std::vector<std::pair<testing::Json, const char*>> cases = {
      {SplitBy(kQwen2), "qwen2"},
      {SplitBy(kLlama3), "llama-bpe"},
      {SplitBy(kGpt4o), "gpt-4o"},
      {{{"type", "ByteLevel"}}, "gpt-2"},
      {{{"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Digits"}, {"individual_digits", true}}, {{"type", "ByteLevel"}}}}},
       "smollm"}};
  HfFolder folder = Folder("qwen2");
  for (const auto& [pre, name] : cases) {
    folder.tokenizer["pre_tokenizer"] = pre;
    folder.Write(dir_);
    ASSERT_TRUE(Import(dir_).ok()) << name;
    EXPECT_EQ(*Imported()->GetString("tokenizer.ggml.pre"), name);
  }
  ASSERT_TRUE(Env::Posix()->Remove(dir_ + "/out.gguf").ok());
  folder.tokenizer["pre_tokenizer"] = SplitBy("[a-z]+");
  EXPECT_THAT(ErrorOf(folder, absl::StatusCode::kUnimplemented), HasSubstr("[[a-z]+] is not"));
}

// llama, gemma3 and phi3 of this size have SentencePiece vocabularies; tokenizer.json tells them
// by merges instead of scores.
TEST_F(ImportModelTest, ReadsCharacterLevelTokenizers) {
  for (const char* family : {"llama", "gemma3", "phi3"}) {
    HfFolder folder = Folder(family);
    folder.tokenizer["model"]["byte_fallback"] = true;
    testing::Json merges = testing::Json::array();
    const auto pieces = source_->Find("tokenizer.ggml.tokens")->AsStrings().value();
    const auto types = source_->Find("tokenizer.ggml.token_type")->AsInts().value();
    for (size_t i = 0; i < pieces.size(); ++i) {
      const std::string piece(pieces[i]);
      const bool marked = absl::StartsWith(piece, "\xe2\x96\x81");
      if (types[i] != 1 || piece.size() < (marked ? 4u : 2u)) continue;
      merges.push_back({piece.substr(0, piece.size() - 1), piece.substr(piece.size() - 1)});
    }
    folder.tokenizer["model"]["merges"] = merges;
    testing::Json replace = {{"type", "Replace"}, {"content", "\xe2\x96\x81"}};
    if (std::string(family) == "gemma3") {
      folder.tokenizer["normalizer"] = replace;
    } else {
      folder.tokenizer["normalizer"] = {{"type", "Sequence"},
                                        {"normalizers", {{{"type", "Prepend"}}, replace}}};
    }
    folder.Write(dir_);
    const auto result = Import(dir_);
    ASSERT_TRUE(result.ok()) << result.status();
    const auto ours = Tokenizer::FromGguf(*Imported());
    const auto theirs = Tokenizer::FromGguf(*source_);
    ASSERT_TRUE(ours.ok()) << ours.status();
    for (const char* text : {"the rain in Spain", " two  spaces", "<s>x</s>", "\xf0\x9f\x98\x80"}) {
      EXPECT_EQ((*ours)->Encode(text), (*theirs)->Encode(text)) << family << text;
      Tokenizer::EncodeOptions special;
      special.parse_special = true;
      EXPECT_EQ((*ours)->Encode(text, special), (*theirs)->Encode(text, special)) << family << text;
    }
    for (const char* key : {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
                            "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.bos_token_id"}) {
      EXPECT_EQ(Imported()->Find(key)->payload(), source_->Find(key)->payload()) << family << key;
    }
  }
}

// A protobuf field of wire type 2, 5 or 0.
std::string Bytes(int field, const std::string& value) {
  std::string out(1, static_cast<char>(field << 3 | 2));
  for (size_t size = value.size(); true; size >>= 7) {
    out.push_back(static_cast<char>((size & 127) | (size > 127 ? 128 : 0)));
    if (size <= 127) return out + value;
  }
}

TEST_F(ImportModelTest, ReadsSentencePieceModels) {
  HfFolder folder = Folder("gemma3");
  const auto pieces = source_->Find("tokenizer.ggml.tokens")->AsStrings().value();
  const auto types = source_->Find("tokenizer.ggml.token_type")->AsInts().value();
  const auto scores = source_->Find("tokenizer.ggml.scores")->AsFloats().value();
  std::string model;
  for (size_t i = 0; i < pieces.size(); ++i) {
    std::string piece = Bytes(1, std::string(pieces[i]));
    piece.push_back(2 << 3 | 5);
    piece.append(reinterpret_cast<const char*>(&scores[i]), 4);
    piece.push_back(3 << 3);
    piece.push_back(static_cast<char>(types[i]));
    model += Bytes(1, piece);
  }
  model += Bytes(2, std::string("\x18\x02", 2));  // model_type: BPE
  model += Bytes(3, std::string("\x18\x00", 2));  // add_dummy_prefix: false
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(dir_ + "/tokenizer.model", model).ok());
  folder.tokenizer = nullptr;
  folder.settings["added_tokens_decoder"] = {
      {"3", {{"content", "<start_of_turn>"}, {"special", true}}},
      {"699", {{"content", "\xe2\x96\x81\xe2\x96\x81"}, {"special", false}}}};
  folder.Write(dir_);
  const auto result = Import(dir_);
  ASSERT_TRUE(result.ok()) << result.status();
  for (const char* key : {"tokenizer.ggml.scores", "tokenizer.ggml.add_space_prefix",
                          "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.add_bos_token"}) {
    EXPECT_EQ(Imported()->Find(key)->payload(), source_->Find(key)->payload()) << key;
  }
  const auto imported = Imported();
  EXPECT_EQ(imported->Find("tokenizer.ggml.tokens")->AsStrings().value()[699], "  ");
  EXPECT_EQ(imported->Find("tokenizer.ggml.token_type")->AsInts().value()[699], 4);
  EXPECT_EQ(imported->Find("tokenizer.ggml.token_type")->AsInts().value()[3], 3);
}

TEST_F(ImportModelTest, FillsIdsWithoutAToken) {
  HfFolder folder = Folder("qwen2");
  auto& added = folder.tokenizer["added_tokens"];
  ASSERT_GE(added.size(), 2u);
  const int64_t hole = added[0]["id"];
  added.erase(0);
  folder.settings.erase("bos_token");
  folder.tokenizer["added_tokens"].push_back(
      {{"id", 5}, {"content", "<tool>"}, {"special", false}});
  folder.tokenizer["model"]["vocab"].erase(
      std::string(source_->Find("tokenizer.ggml.tokens")->AsStrings().value()[5]));
  folder.Write(dir_);
  ASSERT_TRUE(Import(dir_).ok());
  const auto imported = Imported();
  const auto pieces = imported->Find("tokenizer.ggml.tokens")->AsStrings().value();
  const auto types = imported->Find("tokenizer.ggml.token_type")->AsInts().value();
  EXPECT_EQ(pieces[static_cast<size_t>(hole)], absl::StrCat("[PAD", hole, "]"));
  EXPECT_EQ(types[static_cast<size_t>(hole)], 5);
  EXPECT_EQ(pieces[5], "<tool>");
  EXPECT_EQ(types[5], 4);
  EXPECT_EQ(imported->Find("tokenizer.ggml.bos_token_id"), nullptr);
}

TEST_F(ImportModelTest, ReadsWhatTheTemplateAndTheConfigSay) {
  HfFolder folder = Folder("qwen3");
  const std::string bos = folder.settings["bos_token"];
  folder.settings.erase("add_bos_token");
  folder.settings["bos_token"] = {{"content", bos}, {"lstrip", false}};
  folder.settings["chat_template"] = {{{"name", "tools"}, {"template", "T"}},
                                      {{"name", "default"}, {"template", "D"}}};
  folder.settings.erase("eos_token");
  folder.config["eos_token_id"] = {698, 699};
  folder.tokenizer["post_processor"] = {
      {"type", "Sequence"},
      {"processors",
       {{{"type", "ByteLevel"}},
        {{"type", "TemplateProcessing"},
         {"single", {{{"SpecialToken", {{"id", bos}}}}, {{"Sequence", {{"id", "A"}}}}}}}}}};
  folder.Write(dir_);
  ASSERT_TRUE(Import(dir_).ok());
  EXPECT_TRUE(*Imported()->GetBoolOr("tokenizer.ggml.add_bos_token", false));
  EXPECT_FALSE(*Imported()->GetBoolOr("tokenizer.ggml.add_eos_token", true));
  EXPECT_EQ(*Imported()->GetString("tokenizer.chat_template"), "D");
  EXPECT_EQ(*Imported()->GetUint("tokenizer.ggml.eos_token_id"), 698u);
}

// Readers know by the name of a model alone that white space behind phi-3's marks is swallowed,
// and llama.cpp then wants certain pieces.
TEST_F(ImportModelTest, ANameWithPhi3IsAPromiseAboutTheVocabulary) {
  HfFolder folder = Folder("phi3");
  folder.tokenizer["model"]["byte_fallback"] = true;
  folder.tokenizer["model"]["merges"] = testing::Json::array();
  const auto name_for = [&](const char* name) {
    folder.config["_name_or_path"] = name;
    folder.Write(dir_);
    const auto result = Import(dir_);
    EXPECT_TRUE(result.ok()) << result.status();
    return std::string(*Imported()->GetString("general.name"));
  };
  EXPECT_EQ(name_for("someone/My-Phi-3-mini"), "My-phi 3-mini");
  for (auto& token : folder.tokenizer["added_tokens"]) token["rstrip"] = true;
  EXPECT_EQ(name_for("someone/tuned/"), "tuned");
  folder.tokenizer["added_tokens"].push_back(
      {{"id", 500}, {"content", "<|endoftext|>"}, {"special", true}, {"rstrip", false}});
  EXPECT_EQ(name_for("someone/tuned"), "phi-3 tuned");
  EXPECT_EQ(name_for("someone/My-Phi-3-mini"), "My-Phi-3-mini");
}

TEST_F(ImportModelTest, QuantizesOnTheWay) {
  HfFolder folder = Folder("qwen3");
  folder.Write(dir_);
  ImportModelOptions options;
  options.folder = dir_;
  options.output_file = dir_ + "/out.gguf";
  options.mix = FindMix("Q8_0").value();
  options.name = "mine";
  const auto result = ImportModel(options, nullptr, *Env::Posix());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(Imported()->FindTensor("blk.0.ffn_up.weight")->type, DType::kQ8_0);
  EXPECT_EQ(Imported()->FindTensor("blk.0.attn_q_norm.weight")->type, DType::kF32);
  EXPECT_EQ(*Imported()->GetUint("general.file_type"), 7u);
  EXPECT_EQ(*Imported()->GetString("general.name"), "mine");
  EXPECT_NEAR(result->types.at(DType::kQ8_0).relative_rmse(), 0.0054, 0.0003);
}

TEST_F(ImportModelTest, TakesBiasesAndSkipsCopies) {
  HfFolder folder = Folder("llama");
  // llama's q is interleaved, and so is its bias.
  SafetensorsEntry bias{"model.layers.0.self_attn.q_proj.bias", {64}, {}};
  for (int i = 0; i < 64; ++i) bias.values.push_back(static_cast<float>(i));
  folder.tensors.push_back(bias);
  folder.tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", {1}, {1.0f}});
  SafetensorsEntry head = folder.tensor("model.embed_tokens.weight");
  head.name = "lm_head.weight";
  folder.tensors.push_back(head);
  folder.tokenizer["model"]["byte_fallback"] = true;
  folder.tokenizer["model"]["merges"] = testing::Json::array();
  folder.Write(dir_);
  const auto result = Import(dir_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(Imported()->FindTensor("output.weight"), nullptr);
  const std::vector<float> values = ValuesOf(*Imported()->FindTensor("blk.0.attn_q.bias"));
  EXPECT_EQ(values[0], 0);
  EXPECT_EQ(values[1], 8);  // half a head of 16 further
  EXPECT_EQ(values[2], 1);
  EXPECT_EQ(values[17], 24);
}

TEST_F(ImportModelTest, NamesWhatIsWrongWithTheFolder) {
  const HfFolder good = Folder("qwen2");
  ASSERT_TRUE(Env::Posix()->Remove(dir_ + "/source.gguf").ok());
  {
    HfFolder folder = good;
    folder.config["architectures"] = {"MambaForCausalLM"};
    EXPECT_THAT(ErrorOf(folder, absl::StatusCode::kUnimplemented), HasSubstr("MambaForCausalLM"));
  }
  {
    HfFolder folder = good;
    folder.config.erase("hidden_size");
    EXPECT_THAT(ErrorOf(folder), HasSubstr("config.json: hidden_size is missing"));
  }
  {
    HfFolder folder = good;
    folder.config["num_hidden_layers"] = "one";
    EXPECT_THAT(ErrorOf(folder), HasSubstr("num_hidden_layers is string, not an integer"));
  }
  {
    HfFolder folder = good;
    folder.config["quantization_config"] = {{"bits", 4}};
    EXPECT_THAT(ErrorOf(folder, absl::StatusCode::kUnimplemented), HasSubstr("quantized"));
  }
  {
    HfFolder folder = good;
    folder.config["rope_scaling"] = {{"rope_type", "dynamic"}};
    EXPECT_THAT(ErrorOf(folder, absl::StatusCode::kUnimplemented), HasSubstr("\"dynamic\""));
  }
  {
    HfFolder folder = good;
    folder.config["intermediate_size"] = 97;
    EXPECT_THAT(ErrorOf(folder), HasSubstr("has shape [96, 64], but config.json says [97, 64]"));
  }
  {
    HfFolder folder = good;
    folder.tensors.push_back({"model.layers.0.mlp.expert.weight", {1}, {0.0f}});
    EXPECT_THAT(ErrorOf(folder, absl::StatusCode::kUnimplemented),
                HasSubstr("mlp.expert.weight belongs to nothing"));
  }
  {
    HfFolder folder = good;
    folder.tensor("model.norm.weight").name = "model.norm.other";
    EXPECT_THAT(ErrorOf(folder), HasSubstr("model.norm.weight (output_norm.weight in GGUF)"));
  }
  {
    HfFolder folder = good;
    folder.tokenizer["model"]["type"] = "Unigram";
    EXPECT_THAT(ErrorOf(folder, absl::StatusCode::kUnimplemented), HasSubstr("\"Unigram\""));
  }
  {
    HfFolder folder = good;
    folder.tokenizer["added_tokens"].push_back({{"id", 700}, {"content", "<x>"}});
    EXPECT_THAT(ErrorOf(folder), HasSubstr("has id 700, but the embedding has 700 rows"));
  }
  {
    HfFolder folder = good;
    folder.tokenizer["model"]["merges"].push_back("zz qq");
    EXPECT_THAT(ErrorOf(folder), HasSubstr("tokenizer"));
  }
  {
    HfFolder folder = good;
    folder.tensor("model.layers.0.mlp.up_proj.weight").values[70] = NAN;
    folder.Write(dir_);
    ImportModelOptions options;
    options.folder = dir_;
    options.output_file = dir_ + "/out.gguf";
    options.mix = FindMix("Q8_0").value();
    EXPECT_THAT(std::string(ImportModel(options, nullptr, *Env::Posix()).status().message()),
                HasSubstr("tensor blk.0.ffn_up.weight: row 1: values 0 to 31: not all finite"));
  }
}

TEST_F(ImportModelTest, NamesMissingAndDamagedFiles) {
  const HfFolder good = Folder("qwen2");
  const auto import_without = [&](absl::string_view name, absl::string_view text) {
    good.Write(dir_, 2);
    const std::string path = absl::StrCat(dir_, "/", name);
    EXPECT_TRUE(
        (text.empty() ? Env::Posix()->Remove(path) : Env::Posix()->WriteFileAtomic(path, text))
            .ok());
    const absl::Status status = Import(dir_).status();
    EXPECT_FALSE(status.ok()) << name;
    return std::string(status.message());
  };
  EXPECT_THAT(import_without("config.json", ""), HasSubstr("config.json"));
  EXPECT_THAT(import_without("config.json", "{\"a\": "), HasSubstr("config.json"));
  EXPECT_THAT(import_without("config.json", "[1]"), HasSubstr("is array, not a JSON object"));
  EXPECT_THAT(import_without("tokenizer.json", ""), HasSubstr("neither tokenizer.json nor"));
  EXPECT_THAT(import_without("model-00002.safetensors", ""), HasSubstr("model-00002.safetensors"));
  EXPECT_THAT(import_without("model-00002.safetensors", "xx"),
              HasSubstr("model-00002.safetensors"));
  EXPECT_THAT(import_without("model.safetensors.index.json",
                             R"({"weight_map": {"a": "../x.safetensors"}})"),
              HasSubstr("outside of the folder"));
  EXPECT_THAT(import_without("model.safetensors.index.json",
                             R"({"weight_map": {"a": "model-00001.safetensors"}})"),
              HasSubstr("tensor a of"));
  EXPECT_EQ(Import(dir_ + "/none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ImportModelTest, LeavesNothingWhenTheDiskFails) {
  HfFolder folder = Folder("qwen2");
  folder.Write(dir_);
  for (int64_t n = 1;; n += 7) {
    testing::FaultEnv env;
    env.FailFrom(n, absl::StatusCode::kResourceExhausted, testing::FaultEnv::Span::kForEver,
                 testing::FaultEnv::Scope::kWrites);
    const absl::Status status = Import(dir_, env).status();
    if (!env.triggered()) break;
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << n;
    EXPECT_FALSE(Env::Posix()->Exists(dir_ + "/out.gguf")) << n;
  }
}

}  // namespace
}  // namespace fedge
