#include "common/model/dropout.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "common/base/rng.h"
#include "common/model/linear.h"
#include "common/model/transformer.h"
#include "tests/testing/tiny_transformer.h"

namespace fedge {
namespace {

constexpr int64_t kRows = 37, kIn = 24, kOut = 20, kRank = 3;

std::vector<float> RandomValues(int64_t count, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(rng.Normal());
  return values;
}

Dropout Half() {
  Dropout dropout;
  dropout.rate = 0.5f;
  dropout.seed = 4;
  dropout.sequence_length = 10;
  return dropout;
}

Dropout Other() {
  Dropout dropout = Half();
  dropout.rate = 0.25f;
  dropout.seed = 8;
  dropout.first_sequence = 3;
  return dropout;
}

std::vector<float> Dropped(const Dropout& dropout, uint64_t stream, const std::vector<float>& x) {
  ThreadPool pool(1);
  std::vector<float> y(x.size());
  const auto rows = static_cast<int64_t>(x.size()) / kIn;
  DropValues(dropout, stream, x.data(), rows, kIn, y.data(), pool);
  return y;
}

TEST(DropoutTest, DropsThePartAndKeepsTheMean) {
  Dropout dropout = Half();
  dropout.rate = 0.25f;
  const std::vector<float> y = Dropped(dropout, 1, std::vector<float>(kIn * 4000, 3.0f));
  double zeros = 0, sum = 0;
  for (const float value : y) {
    zeros += value == 0 ? 1 : 0;
    sum += double{value};
    EXPECT_TRUE(value == 0 || value == 4.0f);
  }
  const double count = static_cast<double>(y.size());
  EXPECT_NEAR(zeros / count, 0.25, 5 * std::sqrt(0.25 * 0.75 / count));
  EXPECT_NEAR(sum / count, 3, 0.05);
}

TEST(DropoutTest, StreamsSeedsAndPlacesDiffer) {
  const std::vector<float> ones(kRows * kIn, 1.0f);
  const std::vector<float> first = Dropped(Half(), 1, ones);
  EXPECT_EQ(first, Dropped(Half(), 1, ones));
  EXPECT_NE(first, Dropped(Half(), 2, ones));
  Dropout other = Half();
  other.seed = 5;
  EXPECT_NE(first, Dropped(other, 1, ones));
  for (int64_t row = 1; row < kRows; ++row) {
    EXPECT_NE(std::vector<float>(first.begin(), first.begin() + kIn),
              std::vector<float>(first.begin() + row * kIn, first.begin() + (row + 1) * kIn));
  }
}

TEST(DropoutTest, ALaterPassDropsWhatTheWholeBatchWould) {
  const std::vector<float> whole = Dropped(Half(), 1, std::vector<float>(40 * kIn, 1.0f));
  Dropout later = Half();
  later.first_sequence = 2;  // sequences of 10 rows
  const std::vector<float> part = Dropped(later, 1, std::vector<float>(20 * kIn, 1.0f));
  EXPECT_EQ(part, std::vector<float>(whole.begin() + 20 * kIn, whole.end()));
  // Trimmed to 7 rows a sequence, each still has the first 7 of its mask.
  later.sequence_length = 7;
  const std::vector<float> trimmed = Dropped(later, 1, std::vector<float>(14 * kIn, 1.0f));
  EXPECT_EQ(std::vector<float>(trimmed.begin() + 7 * kIn, trimmed.end()),
            std::vector<float>(whole.begin() + 30 * kIn, whole.begin() + 37 * kIn));
}

// A linear of two branches with its buffers.
struct Rig {
  Rig()
      : weight(RandomValues(kOut * kIn, 1)),
        factors(RandomValues(2 * kRank * (kIn + kOut), 2)),
        pool(2) {
    linear.weight = DenseView(weight.data(), kOut, kIn);
    linear.rank = kRank;
    linear.scale = 0.7f;
    linear.stream = 9;
    for (size_t i = 0; i < 2; ++i) {
      const float* const a = factors.data() + i * kRank * (kIn + kOut);
      linear.lora.push_back({a, a + kRank * kIn});
    }
  }
  LinearRows rows() const { return {kRows, ends}; }
  BranchDropout dropout() { return {branches, &dropped, &gradient, &du}; }
  // What the branches read of x.
  std::vector<float> Dropped(const std::vector<float>& x) {
    std::vector<float> y(x.size());
    DropValues(branches[0], 9, x.data(), ends[0], kIn, y.data(), pool);
    DropValues(branches[1], 9, x.data() + ends[0] * kIn, kRows - ends[0], kIn,
               y.data() + ends[0] * kIn, pool);
    return y;
  }

