#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "common/base/rng.h"
#include "common/training/dataset.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

constexpr TokenId kX = kNoToken;

// `length` tokens that all are `name`.
Example Named(TokenId name, int64_t length) {
  Example example;
  example.tokens.assign(static_cast<size_t>(length), name);
  example.targets = example.tokens;
  example.num_targets = length;
  return example;
}

std::vector<TokenId> Row(const std::vector<TokenId>& values, const Batch& batch, int64_t row) {
  const auto begin = values.begin() + row * batch.length;
  return {begin, begin + batch.length};
}

TEST(BatchSamplerTest, PacksExamplesIntoRows) {
  BatchSampler sampler({Named(1, 3), Named(2, 3), Named(3, 3)}, 2, 7, Rng(1));
  const Batch batch = sampler.Next();
  EXPECT_EQ(batch.batch_size, 2);
  EXPECT_EQ(batch.length, 6);  // no row uses the seventh column
  const std::vector<TokenId> first = Row(batch.tokens, batch, 0);
  EXPECT_NE(first[0], first[3]);
  // The third example ends the epoch and so the row.
  const std::vector<TokenId> targets = Row(batch.targets, batch, 1);
  EXPECT_THAT(std::vector<TokenId>(targets.begin() + 3, targets.end()), ElementsAre(kX, kX, kX));
  std::set<TokenId> seen = {first[0], first[3], batch.tokens[6]};
  EXPECT_THAT(seen, ElementsAre(1, 2, 3));
}

TEST(BatchSamplerTest, EveryExampleComesOnceAnEpoch) {
  std::vector<Example> examples;
  for (TokenId i = 0; i < 23; ++i) examples.push_back(Named(i + 1, 1 + i % 5));
  BatchSampler sampler(examples, 1, 8, Rng(5));
  std::map<TokenId, int> times;
  std::vector<TokenId> epoch;
  std::vector<std::vector<TokenId>> epochs;
  while (epochs.size() < 3) {
    const Batch batch = sampler.Next();
    for (int64_t i = 0; i < batch.length; ++i) {
      const TokenId target = batch.targets[static_cast<size_t>(i)];
      if (target != kX && (epoch.empty() || epoch.back() != target)) epoch.push_back(target);
    }
    if (epoch.size() >= 23) {
      epochs.push_back(epoch);
      epoch.clear();
    }
  }
  for (const std::vector<TokenId>& order : epochs) {
    EXPECT_THAT(order, SizeIs(23));
    EXPECT_EQ(std::set<TokenId>(order.begin(), order.end()).size(), 23u);
  }
  EXPECT_NE(epochs[0], epochs[1]);
}

TEST(BatchSamplerTest, IsAFunctionOfTheSeed) {
  std::vector<Example> examples;
  for (TokenId i = 0; i < 40; ++i) examples.push_back(Named(i, 4));
  BatchSampler a(examples, 2, 16, Rng(9));
  BatchSampler b(examples, 2, 16, Rng(9));
  BatchSampler c(examples, 2, 16, Rng(10));
  bool differs = false;
  for (int i = 0; i < 30; ++i) {
    const Batch x = a.Next();
    const Batch y = b.Next();
    EXPECT_EQ(x.tokens, y.tokens);
    EXPECT_EQ(x.targets, y.targets);
    differs = differs || x.tokens != c.Next().tokens;
  }
  EXPECT_TRUE(differs);
}

TEST(BatchSamplerTest, WeighsTheTokensOfCompletions) {
  Example completion = Named(2, 3);
  completion.is_completion = true;
  BatchSampler sampler({Named(1, 3), completion}, 1, 6, Rng(1), 20);
  const Batch batch = sampler.Next();
  ASSERT_EQ(batch.weights.size(), batch.tokens.size());
  for (size_t i = 0; i < batch.tokens.size(); ++i) {
    const size_t of_example = i / 3 * 3;
    EXPECT_EQ(batch.weights[i], batch.tokens[of_example] == completion.tokens[0] ? 20.0f : 1.0f);
  }
}

TEST(BatchSamplerTest, CutsWhatIsLongerThanARow) {
  BatchSampler sampler({Named(4, 9)}, 2, 5, Rng(1));
  const Batch batch = sampler.Next();
  EXPECT_EQ(batch.length, 5);
  EXPECT_THAT(batch.targets, ElementsAre(4, 4, 4, 4, 4, 4, 4, 4, 4, 4));
}

TEST(BatchSamplerTest, LeavesOutExamplesWithoutTargets) {
  Example untrained = Named(1, 3);
  untrained.targets.assign(3, kX);
  untrained.num_targets = 0;
  EXPECT_TRUE(BatchSampler({untrained}, 1, 4, Rng(1)).empty());
  BatchSampler sampler({untrained, Named(2, 2)}, 1, 4, Rng(1));
  EXPECT_FALSE(sampler.empty());
  EXPECT_THAT(sampler.Next().tokens, ElementsAre(2, 2));
}

TEST(EvaluationBatchesTest, HoldEveryExampleOnceInOrder) {
  const std::vector<Example> examples = {Named(1, 2), Named(2, 3), Named(3, 1)};
  const std::vector<Batch> batches = EvaluationBatches(examples, 2);
  ASSERT_THAT(batches, SizeIs(2));
  EXPECT_EQ(batches[0].batch_size, 2);
  EXPECT_EQ(batches[0].length, 3);
  EXPECT_THAT(batches[0].tokens, ElementsAre(1, 1, 0, 2, 2, 2));
  EXPECT_THAT(batches[0].targets, ElementsAre(1, 1, kX, 2, 2, 2));
  EXPECT_EQ(batches[1].batch_size, 1);
  EXPECT_THAT(batches[1].targets, ElementsAre(3));
  EXPECT_THAT(EvaluationBatches({}, 4), SizeIs(0));
}

}  // namespace
}  // namespace fedge
