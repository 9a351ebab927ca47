// Perplexities of real files against llama.cpp's with F32 arithmetic (b10151, CPU).
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "common/base/env.h"
#include "common/base/thread_pool.h"
#include "common/formats/adapter_files.h"
#include "common/model/base_model.h"
#include "common/training/evaluation.h"
#include "tests/testing/shared_data.h"
#include "tools/fedge/lora_option.h"

namespace fedge {
namespace {

constexpr double kTolerance = 0.002;  // relative

struct Reference {
  std::string name;  // of the test
  std::string model;
  std::string text;
  int64_t windows;
  double perplexity;
  std::string lora;
  double scale = 1;
};

class PerplexityReferenceTest : public ::testing::TestWithParam<Reference> {};

TEST_P(PerplexityReferenceTest, IsWithinTwoPerMille) {
  const Reference& reference = GetParam();
  FEDGE_SHARED_DATA_OR_SKIP(model_path, "models/" + reference.model + ".gguf");
  FEDGE_SHARED_DATA_OR_SKIP(text_path, "text/" + reference.text);
  Env& env = *Env::Posix();
  const auto model = BaseModel::Load(model_path, env);
  ASSERT_TRUE(model.ok()) << model.status();
  std::optional<LoraAdapter> adapter;
  if (!reference.lora.empty()) {
    FEDGE_SHARED_DATA_OR_SKIP(lora_path, "models/" + reference.lora + ".gguf");
    const auto loaded = ReadAdapter(lora_path, AdapterInfoOf(**model, false), env);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    adapter = ScaleAdapter(loaded->adapter, reference.scale).value();
    ASSERT_TRUE((*model)->CheckAdapter(adapter->spec()).ok());
  }
  ThreadPool pool(2);
  Transformer transformer(*model, &pool);
  PerplexityOptions options;
  options.context = 256;
  options.max_windows = reference.windows;
  const auto result = Perplexity(transformer, adapter ? &*adapter : nullptr,
                                 env.ReadFile(text_path).value(), options, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->windows, reference.windows);
  EXPECT_NEAR(result->perplexity / reference.perplexity, 1.0, kTolerance) << result->perplexity;
  std::printf("%s: %.4f, llama.cpp %.4f, ratio %.7f\n", reference.name.c_str(), result->perplexity,
              reference.perplexity, result->perplexity / reference.perplexity);
  RecordProperty("perplexity", std::to_string(result->perplexity));
}

Reference Random(const std::string& test, const std::string& model, double perplexity,
                 double scale) {
  return {test, model, "wiki.64k.txt", 8, perplexity, scale == 0 ? "" : model + ".lora-r8a16",
          scale};
}

INSTANTIATE_TEST_SUITE_P(
    LlamaCpp, PerplexityReferenceTest,
    ::testing::Values(
        Reference{"Stories260K", "stories260K-f32", "stories-gen.txt", 64, 2.9515, ""},
        Reference{"Stories15MQ8", "stories15M-Q8_0", "stories-gen.txt", 64, 2.6611, ""},
        Reference{"Stories15MQ4", "stories15M-Q4_0", "stories-gen.txt", 64, 2.9058, ""},
        Random("Llama", "rand-tiny-llama-f32", 9044.9681, 0),
        Random("LlamaQ4", "rand-tiny-llama-Q4_0", 8966.0120, 0),
        Random("LlamaQ4KM", "rand-tiny-llama-Q4_K_M", 9184.7952, 0),
        Random("LlamaLora", "rand-tiny-llama-f32", 8942.9334, 1),
        Random("LlamaLoraHalf", "rand-tiny-llama-f32", 9100.0390, 0.5),
        Random("Qwen2", "rand-tiny-qwen2-f32", 9200.7430, 0),
        Random("Qwen2Q4KM", "rand-tiny-qwen2-Q4_K_M", 9296.0384, 0),
        Random("Qwen2Lora", "rand-tiny-qwen2-f32", 9795.5826, 1),
        Random("Qwen2LoraHalf", "rand-tiny-qwen2-f32", 9534.8145, 0.5),
        Random("Qwen3", "rand-tiny-qwen3-f32", 9407.1432, 0),
        Random("Qwen3Lora", "rand-tiny-qwen3-f32", 9390.9667, 1),
        Random("Qwen3LoraHalf", "rand-tiny-qwen3-f32", 9485.7302, 0.5),
        Random("Gemma3", "rand-tiny-gemma3-f32", 8859.5520, 0),
        Random("Gemma3Lora", "rand-tiny-gemma3-f32", 8713.1339, 1),
        Random("Gemma3LoraHalf", "rand-tiny-gemma3-f32", 8745.9279, 0.5),
        Random("Phi3", "rand-tiny-phi3-f32", 9161.8600, 0),
        Random("Phi3Lora", "rand-tiny-phi3-f32", 8673.1269, 1),
        Random("Phi3LoraHalf", "rand-tiny-phi3-f32", 8926.3660, 0.5)),
    [](const ::testing::TestParamInfo<Reference>& test) { return test.param.name; });

}  // namespace
}  // namespace fedge
