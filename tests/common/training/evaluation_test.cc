#include "common/training/evaluation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "common/base/env.h"
#include "common/base/rng.h"
#include "common/base/thread_pool.h"
#include "common/formats/gguf.h"
#include "tests/testing/shared_data.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;

double LogProbability(absl::Span<const float> logits, TokenId id) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  return static_cast<double>(logits[static_cast<size_t>(id)]) - std::log(sum);
}

class EvaluationTest : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::TinyModelOptions options;
    options.seed = 3;
    gguf_ = testing::MakeTinyModelGguf(options);
    model_ = BaseModel::FromGguf(GgufFile::Parse(gguf_, "tiny").value()).value();
    transformer_ = std::make_unique<Transformer>(model_, &pool_);
    LoraTargets targets;
    targets.rank = 2;
    adapter_ = LoraAdapter(model_->MakeLoraSpec(targets).value());
    Rng rng(8);
    for (float& value : adapter_.values()) value = static_cast<float>(0.3 * rng.Normal());
  }
  static Record Answer(absl::string_view prompt, absl::string_view completion) {
    Record record;
    record.spans = {{std::string(prompt), false}, {std::string(completion), true}};
    record.has_completion = true;
    return record;
  }
  // -log p of `tokens` after `prompt`, one whole forward pass a token.
  double Nats(std::vector<TokenId> prompt, absl::Span<const TokenId> tokens) {
    double nats = 0;
    for (const TokenId token : tokens) {
      KvCache cache(model_->config(), 128, {KvType::kF32});
      nats -= LogProbability(transformer_->Decode(prompt, &adapter_, cache).value(), token);
      prompt.push_back(token);
    }
    return nats;
  }

  std::string gguf_;
  std::shared_ptr<const BaseModel> model_;
  ThreadPool pool_{1};
  std::unique_ptr<Transformer> transformer_;
  LoraAdapter adapter_;
};

TEST_F(EvaluationTest, ScoresTheSecondHalfOfEveryWindowAfterABos) {
  std::string text;
  for (int i = 0; i < 12; ++i) text += "the cat is on the mat and the dog is in. ";
  const std::vector<TokenId> tokens = model_->tokenizer().Encode(text);
  constexpr int64_t kContext = 17;
  double nats = 0;
  int64_t scored = 0;
  const int64_t windows = static_cast<int64_t>(tokens.size()) / kContext;
  ASSERT_GE(windows, 4);
  for (int64_t window = 0; window < windows; ++window) {
    const auto begin = tokens.begin() + window * kContext;
    std::vector<TokenId> prefix(begin, begin + kContext);
    prefix[0] = model_->tokenizer().bos();
    for (size_t i = kContext / 2 + 1; i < kContext; ++i) {
      nats += Nats(std::vector<TokenId>(prefix.begin(), prefix.begin() + static_cast<int>(i)),
                   {prefix[i]});
      ++scored;
    }
  }
  PerplexityOptions options;
  options.context = kContext;
  int64_t last_windows = 0;
  const absl::StatusOr<PerplexityResult> result =
      Perplexity(*transformer_, &adapter_, text, options,
                 [&last_windows](const PerplexityResult& r) { last_windows = r.windows; });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->windows, windows);
  EXPECT_EQ(last_windows, windows);
  EXPECT_EQ(result->scored_tokens, windows * (kContext - 1 - kContext / 2));
  EXPECT_EQ(result->scored_tokens, scored);
  EXPECT_NEAR(result->mean_nats, nats / static_cast<double>(scored), 1e-5);
  EXPECT_DOUBLE_EQ(result->perplexity, std::exp(result->mean_nats));

  options.max_windows = 3;
  EXPECT_EQ(Perplexity(*transformer_, nullptr, text, options, {})->windows, 3);
}

