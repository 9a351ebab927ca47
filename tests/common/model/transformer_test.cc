#include "common/model/transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/model/layer.h"
#include "tests/testing/tiny_transformer.h"

namespace fedge {
namespace {

using testing::NatsOf;
using testing::RandomBatch;
using testing::Tiny;
using testing::TinyModelOptions;

struct GradientCase {
  const char* name;
  DType dtype;
  bool tied;
  int64_t channels;
  std::vector<std::string> modules;
};

class TransformerGradientTest : public ::testing::TestWithParam<GradientCase> {};

TEST_P(TransformerGradientTest, AdapterGradientMatchesComplexStep) {
  const GradientCase& c = GetParam();
  TinyModelOptions options;
  options.dtype = c.dtype;
  options.tied_output = c.tied;
  options.embedding_length = c.channels;
  options.feed_forward_length = 32;
  options.head_dim = 8;  // q is wider than the embedding when that is 16
  options.rope_frequency_factors = true;
  const Tiny tiny(options);
  testing::ExpectAdapterGradient(c.name, tiny, tiny.Adapter(c.modules),
                                 RandomBatch(2, 5, tiny.model()->config().vocab_size));
}

INSTANTIATE_TEST_SUITE_P(
    Models, TransformerGradientTest,
    ::testing::Values(GradientCase{"F32Tied", DType::kF32, true, 16, {"all"}},
                      GradientCase{"F32Separate", DType::kF32, false, 16, {"all", "output"}},
                      GradientCase{"F32Subset", DType::kF32, true, 16, {"k", "down"}},
                      GradientCase{"Q8_0", DType::kQ8_0, true, 32, {"all"}},
                      GradientCase{"Q4_0", DType::kQ4_0, false, 32, {"all"}}),
    [](const auto& test) { return std::string(test.param.name); });

class WeightGradientTest : public ::testing::TestWithParam<bool> {};

TEST_P(WeightGradientTest, MatchesComplexStep) {
  TinyModelOptions options;
  options.tied_output = GetParam();
  options.embedding_length = 16;
  options.feed_forward_length = 24;
  const Tiny tiny(options);
  testing::ExpectWeightGradients(GetParam() ? "all weights, tied" : "all weights, separate", tiny,
                                 RandomBatch(2, 5, tiny.model()->config().vocab_size));
}

INSTANTIATE_TEST_SUITE_P(Heads, WeightGradientTest, ::testing::Bool(), [](const auto& test) {
  return std::string(test.param ? "Tied" : "Separate");
});

class TransformerTest : public ::testing::Test {
 protected:
  TransformerTest() : tiny_(Options()), adapter_(tiny_.Adapter({"all"})) {}

  static TinyModelOptions Options() {
    TinyModelOptions options;
    options.dtype = DType::kQ8_0;
    return options;
  }
  int64_t vocabulary() const { return tiny_.model()->config().vocab_size; }