  std::vector<float> weight, factors;
  std::vector<int64_t> ends = {15, kRows};
  std::vector<Dropout> branches = {Half(), Other()};
  Linear linear;
  ThreadPool pool;
  FloatBuffer dropped, gradient, du;
};

// The output is linear in what the branch reads: W x without a branch, and a branch of drop(x)
// without W, add up to it.
TEST(DropoutTest, BranchesReadTheDroppedInputAndTheWeightTheWhole) {
  Rig rig;
  const std::vector<float> x = RandomValues(kRows * kIn, 3);
  const std::vector<float> dropped = rig.Dropped(x);
  const BranchDropout dropout = rig.dropout();
  std::vector<float> y(kRows * kOut), u(kRows * kRank), base(kRows * kOut), branch(kRows * kOut);
  LinearForward({{&rig.linear, u.data(), y.data()}}, x.data(), rig.rows(), rig.pool, &dropout);
  Linear bare = rig.linear;
  bare.rank = 0;
  LinearForward({{&bare, nullptr, base.data()}}, x.data(), rig.rows(), rig.pool);
  const std::vector<float> zero(kOut * kIn);
  Linear only = rig.linear;
  only.weight = DenseView(zero.data(), kOut, kIn);
  std::vector<float> expected_u(u.size());
  LinearForward({{&only, expected_u.data(), branch.data()}}, dropped.data(), rig.rows(), rig.pool);
  for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], base[i] + branch[i], 1e-4);
  for (size_t i = 0; i < u.size(); ++i) EXPECT_NEAR(u[i], expected_u[i], 1e-4);
}

TEST(DropoutTest, GradientsAreThoseOfTheDroppedInput) {
  Rig rig;
  const std::vector<float> x = RandomValues(kRows * kIn, 3);
  const std::vector<float> dy = RandomValues(kRows * kOut, 4);
  const std::vector<float> dropped = rig.Dropped(x);
  const BranchDropout dropout = rig.dropout();
  std::vector<float> y(kRows * kOut), u(kRows * kRank);
  LinearForward({{&rig.linear, u.data(), y.data()}}, x.data(), rig.rows(), rig.pool, &dropout);
  const auto backward = [&](const Linear& linear, const std::vector<float>& input,
                            const BranchDropout* with, std::vector<float>& d_factors) {
    LinearGradient gradient;
    for (size_t i = 0; i < 2 && linear.rank > 0; ++i) {
      float* const a = d_factors.data() + i * kRank * (kIn + kOut);
      gradient.lora.push_back({a, a + kRank * kIn});
    }
    std::vector<float> dx(kRows * kIn);
    LinearBackward({{&linear, &gradient, u.data(), dy.data()}}, input.data(), rig.rows(),
                   Accumulate::kNo, dx.data(), rig.pool, with);
    return dx;
  };
  std::vector<float> d_factors(rig.factors.size()), expected(rig.factors.size()), none;
  const std::vector<float> dx = backward(rig.linear, x, &dropout, d_factors);
  Linear bare = rig.linear;
  bare.rank = 0;
  bare.lora.clear();
  std::vector<float> expected_dx = backward(bare, x, nullptr, none);
  const std::vector<float> zero(kOut * kIn);
  Linear only = rig.linear;
  only.weight = DenseView(zero.data(), kOut, kIn);
  const std::vector<float> branch = backward(only, dropped, nullptr, expected);
  const int64_t second = rig.ends[0];
  AddDroppedGradient(Half(), 9, branch.data(), second, kIn, expected_dx.data(), rig.pool);
  AddDroppedGradient(Other(), 9, branch.data() + second * kIn, kRows - second, kIn,
                     expected_dx.data() + second * kIn, rig.pool);
  for (size_t i = 0; i < dx.size(); ++i) EXPECT_NEAR(dx[i], expected_dx[i], 1e-4);
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(d_factors[i], expected[i], 1e-4);
}

// Along the gradient the loss changes by its squared length: forward and backward drop the same.
TEST(DropoutTest, TheGradientIsThatOfTheLossWithDropout) {
  const testing::Tiny tiny((testing::TinyModelOptions()));
  LoraAdapter adapter = tiny.Adapter({"all"});
  const Batch batch = testing::RandomBatch(3, 20, tiny.model()->config().vocab_size);
  ThreadPool pool(2);
  Transformer transformer(tiny.model(), &pool, {0, false});
  std::vector<float> gradient(adapter.values().size()), unused(gradient.size());
  const double without =
      transformer.LossAndGradient(batch, adapter, 1, absl::MakeSpan(unused)).nats;
  transformer.LossAndGradient(batch, adapter, 1, absl::MakeSpan(gradient), Half());
  double squared = 0;
  for (const float g : gradient) squared += double{g} * double{g};
  const double step = 2e-3 / std::sqrt(squared);
  const std::vector<float> point(adapter.values().begin(), adapter.values().end());
  double loss[2];
  for (const int side : {0, 1}) {
    for (size_t i = 0; i < point.size(); ++i) {
      adapter.values()[i] =
          static_cast<float>(double{point[i]} + (side == 0 ? -step : step) * double{gradient[i]});
    }
    loss[side] =
        transformer.LossAndGradient(batch, adapter, 1, absl::MakeSpan(unused), Half()).nats;
  }
  EXPECT_NEAR((loss[1] - loss[0]) / (2 * step), squared, 2e-3 * squared);
  EXPECT_GT(std::abs((loss[0] + loss[1]) / 2 - without), 1e-3);  // something was dropped
}

}  // namespace
}  // namespace fedge
