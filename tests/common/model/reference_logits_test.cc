// Logits of the last position against llama.cpp's F32 arithmetic, on models that others trained.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "common/base/env.h"
#include "common/base/status.h"
#include "common/model/transformer.h"
#include "tests/testing/shared_data.h"

namespace fedge {
namespace {

using testing::SharedData;

template <typename T>
std::vector<T> ReadArray(const std::string& path) {
  const auto bytes = Env::Posix()->ReadFile(path);
  FEDGE_CHECK(bytes.ok(), bytes.status().ToString());
  std::vector<T> values(bytes->size() / sizeof(T));
  std::memcpy(values.data(), bytes->data(), values.size() * sizeof(T));
  return values;
}

class ReferenceLogitsTest : public ::testing::TestWithParam<const char*> {};

TEST_P(ReferenceLogitsTest, MatchAtTheLastPosition) {
  const std::string name = GetParam();
  FEDGE_SHARED_DATA_OR_SKIP(path, "models/" + name + ".gguf");
  FEDGE_SHARED_DATA_OR_SKIP(tokens_path, "../reference/logits/" + name + "-tokens.bin");
  FEDGE_SHARED_DATA_OR_SKIP(logits_path, "../reference/logits/" + name + "-logits.f32");
  const auto model = BaseModel::Load(path, *Env::Posix());
  ASSERT_TRUE(model.ok()) << model.status();
  const std::vector<TokenId> tokens = ReadArray<TokenId>(tokens_path);
  const std::vector<float> expected = ReadArray<float>(logits_path);
  ThreadPool pool(2);
  Transformer transformer(*model, &pool);
  KvCache cache((*model)->config(), static_cast<int64_t>(tokens.size()), {KvType::kF32});
  const auto logits = transformer.Decode(tokens, nullptr, cache);
  ASSERT_TRUE(logits.ok()) << logits.status();
  ASSERT_EQ(logits->size(), expected.size());
  double largest = 0, error = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(double{expected[i]}));
    error = std::max(error, std::abs(double{expected[i]} - double{(*logits)[i]}));
  }
  std::printf("%s: %zu tokens, max difference %.2g of %.3g\n", name.c_str(), tokens.size(), error,
              largest);
  // llama.cpp looks GELU up in a table of half precision.
  const bool coarse = (*model)->config().family->gate == GateFunction::kGeluTanh;
  EXPECT_LT(error, (coarse ? 1e-3 : 1e-4) * largest);
}

INSTANTIATE_TEST_SUITE_P(Models, ReferenceLogitsTest,
                         ::testing::Values("stories260K-f32", "rand-tiny-llama-f32",
                                           "rand-tiny-qwen2-f32", "rand-tiny-qwen3-f32",
                                           "rand-tiny-gemma3-f32"));

}  // namespace
}  // namespace fedge