  Tiny tiny_;
  LoraAdapter adapter_;
  ThreadPool pool_{1};
};

TEST_F(TransformerTest, SameBytesForAnyNumberOfThreads) {
  const Batch batch = RandomBatch(3, 40, vocabulary());
  std::vector<std::vector<float>> gradients;
  std::vector<double> losses;
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    Transformer transformer(tiny_.model(), &pool);
    gradients.emplace_back(adapter_.values().size(), 0.0f);
    losses.push_back(
        transformer.LossAndGradient(batch, adapter_, 0.1f, absl::MakeSpan(gradients.back())).nats);
  }
  EXPECT_EQ(gradients[0], gradients[1]);
  EXPECT_EQ(gradients[0], gradients[2]);
  EXPECT_EQ(losses[0], losses[1]);
  EXPECT_EQ(losses[0], losses[2]);
}

TEST_F(TransformerTest, SameBytesHoweverManyLayersAreComputedAgain) {
  TinyModelOptions options;
  options.block_count = 4;
  const Tiny deep(options);
  const LoraAdapter adapter = deep.Adapter({"all"});
  const Batch batch = RandomBatch(2, 20, vocabulary());
  const int64_t layer_bytes = LayerActivations::Bytes(deep.model()->config(), 2 * 20, 3);
  std::vector<float> all(adapter.values().size(), 0);
  Transformer keeps_all(deep.model(), &pool_);
  const double loss = keeps_all.LossAndGradient(batch, adapter, 1, absl::MakeSpan(all)).nats;
  for (const int64_t budget : {int64_t{0}, layer_bytes, 2 * layer_bytes, 3 * layer_bytes}) {
    std::vector<float> gradient(adapter.values().size(), 0);
    Transformer transformer(deep.model(), &pool_, {budget, false});
    EXPECT_EQ(transformer.LossAndGradient(batch, adapter, 1, absl::MakeSpan(gradient)).nats, loss);
    EXPECT_EQ(gradient, all) << budget;
  }
}

TEST_F(TransformerTest, SameWeightGradientsForAnyNumberOfThreads) {
  const Tiny dense((TinyModelOptions()));
  const Batch batch = RandomBatch(3, 40, vocabulary());
  WeightGradients one, three;
  ThreadPool pool(3);
  Transformer(dense.model(), &pool_).LossAndWeightGradients(batch, 0.1f, one);
  Transformer(dense.model(), &pool).LossAndWeightGradients(batch, 0.1f, three);
  EXPECT_EQ(one, three);
}

TEST_F(TransformerTest, LossEqualsTheLossOfLossAndGradient) {
  const Batch batch = RandomBatch(2, 33, vocabulary());
  Transformer transformer(tiny_.model(), &pool_);
  std::vector<float> gradient(adapter_.values().size(), 0);
  std::vector<float> nats(batch.tokens.size(), -1);
  const LossSum loss = transformer.Loss(batch, &adapter_, absl::MakeSpan(nats));
  const LossSum same = transformer.LossAndGradient(batch, adapter_, 1, absl::MakeSpan(gradient));
  EXPECT_EQ(loss.nats, same.nats);
  EXPECT_EQ(loss.num_tokens, same.num_tokens);
  EXPECT_NEAR(std::accumulate(nats.begin(), nats.end(), 0.0), loss.nats, 1e-4);
  for (size_t i = 0; i < nats.size(); ++i) {
    EXPECT_EQ(nats[i] == 0, batch.targets[i] == kNoToken) << i;
  }
}

TEST_F(TransformerTest, GradientIsAddedAndScaled) {
  const Batch batch = RandomBatch(1, 9, vocabulary());
  Transformer transformer(tiny_.model(), &pool_);
  std::vector<float> once(adapter_.values().size(), 0), twice = once;
  transformer.LossAndGradient(batch, adapter_, 1, absl::MakeSpan(once));
  transformer.LossAndGradient(batch, adapter_, 0.25f, absl::MakeSpan(twice));
  transformer.LossAndGradient(batch, adapter_, 0.25f, absl::MakeSpan(twice));
  for (size_t i = 0; i < once.size(); ++i) {
    EXPECT_NEAR(twice[i], 0.5 * double{once[i]}, 1e-5);
  }
}

TEST_F(TransformerTest, WeightsOfTargetsScaleTheirGradients) {
  Batch batch = RandomBatch(1, 9, vocabulary());
  Transformer transformer(tiny_.model(), &pool_);
  const auto gradient_of = [&](std::vector<float> weights) {
    batch.weights = std::move(weights);
    std::vector<float> gradient(adapter_.values().size(), 0);
    transformer.LossAndGradient(batch, adapter_, 1, absl::MakeSpan(gradient));
    return gradient;
  };
  std::vector<float> first(9, 0.0f), rest(9, 1.0f), mixed(9, 1.0f);
  for (size_t i = 0; i < 4; ++i) {
    first[i] = 1;
    rest[i] = 0;
    mixed[i] = 20;
  }
  const std::vector<float> a = gradient_of(first), b = gradient_of(rest), c = gradient_of(mixed);
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_NEAR(c[i], 20 * double{a[i]} + double{b[i]}, 1e-4 * (1 + std::abs(c[i])));
  }
}

TEST_F(TransformerTest, RowsWithoutTargetsAddNothing) {
  const Batch batch = RandomBatch(2, 12, vocabulary());
  Batch padded;  // each row 7 longer, and one more row; none of it has targets
  padded.batch_size = 3;
  padded.length = 19;
  padded.tokens.assign(3 * 19, 4);
  padded.targets.assign(3 * 19, kNoToken);
  for (size_t row = 0; row < 2; ++row) {
    for (size_t i = 0; i < 12; ++i) {
      padded.tokens[row * 19 + i] = batch.tokens[row * 12 + i];
      padded.targets[row * 19 + i] = batch.targets[row * 12 + i];
    }
  }
  Transformer transformer(tiny_.model(), &pool_);
  std::vector<float> expected(adapter_.values().size(), 0), gradient = expected;
  const LossSum loss = transformer.LossAndGradient(batch, adapter_, 1, absl::MakeSpan(expected));
  const LossSum same = transformer.LossAndGradient(padded, adapter_, 1, absl::MakeSpan(gradient));
  EXPECT_EQ(loss.num_tokens, same.num_tokens);
  EXPECT_NEAR(loss.nats, same.nats, 1e-5 * loss.nats);
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(gradient[i], expected[i], 1e-4);

  std::fill(padded.targets.begin(), padded.targets.end(), kNoToken);
  std::fill(gradient.begin(), gradient.end(), 0.0f);
  EXPECT_EQ(transformer.LossAndGradient(padded, adapter_, 1, absl::MakeSpan(gradient)).nats, 0);
  EXPECT_THAT(gradient, ::testing::Each(0.0f));
}

