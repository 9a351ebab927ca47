#include "tools/prepare/quantize_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/formats/gguf.h"
#include "common/formats/gguf_writer.h"
#include "common/tensor/quantize.h"
#include "tests/testing/fault_env.h"
#include "tests/testing/shared_data.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string NewFolder(absl::string_view name) {
  const std::string dir = absl::StrCat(::testing::TempDir(), "/quantize_model_", name);
  Env::Posix()->Remove(dir).IgnoreError();
  EXPECT_TRUE(Env::Posix()->CreateDirs(dir).ok());
  return dir;
}

std::vector<float> ValuesOf(const GgufTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  Dequantize(tensor.type, reinterpret_cast<const uint8_t*>(tensor.data.data()),
             tensor.num_elements(), values.data());
  return values;
}

double Rmse(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double error = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += error * error;
  }
  return std::sqrt(sum / static_cast<double>(a.size()));
}

// ---- Against files that llama.cpp quantized.

struct PairCase {
  const char* label;
  const char* source;
  const char* quantized;
  const char* mix;
};

class LlamaCppPairTest : public ::testing::TestWithParam<PairCase> {};

TEST_P(LlamaCppPairTest, HasTheSameTypesAndNoLargerError) {
  FEDGE_SHARED_DATA_OR_SKIP(source_path, absl::StrCat("models/", GetParam().source));
  FEDGE_SHARED_DATA_OR_SKIP(theirs_path, absl::StrCat("models/", GetParam().quantized));
  QuantizeModelOptions options;
  options.model_file = source_path;
  options.output_file = NewFolder(GetParam().label) + "/x.gguf";
  options.mix = FindMix(GetParam().mix).value();
  options.threads = 2;
  const auto result = QuantizeModel(options, nullptr, *Env::Posix());
  ASSERT_TRUE(result.ok()) << result.status();

  const auto source = GgufFile::Open(source_path, *Env::Posix()).value();
  const auto theirs = GgufFile::Open(theirs_path, *Env::Posix()).value();
  const auto ours = GgufFile::Open(options.output_file, *Env::Posix()).value();
  for (const std::string& key : theirs->keys()) {
    ASSERT_NE(ours->Find(key), nullptr) << key;
    EXPECT_EQ(ours->Find(key)->payload(), theirs->Find(key)->payload()) << key;
    EXPECT_EQ(ours->Find(key)->type(), theirs->Find(key)->type()) << key;
  }
  EXPECT_EQ(ours->keys().size(), theirs->keys().size());
  for (const GgufTensor& tensor : ours->tensors()) {
    const GgufTensor* const expected = theirs->FindTensor(tensor.name);
    ASSERT_NE(expected, nullptr) << tensor.name;
    EXPECT_EQ(tensor.type, expected->type) << tensor.name;
    if (BlockElements(tensor.type) == 1) {
      EXPECT_EQ(tensor.data, expected->data) << tensor.name;
      continue;
    }
    if (tensor.type == DType::kQ4_0 || tensor.type == DType::kQ8_0) {
      EXPECT_EQ(tensor.data, expected->data) << tensor.name;
    }
    const std::vector<float> values = ValuesOf(*source->FindTensor(tensor.name));
    EXPECT_LE(Rmse(values, ValuesOf(tensor)), 1.0 * Rmse(values, ValuesOf(*expected)))
        << tensor.name;
  }
}

INSTANTIATE_TEST_SUITE_P(SharedData, LlamaCppPairTest,
                         ::testing::Values(PairCase{"LlamaQ4_0", "rand-tiny-llama-f32.gguf",
                                                    "rand-tiny-llama-Q4_0.gguf", "Q4_0"},
                                           PairCase{"LlamaQ4_K_M", "rand-tiny-llama-f32.gguf",
                                                    "rand-tiny-llama-Q4_K_M.gguf", "q4_k_m"},
                                           PairCase{"Qwen2Q4_K_M", "rand-tiny-qwen2-f32.gguf",
                                                    "rand-tiny-qwen2-Q4_K_M.gguf", "Q4_K_M"}),
                         [](const auto& test) {
                           std::string label = test.param.label;
                           label.erase(std::remove(label.begin(), label.end(), '_'), label.end());
                           return label;
                         });

// ---- On a file made here.

class QuantizeModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = NewFolder(::testing::UnitTest::GetInstance()->current_test_info()->name());
    options_.model_file = dir_ + "/in.gguf";
    options_.output_file = dir_ + "/out.gguf";
    options_.mix = FindMix("Q4_K").value();
    metadata_.SetString("general.architecture", "llama");
    metadata_.SetUint32("general.file_type", 0);
    metadata_.SetStrings("tokenizer.ggml.tokens", {"a", "b"});
    metadata_.SetUint32("llama.block_count", 8);
  }

  void AddMatrix(absl::string_view name, int64_t cols, int64_t rows, DType type = DType::kF32) {
    Rng rng(StableHash(name));
    std::vector<float> values(static_cast<size_t>(cols * rows));
    for (float& value : values) value = static_cast<float>(rng.Normal());
    if (poison_ == name) values[static_cast<size_t>(cols) * 2 + 40] = NAN;
    std::string data(static_cast<size_t>(RowBytes(type, cols) * rows), '\0');
    ASSERT_TRUE(Quantize(type, values, reinterpret_cast<uint8_t*>(data.data())).ok());
    metadata_.AddTensor(name, type, {cols, rows}, data);
  }
  void AddVector(absl::string_view name, int64_t size) {
    metadata_.AddTensor(name, DType::kF32, {size}, std::string(static_cast<size_t>(size) * 4, 'x'));
  }
  absl::StatusOr<QuantizeModelResult> Run(Env& env = *Env::Posix()) {
    EXPECT_TRUE(metadata_.WriteFile(options_.model_file, *Env::Posix()).ok());
    return QuantizeModel(options_, nullptr, env);
  }
  DType TypeOf(absl::string_view name) {
    const auto file = GgufFile::Open(options_.output_file, *Env::Posix());
    EXPECT_TRUE(file.ok()) << file.status();
    return (*file)->FindTensor(name)->type;
  }

  std::string dir_;
  std::string poison_;
  GgufWriter metadata_;
  QuantizeModelOptions options_;
};

TEST_F(QuantizeModelTest, FallsBackWhereRowsAreNoWholeBlocks) {
  AddMatrix("token_embd.weight", 96, 8);
  AddMatrix("blk.0.attn_q.weight", 256, 8);
  AddMatrix("blk.0.attn_k.weight", 96, 8, DType::kF16);
  AddMatrix("blk.0.ffn_up.weight", 40, 8, DType::kBF16);
  AddVector("blk.0.attn_norm.weight", 96);
  AddMatrix("blk.0.attn_k_norm.weight", 32, 8);  // a norm in two dimensions stays
  AddVector("blk.0.attn_q.bias", 32);
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(TypeOf("token_embd.weight"), DType::kQ8_0);  // tied: Q6_K, which does not fit
  EXPECT_EQ(TypeOf("blk.0.attn_q.weight"), DType::kQ4_K);
  EXPECT_EQ(TypeOf("blk.0.attn_k.weight"), DType::kQ5_0);
  EXPECT_EQ(TypeOf("blk.0.ffn_up.weight"), DType::kF16);
  EXPECT_EQ(TypeOf("blk.0.attn_norm.weight"), DType::kF32);
  EXPECT_EQ(TypeOf("blk.0.attn_k_norm.weight"), DType::kF32);
  EXPECT_EQ(TypeOf("blk.0.attn_q.bias"), DType::kF32);
}

TEST_F(QuantizeModelTest, MixesGiveSomeTensorsMoreBits) {
  options_.mix = FindMix("Q5_K_M").value();
  options_.mix.output = DType::kQ8_0;
  AddMatrix("token_embd.weight", 256, 4);
  AddMatrix("output.weight", 256, 4);
  for (int block = 0; block < 8; ++block) {
    AddMatrix(absl::StrCat("blk.", block, ".ffn_down.weight"), 256, 2);
  }
  AddMatrix("blk.0.attn_qkv.weight", 256, 2);
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(TypeOf("token_embd.weight"), DType::kQ5_K);
  EXPECT_EQ(TypeOf("output.weight"), DType::kQ8_0);
  EXPECT_EQ(TypeOf("blk.0.attn_qkv.weight"), DType::kQ6_K);
  std::string more;
  for (int block = 0; block < 8; ++block) {
    const bool six = TypeOf(absl::StrCat("blk.", block, ".ffn_down.weight")) == DType::kQ6_K;
    more.push_back(six ? '6' : '5');
  }
  EXPECT_EQ(more, "65565566");
}

TEST_F(QuantizeModelTest, CopiesMetadataAndCountsErrors) {
  AddMatrix("blk.0.attn_q.weight", 256, 40);
  AddVector("blk.0.attn_norm.weight", 256);
  const auto result = Run();
  ASSERT_TRUE(result.ok()) << result.status();
  const auto file = GgufFile::Open(options_.output_file, *Env::Posix()).value();
  EXPECT_THAT(file->keys(),
              ElementsAre("general.architecture", "general.file_type", "tokenizer.ggml.tokens",
                          "llama.block_count", "general.quantization_version"));
  EXPECT_EQ(*file->GetUint("general.file_type"), 14u);
  EXPECT_EQ(*file->GetUint("general.quantization_version"), 2u);
  EXPECT_EQ(file->FindTensor("blk.0.attn_norm.weight")->data, std::string(1024, 'x'));
  EXPECT_EQ(result->output_bytes, file->bytes().size());
  const TypeTotals& totals = result->types.at(DType::kQ4_K);
  EXPECT_EQ(totals.tensors, 1);
  EXPECT_EQ(totals.values, 256 * 40);
  EXPECT_EQ(totals.bytes, 144 * 40);
  EXPECT_NEAR(totals.relative_rmse(), 0.0708, 0.002);
  EXPECT_EQ(result->types.at(DType::kF32).rmse(), 0);
}