TEST_F(EvaluationTest, RefusesAShortTextAndAShortContext) {
  PerplexityOptions options;
  EXPECT_EQ(Perplexity(*transformer_, nullptr, "the cat", options, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  options.context = 3;
  EXPECT_EQ(Perplexity(*transformer_, nullptr, std::string(999, 'a'), options, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(EvaluationTest, SumsTheLossOfEachExampleOnce) {
  std::vector<Example> examples;
  LossSum expected;
  for (int i = 1; i <= 11; ++i) {
    Record record;
    record.spans = {{std::string(static_cast<size_t>(3 * i), 'a') + " cat", true}};
    const Example example = MakeExamples(record, model_->tokenizer(), 64).front();
    Batch batch;
    batch.batch_size = 1;
    batch.length = static_cast<int64_t>(example.tokens.size());
    batch.tokens = example.tokens;
    batch.targets = example.targets;
    expected += transformer_->Loss(batch, &adapter_);
    examples.push_back(example);
  }
  const LossSum loss = EvaluateLoss(*transformer_, &adapter_, examples);
  EXPECT_EQ(loss.num_tokens, expected.num_tokens);
  EXPECT_NEAR(loss.nats, expected.nats, 1e-4);
}

TEST_F(EvaluationTest, BuildsALabelTaskFromCompletions) {
  const std::vector<Record> records = {Answer("one", " to"), Answer("two", " and"),
                                       Answer("three", " to"), Record{}};
  const absl::StatusOr<LabelTask> task = MakeLabelTask(records, model_->tokenizer(), 10, 64);
  ASSERT_TRUE(task.ok()) << task.status();
  EXPECT_THAT(task->labels, ElementsAre(" and", " to"));
  ASSERT_EQ(task->questions.size(), 3u);
  EXPECT_EQ(task->questions[0].answer, 1);
  EXPECT_EQ(task->questions[1].answer, 0);
  EXPECT_EQ(task->questions[0].prompt.front(), model_->tokenizer().bos());
  EXPECT_EQ(task->label_tokens[0].back(), model_->tokenizer().eos());
}

TEST_F(EvaluationTest, NeedsTwoLabelsAndNotTooMany) {
  EXPECT_EQ(MakeLabelTask({Answer("a", "x")}, model_->tokenizer(), 10, 64).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(MakeLabelTask({Answer("a", "x"), Answer("a", "y"), Answer("a", "z")},
                          model_->tokenizer(), 2, 64)
                .status()
                .code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(EvaluationTest, AnswersWithTheLabelThatAFullSearchFinds) {
  const char* const labels[] = {" the", " then", " there", " and", " or", " on", " onto", " t"};
  std::vector<Record> records;
  for (int i = 0; i < 24; ++i) {
    records.push_back(Answer(std::string(static_cast<size_t>(i), 'q') + " is", labels[i % 8]));
  }
  const LabelTask task = MakeLabelTask(records, model_->tokenizer(), 10, 64).value();
  int64_t expected = 0;
  for (const LabelQuestion& question : task.questions) {
    int64_t best = 0;
    double best_nats = std::numeric_limits<double>::infinity();
    for (size_t label = 0; label < task.labels.size(); ++label) {
      const double nats = Nats(question.prompt, task.label_tokens[label]);
      if (nats < best_nats) {
        best_nats = nats;
        best = static_cast<int64_t>(label);
      }
    }
    // Asked for the best label, the answer is right; asked for another one, it is wrong.
    LabelQuestion asked = question;
    asked.answer = best;
    EXPECT_EQ(LabelAccuracy(*transformer_, &adapter_, task, {asked})->correct, 1);
    asked.answer = (best + 1) % 8;
    EXPECT_EQ(LabelAccuracy(*transformer_, &adapter_, task, {asked})->correct, 0);
    expected += question.answer == best ? 1 : 0;
  }
  const AccuracyResult result =
      LabelAccuracy(*transformer_, &adapter_, task, task.questions).value();
  EXPECT_EQ(result.correct, expected);
  EXPECT_EQ(result.total, 24);
}

TEST(PerplexityReferenceTest, AgreesWithLlamaCppOnStories260K) {
  FEDGE_SHARED_DATA_OR_SKIP(model_path, "models/stories260K-f32.gguf");
  FEDGE_SHARED_DATA_OR_SKIP(text_path, "text/stories-gen.txt");
  const std::string text = Env::Posix()->ReadFile(text_path).value();
  ThreadPool pool(2);
  Transformer transformer(BaseModel::Load(model_path, *Env::Posix()).value(), &pool);
  PerplexityOptions options;
  options.context = 256;
  options.max_windows = 64;
  const absl::StatusOr<PerplexityResult> result =
      Perplexity(transformer, nullptr, text, options, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->windows, 64);
  EXPECT_NEAR(result->perplexity, 2.9515, 0.0001);
}

}  // namespace
}  // namespace fedge