TEST_F(TransformerTest, AdapterWithZeroBIsTheBase) {
  const Batch batch = RandomBatch(1, 20, vocabulary());
  LoraAdapter fresh(adapter_.spec());
  fresh.InitializeForTraining(3);
  Transformer transformer(tiny_.model(), &pool_);
  EXPECT_EQ(transformer.Loss(batch, &fresh).nats, transformer.Loss(batch, nullptr).nats);
  EXPECT_NE(transformer.Loss(batch, &adapter_).nats, transformer.Loss(batch, nullptr).nats);
}

TEST_F(TransformerTest, DecodeAgreesWithTheBatchAndWithItself) {
  const Batch batch = RandomBatch(1, 70, vocabulary());
  Transformer transformer(tiny_.model(), &pool_);
  std::vector<float> nats(batch.tokens.size());
  transformer.Loss(batch, &adapter_, absl::MakeSpan(nats));
  const KvCacheOptions exact = {KvType::kF32};
  KvCache stepwise(tiny_.model()->config(), 70, exact), whole(tiny_.model()->config(), 70, exact);
  std::vector<float> last;
  for (size_t i = 0; i < batch.tokens.size(); ++i) {
    const auto logits = transformer.Decode({batch.tokens[i]}, &adapter_, stepwise);
    ASSERT_TRUE(logits.ok()) << logits.status();
    last = *logits;
    if (batch.targets[i] == kNoToken) continue;
    EXPECT_NEAR(NatsOf(last, batch.targets[i]), nats[i], 2e-4) << i;
  }
  const absl::Span<const TokenId> tokens = batch.tokens;
  for (const auto& piece : {tokens.subspan(0, 37), tokens.subspan(37, 2), tokens.subspan(39)}) {
    const auto logits = transformer.Decode(piece, &adapter_, whole);
    ASSERT_TRUE(logits.ok()) << logits.status();
    if (whole.size() < 70) continue;
    for (size_t i = 0; i < last.size(); ++i) EXPECT_NEAR((*logits)[i], last[i], 2e-4);
  }
  ASSERT_TRUE(whole.Truncate(69).ok());
  const auto again = transformer.Decode({batch.tokens.back()}, &adapter_, whole);
  ASSERT_TRUE(again.ok());
  for (size_t i = 0; i < last.size(); ++i) EXPECT_NEAR((*again)[i], last[i], 2e-4);
}

TEST_F(TransformerTest, DecodeRefusesWhatDoesNotFitAndKeepsTheCache) {
  Transformer transformer(tiny_.model(), &pool_);
  KvCache cache(tiny_.model()->config(), 4);
  ASSERT_TRUE(transformer.Decode({1, 2, 3}, nullptr, cache).ok());
  EXPECT_EQ(transformer.Decode({4, 5}, nullptr, cache).status().code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_EQ(transformer.Decode({}, nullptr, cache).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cache.size(), 3);
  EXPECT_TRUE(transformer.Decode({4}, nullptr, cache).ok());
}

using TransformerDeathTest = TransformerTest;

TEST_F(TransformerDeathTest, AdaptersOfAPassHaveOneLayoutAndAllSequences) {
  const LoraAdapter other = tiny_.Adapter({"q"});
  std::vector<float> first(adapter_.values().size()), second(other.values().size());
  Transformer transformer(tiny_.model(), &pool_);
  const Batch batch = RandomBatch(2, 5, vocabulary());
  const AdapterPass one = {&adapter_, 1, 1, absl::MakeSpan(first), {}};
  const AdapterPass two = {&other, 1, 1, absl::MakeSpan(second), {}};
  EXPECT_DEATH(transformer.LossAndGradients(batch, {one, two}), "different layouts");
  EXPECT_DEATH(transformer.LossAndGradients(batch, {one}), "1 adapters with 1 sequences of 2");
}

TEST_F(TransformerDeathTest, TokenOutsideTheVocabularyIsACheck) {
  Batch batch = RandomBatch(1, 3, vocabulary());
  batch.tokens[1] = static_cast<TokenId>(vocabulary());
  Transformer transformer(tiny_.model(), &pool_);
  EXPECT_DEATH(transformer.Loss(batch, nullptr), "token 320 of 320");
}

}  // namespace
}  // namespace fedge
