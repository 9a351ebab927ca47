// What rounding the keys and values costs: log-likelihood of a text, token by token, so that all
// keys but the newest are read from the cache.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "common/base/env.h"
#include "common/model/transformer.h"
#include "tests/testing/shared_data.h"
#include "tests/testing/tiny_transformer.h"

namespace fedge {
namespace {

constexpr int64_t kTokens = 512;  // of a window
constexpr int64_t kWindows = 2;

struct Subject {
  std::string name;
  std::string model;  // of the shared data, or a path in the source tree
  std::string text;
  // More nats a token than with fp32, at most; of q4 also at least.
  double half, eight, least_four, four;
};

class KvCacheLikelihoodTest : public ::testing::TestWithParam<Subject> {};

double NatsPerToken(const BaseModel& model, Transformer& transformer,
                    const std::vector<TokenId>& tokens, KvType type) {
  double nats = 0;
  for (int64_t window = 0; window < kWindows; ++window) {
    KvCache cache(model.config(), kTokens, {type});
    const TokenId* const first = tokens.data() + window * kTokens;
    for (int64_t i = 0; i + 1 < kTokens; ++i) {
      const TokenId token =
          i == 0 && model.tokenizer().adds_bos() ? model.tokenizer().bos() : first[i];
      const auto logits = transformer.Decode({token}, nullptr, cache);
      nats += testing::NatsOf(logits.value(), first[i + 1]);
    }
  }
  return nats / static_cast<double>(kWindows * (kTokens - 1));
}

TEST_P(KvCacheLikelihoodTest, LosesLittle) {
  const Subject& subject = GetParam();
  FEDGE_SHARED_DATA_OR_SKIP(text_path, "text/" + subject.text);
  std::string path = std::string(FEDGE_SOURCE_DIR) + "/" + subject.model;
  if (!Env::Posix()->Exists(path)) {
    FEDGE_SHARED_DATA_OR_SKIP(shared_path, subject.model);
    path = shared_path;
  }
  const auto model = BaseModel::Load(path, *Env::Posix());
  ASSERT_TRUE(model.ok()) << model.status();
  const std::string text = Env::Posix()->ReadFile(text_path).value();
  const std::vector<TokenId> tokens = (*model)->tokenizer().Encode(text);
  ASSERT_GE(tokens.size(), static_cast<size_t>(kWindows * kTokens));
  ThreadPool pool(2);
  Transformer transformer(*model, &pool);
  const double exact = NatsPerToken(**model, transformer, tokens, KvType::kF32);
  const double half = NatsPerToken(**model, transformer, tokens, KvType::kF16) - exact;
  const double eight = NatsPerToken(**model, transformer, tokens, KvType::kQ8) - exact;
  const double four = NatsPerToken(**model, transformer, tokens, KvType::kQ4) - exact;
  std::printf("%s: %.4f nats a token; f16 %+.6f, q8 %+.6f, q4 %+.6f\n", subject.name.c_str(), exact,
              half, eight, four);
  EXPECT_NE(half, 0);
  EXPECT_LT(std::abs(half), subject.half);
  EXPECT_NE(eight, half);
  EXPECT_LT(std::abs(eight), subject.eight);
  EXPECT_GT(four, subject.least_four);
  EXPECT_LT(four, subject.four);
}

INSTANTIATE_TEST_SUITE_P(
    Models, KvCacheLikelihoodTest,
    ::testing::Values(Subject{"Bundled", "models/fedge-tiny/fedge-tiny-q8_0.gguf",
                              "tinyshakespeare.txt", 1e-4, 1e-3, 1e-4, 0.05},
                      Subject{"Stories15M", "models/stories15M-Q8_0.gguf", "stories-gen.txt", 5e-4,
                              1e-3, 1e-4, 0.05},
                      Subject{"Gemma3", "models/rand-tiny-gemma3-f32.gguf", "wiki.64k.txt", 1e-3,
                              1e-2, -0.1, 0.1}),
    [](const ::testing::TestParamInfo<Subject>& test) { return test.param.name; });

}  // namespace
}  // namespace fedge
