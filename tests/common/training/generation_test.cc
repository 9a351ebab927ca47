#include "common/training/generation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/thread_pool.h"
#include "common/formats/gguf.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using Stop = GenerateResult::Stop;

TEST(SampleTokenTest, TakesTheMostLikelyAtTemperatureZero) {
  Rng rng(1);
  EXPECT_EQ(SampleToken({0.0f, 3.0f, 1.0f, 3.0f}, {0.0, 0, 1.0}, rng), 1);
}

TEST(SampleTokenTest, KeepsToTheKMostLikely) {
  Rng rng(1);
  std::set<TokenId> seen;
  for (int i = 0; i < 500; ++i) {
    seen.insert(SampleToken({0.0f, 1.0f, 0.5f, -1.0f, 0.9f}, {1.0, 3, 1.0}, rng));
  }
  EXPECT_EQ(seen, (std::set<TokenId>{1, 2, 4}));
}

TEST(SampleTokenTest, KeepsToTheNucleus) {
  Rng rng(1);
  std::set<TokenId> seen;
  // Probabilities 0.5, 0.25, 0.125, 0.125.
  const std::vector<float> logits = {std::log(4.0f), std::log(2.0f), 0.0f, 0.0f};
  for (int i = 0; i < 500; ++i) seen.insert(SampleToken(logits, {1.0, 0, 0.7}, rng));
  EXPECT_EQ(seen, (std::set<TokenId>{0, 1}));
  EXPECT_EQ(SampleToken(logits, {1.0, 0, 1e-9}, rng), 0);
}

TEST(SampleTokenTest, DrawsByProbabilityAndTemperature) {
  constexpr int kDraws = 40000;
  for (const double temperature : {1.0, 0.5}) {
    Rng rng(5);
    int count = 0;
    for (int i = 0; i < kDraws; ++i) {
      count += SampleToken({std::log(3.0f), 0.0f}, {temperature, 0, 1.0}, rng) == 0 ? 1 : 0;
    }
    const double expected = temperature == 1.0 ? 0.75 : 0.9;
    EXPECT_NEAR(count / static_cast<double>(kDraws), expected, 0.01);
  }
}

class GenerateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::TinyModelOptions options;
    options.context_length = 24;
    gguf_ = testing::MakeTinyModelGguf(options);
    model_ = BaseModel::FromGguf(GgufFile::Parse(gguf_, "tiny").value()).value();
    transformer_ = std::make_unique<Transformer>(model_, &pool_);
    prompt_ = model_->tokenizer().Encode("the cat");
    options_.max_tokens = 8;
    options_.stop_at_end = false;
    options_.kv_type = KvType::kF32;
    options_.prompt_precision = Precision::kFloat32;
  }
  absl::StatusOr<GenerateResult> Run(
      const std::function<bool(TokenId, absl::string_view)>& on_token = {}) {
    return Generate(*transformer_, nullptr, prompt_, options_, on_token);
  }

  std::string gguf_;
  std::shared_ptr<const BaseModel> model_;
  ThreadPool pool_{1};
  std::unique_ptr<Transformer> transformer_;
  std::vector<TokenId> prompt_;
  GenerateOptions options_;
};

TEST_F(GenerateTest, GreedyTextIsThatOfWholeForwardPasses) {
  options_.sampling.temperature = 0;
  std::string streamed;
  const absl::StatusOr<GenerateResult> result = Run([&](TokenId, absl::string_view bytes) {
    absl::StrAppend(&streamed, bytes);
    return true;
  });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->stop, Stop::kLength);
  ASSERT_EQ(result->tokens.size(), 8u);
  std::vector<TokenId> ids = prompt_;
  std::string expected;
  for (const TokenId token : result->tokens) {
    KvCache cache(model_->config(), 64);
    const std::vector<float> logits = transformer_->Decode(ids, nullptr, cache).value();
    EXPECT_EQ(token, std::max_element(logits.begin(), logits.end()) - logits.begin());
    ids.push_back(token);
    expected += model_->tokenizer().TokenBytes(token);
  }
  EXPECT_EQ(streamed, expected);
}

TEST_F(GenerateTest, RepeatsItselfForTheSameSeedOnly) {
  options_.sampling = {1.5, 0, 1.0};
  const std::vector<TokenId> first = Run()->tokens;
  EXPECT_EQ(Run()->tokens, first);
  options_.seed = 1;
  EXPECT_NE(Run()->tokens, first);
}

TEST_F(GenerateTest, StopsAtTheEndOfTheContextAndWhenAsked) {
  options_.max_tokens = 100;
  absl::StatusOr<GenerateResult> result = Run();
  EXPECT_EQ(result->stop, Stop::kContext);
  EXPECT_EQ(prompt_.size() + result->tokens.size(), 25u);  // the last one was not fed back
  result = Run([](TokenId, absl::string_view) { return false; });
  EXPECT_EQ(result->stop, Stop::kCallback);
  EXPECT_EQ(result->tokens.size(), 1u);
  options_.max_tokens = 0;
  EXPECT_TRUE(Run()->tokens.empty());
}

TEST_F(GenerateTest, StopsAtAnEndToken) {
  options_.max_tokens = 15;
  options_.sampling = {50.0, 0, 1.0};  // almost uniform over 320 tokens
  options_.stop_at_end = true;
  for (options_.seed = 0; options_.seed < 200; ++options_.seed) {
    const absl::StatusOr<GenerateResult> result = Run();
    if (result->stop != Stop::kEnd) continue;
    for (const TokenId id : result->tokens) EXPECT_NE(id, model_->tokenizer().eos());
    return;
  }
  FAIL() << "no text of 200 ended";
}

TEST_F(GenerateTest, RefusesBadPromptsAndOptions) {
  const auto code = [this] { return Run().status().code(); };
  options_.sampling.top_p = 0;
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
  options_.sampling.top_p = 1;
  options_.sampling.temperature = -1;
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
  options_.sampling.temperature = 1;
  prompt_.assign(25, 5);
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
  prompt_ = {320};
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
  prompt_ = {};
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fedge
