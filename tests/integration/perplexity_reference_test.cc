// Perplexities of real files against llama.cpp's with F32 arithmetic (b10151, CPU).
#include <gtest/gtest.h>

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
  RecordProperty("perplexity", std::to_string(result->perplexity));
}

INSTANTIATE_TEST_SUITE_P(
    LlamaCpp, PerplexityReferenceTest,
    ::testing::Values(
        Reference{"Stories260K", "stories260K-f32", "stories-gen.txt", 64, 2.9515, ""},
        Reference{"Stories15MQ8", "stories15M-Q8_0", "stories-gen.txt", 64, 2.6611, ""},
        Reference{"Stories15MQ4", "stories15M-Q4_0", "stories-gen.txt", 64, 2.9058, ""},
        Reference{"RandomF32", "rand-tiny-llama-f32", "wiki.64k.txt", 8, 9044.9681, ""},
        Reference{"RandomQ4", "rand-tiny-llama-Q4_0", "wiki.64k.txt", 8, 8966.0120, ""},
        Reference{"RandomQ4KM", "rand-tiny-llama-Q4_K_M", "wiki.64k.txt", 8, 9184.7952, ""},
        Reference{"RandomLora", "rand-tiny-llama-f32", "wiki.64k.txt", 8, 8942.9334,
                  "rand-tiny-llama-f32.lora-r8a16", 1},
        Reference{"RandomLoraHalf", "rand-tiny-llama-f32", "wiki.64k.txt", 8, 9100.0390,
                  "rand-tiny-llama-f32.lora-r8a16", 0.5}),
    [](const ::testing::TestParamInfo<Reference>& test) { return test.param.name; });

}  // namespace
}  // namespace fedge