TEST_F(QuantizeModelTest, BytesDoNotDependOnThreads) {
  AddMatrix("blk.0.attn_q.weight", 256, 900);
  AddMatrix("output.weight", 512, 301);
  const auto one = Run();
  const std::string expected = *Env::Posix()->ReadFile(options_.output_file);
  options_.threads = 3;
  const auto three = Run();
  EXPECT_EQ(*Env::Posix()->ReadFile(options_.output_file), expected);
  EXPECT_EQ(one->types.at(DType::kQ6_K).squared_error, three->types.at(DType::kQ6_K).squared_error);
}

TEST_F(QuantizeModelTest, NamesTheRowThatCannotBeEncoded) {
  poison_ = "blk.0.attn_v.weight";
  AddMatrix("blk.0.attn_v.weight", 256, 8);
  const absl::Status status = Run().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()),
            options_.model_file +
                ": tensor blk.0.attn_v.weight: row 2: values 0 to 255: not all "
                "finite for Q4_K");
  EXPECT_THAT(*Env::Posix()->ListDir(dir_), ElementsAre("in.gguf"));
}

TEST_F(QuantizeModelTest, NeverWritesOverItsInput) {
  AddMatrix("blk.0.attn_q.weight", 256, 8);
  options_.output_file = options_.model_file;
  EXPECT_THAT(std::string(Run().status().message()), HasSubstr("is the input too"));
  options_.output_file = dir_ + "/./in.gguf";
  EXPECT_THAT(std::string(Run().status().message()), HasSubstr("is the input too"));
}

TEST_F(QuantizeModelTest, QuantizesTwiceOnlyWhenAsked) {
  AddMatrix("blk.0.attn_q.weight", 256, 8, DType::kQ8_0);
  const absl::Status status = Run().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("blk.0.attn_q.weight is Q8_0 already"));
  options_.allow_requantize = true;
  EXPECT_TRUE(Run().ok());
  EXPECT_EQ(TypeOf("blk.0.attn_q.weight"), DType::kQ4_K);
}

TEST_F(QuantizeModelTest, RefusesAdaptersAndParts) {
  metadata_.SetString("general.type", "adapter");
  AddMatrix("blk.0.attn_q.weight.lora_a", 256, 8);
  EXPECT_EQ(Run().status().code(), absl::StatusCode::kInvalidArgument);
  metadata_ = GgufWriter();
  metadata_.SetUint32("split.count", 2);
  AddMatrix("blk.0.attn_q.weight", 256, 8);
  EXPECT_EQ(Run().status().code(), absl::StatusCode::kUnimplemented);
}

TEST_F(QuantizeModelTest, LeavesNothingBehindAFailure) {
  AddMatrix("blk.0.attn_q.weight", 256, 8);
  AddVector("blk.0.attn_norm.weight", 256);
  for (int64_t n = 1;; ++n) {
    testing::FaultEnv env;
    env.FailFrom(n, absl::StatusCode::kResourceExhausted, testing::FaultEnv::Span::kOnce,
                 testing::FaultEnv::Scope::kWrites);
    const auto result = Run(env);
    if (!env.triggered()) break;
    EXPECT_EQ(result.status().code(), absl::StatusCode::kResourceExhausted) << n;
    if (!Env::Posix()->Exists(options_.output_file)) {
      EXPECT_THAT(*Env::Posix()->ListDir(dir_), ElementsAre("in.gguf")) << n;
    }
  }
  EXPECT_THAT(*Env::Posix()->ListDir(dir_), ElementsAre("in.gguf", "out.gguf"));
}

TEST_F(QuantizeModelTest, StopsWhenTheEventSaysSo) {
  AddMatrix("blk.0.attn_q.weight", 256, 8);
  ASSERT_TRUE(metadata_.WriteFile(options_.model_file, *Env::Posix()).ok());
  const auto result = QuantizeModel(
      options_, [](const PrepareProgress&) { return false; }, *Env::Posix());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(*Env::Posix()->ListDir(dir_), ElementsAre("in.gguf"));
}

TEST(FindMixTest, KnowsTypesAndMixesInAnyCase) {
  EXPECT_EQ(FindMix("q4_k_m")->file_type, 15u);
  EXPECT_EQ(FindMix("Q5_1")->file_type, 9u);
  EXPECT_EQ(FindMix("bf16")->type, DType::kBF16);
  EXPECT_THAT(std::string(FindMix("IQ2").status().message()), HasSubstr("Q4_K_M, Q5_K_M"));
}

}  // namespace
}  // namespace fedge
