#include "common/model/ops.h"
#include "common/model/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "common/base/rng.h"
#include "tests/testing/scalar_ops.h"

namespace fedge {
namespace {

using testing::Complex;
using testing::Values;

std::vector<float> RandomValues(uint64_t seed, size_t count, double deviation = 1) {
  Rng rng(seed);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(deviation * rng.Normal());
  return values;
}

std::vector<double> Joined(const std::vector<std::vector<float>>& parts) {
  std::vector<double> all;
  for (const std::vector<float>& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

// The `index`-th of consecutive parts of these sizes.
Values<Complex> Part(const Values<Complex>& all, const std::vector<size_t>& sizes, size_t index) {
  const size_t begin =
      std::accumulate(sizes.begin(), sizes.begin() + static_cast<long>(index), size_t{0});
  return Values<Complex>(all.begin() + static_cast<long>(begin),
                         all.begin() + static_cast<long>(begin + sizes[index]));
}

Complex Weighted(const Values<Complex>& y, const std::vector<float>& dy) {
  Complex sum = 0;
  for (size_t i = 0; i < y.size(); ++i) sum += y[i] * static_cast<double>(dy[i]);
  return sum;
}

// Compares all gradients with the complex step of `function` (of all inputs joined), each part
// relative to its largest value.
template <typename Function>
void ExpectGradients(const char* name, const Function& function,
                     const std::vector<std::vector<float>>& inputs,
                     const std::vector<std::vector<float>>& gradients, double bound = 5e-6) {
  std::vector<size_t> coordinates(Joined(inputs).size());
  std::iota(coordinates.begin(), coordinates.end(), size_t{0});
  const std::vector<double> expected =
      testing::ComplexStepGradient(function, Joined(inputs), coordinates);
  double worst = 0;
  size_t at = 0;
  for (const std::vector<float>& part : gradients) {
    double largest = 0, error = 0;
    for (const float value : part) {
      largest = std::max(largest, std::abs(expected[at]));
      error = std::max(error, std::abs(expected[at] - static_cast<double>(value)));
      ++at;
    }
    EXPECT_GT(largest, 0) << name;
    worst = std::max(worst, error / largest);
  }
  ASSERT_EQ(at, expected.size()) << name;
  std::printf("gradient of %-14s max relative error %.2g (%zu values)\n", name, worst, at);
  EXPECT_LT(worst, bound) << name;
}

class OpsTest : public ::testing::Test {
 protected:
  ThreadPool pool_{2};
  FloatBuffer scratch_;
};

TEST_F(OpsTest, RmsNormGradientMatchesComplexStep) {
  const int64_t t = 5, n = 37;
  const std::vector<float> x = RandomValues(1, t * n), w = RandomValues(2, n);
  const std::vector<float> dy = RandomValues(3, t * n);
  std::vector<float> y(t * n), inv(t), dx(t * n, 0), dw(n, 0);
  RmsNormForward(x.data(), w.data(), t, n, 1e-5f, y.data(), inv.data(), pool_);
  RmsNormBackward(x.data(), w.data(), inv.data(), dy.data(), t, n, dx.data(), dw.data(), pool_);
  const auto function = [&](const Values<Complex>& all) {
    return Weighted(
        testing::ScalarRmsNorm(Part(all, {t * n, n}, 0), Part(all, {t * n, n}, 1), 1e-5), dy);
  };
  ExpectGradients("RMSNorm", function, {x, w}, {dx, dw});
}

TEST_F(OpsTest, RopeGradientMatchesComplexStep) {
  const int64_t batch = 2, length = 5, heads = 3, head_dim = 22;
  const std::vector<float> frequencies = {1, 0.5f, 0.3f, 0.2f, 0.1f, 0.05f, 0.02f, 0.01f, 0.005f};
  const size_t size = batch * length * heads * head_dim;  // 18 of 22 values of a head are rotated
  const std::vector<float> x = RandomValues(1, size), dy = RandomValues(2, size);
  RopeTable table(frequencies);
  table.EnsurePositions(length);
  const RopeShape shape = {batch, length, 0, heads, head_dim};
  std::vector<float> dx = dy, y = x;
  RopeForward(table, shape, y.data(), pool_);
  RopeBackward(table, shape, dx.data(), pool_);
  const std::vector<double> theta(frequencies.begin(), frequencies.end());
  const auto function = [&](const Values<Complex>& all) {
    return Weighted(testing::ScalarRope(all, theta, length, heads, head_dim), dy);
  };
  ExpectGradients("RoPE", function, {x}, {dx});
  const Values<double> expected =
      testing::ScalarRope(Values<double>(x.begin(), x.end()), theta, length, heads, head_dim);
  for (size_t i = 0; i < size; ++i) EXPECT_NEAR(y[i], expected[i], 1e-5);
}

TEST_F(OpsTest, AttentionGradientMatchesComplexStep) {
  // More than one block of queries, a group of two query heads for each key head.
  const int64_t batch = 2, length = 35, heads = 4, kv_heads = 2, head_dim = 4;
  AttentionShape shape = {batch, length, 0, heads, kv_heads, head_dim, 0.5f};
  const size_t q_size = batch * length * heads * head_dim;
  const size_t kv_size = batch * length * kv_heads * head_dim;
  const std::vector<float> q = RandomValues(1, q_size, 1.5), k = RandomValues(2, kv_size, 1.5);
  const std::vector<float> v = RandomValues(3, kv_size), dy = RandomValues(4, q_size);
  std::vector<float> y(q_size), lse(batch * length * heads);
  std::vector<float> dq(q_size), dk(kv_size), dv(kv_size);
  AttentionForward(shape, q.data(), k.data(), v.data(), y.data(), lse.data(), scratch_, pool_);
  AttentionBackward(shape, {q.data(), k.data(), v.data(), y.data(), lse.data()}, dy.data(),
                    dq.data(), dk.data(), dv.data(), scratch_, pool_);
  const std::vector<size_t> sizes = {q_size, kv_size, kv_size};
  const auto function = [&](const Values<Complex>& all) {
    return Weighted(testing::ScalarAttention<Complex>({batch, length, heads, kv_heads, head_dim},
                                                      Part(all, sizes, 0), Part(all, sizes, 1),
                                                      Part(all, sizes, 2)),
                    dy);
  };
  ExpectGradients("attention", function, {q, k, v}, {dq, dk, dv});
}

TEST_F(OpsTest, AttentionForwardMatchesScalar) {
  for (const int64_t length : {1, 2, 3, 4, 31, 32, 33, 100}) {
    const size_t n = static_cast<size_t>(length);
    const size_t q_size = 2 * n * 6 * 24, kv_size = 2 * n * 3 * 24;
    const std::vector<float> q = RandomValues(1, q_size), k = RandomValues(2, kv_size);
    const std::vector<float> v = RandomValues(3, kv_size);
    std::vector<float> y(q_size), lse(2 * n * 6);
    AttentionForward({2, length, 0, 6, 3, 24, 1.0f / std::sqrt(24.0f)}, q.data(), k.data(),
                     v.data(), y.data(), lse.data(), scratch_, pool_);
    const Values<double> expected = testing::ScalarAttention<double>(
        {2, n, 6, 3, 24}, {q.begin(), q.end()}, {k.begin(), k.end()}, {v.begin(), v.end()});
    for (size_t i = 0; i < q_size; ++i) ASSERT_NEAR(y[i], expected[i], 2e-6) << length;
  }
}

TEST_F(OpsTest, SwiGluGradientMatchesComplexStep) {
  const int64_t t = 3, n = 41;
  const std::vector<float> gate = RandomValues(1, t * n, 3), up = RandomValues(2, t * n);
  const std::vector<float> dy = RandomValues(3, t * n);
  std::vector<float> dgate = gate, dup = dy;
  SwiGluBackward(dgate.data(), up.data(), t, n, dup.data(), pool_);
  const auto function = [&](const Values<Complex>& all) {
    return Weighted(
        testing::ScalarSwiGlu(Part(all, {t * n, t * n}, 0), Part(all, {t * n, t * n}, 1)), dy);
  };
  ExpectGradients("SwiGLU", function, {gate, up}, {dgate, dup});
}

TEST_F(OpsTest, LinearWithLoraGradientMatchesComplexStep) {
  const size_t t = 7, in = 19, out = 23, rank = 5;
  const std::vector<float> x = RandomValues(1, t * in), w = RandomValues(2, out * in);
  const std::vector<float> a = RandomValues(3, rank * in), bt = RandomValues(4, rank * out);
  const std::vector<float> dy = RandomValues(5, t * out);
  Linear layer;
  layer.weight = DenseView(w.data(), out, in);
  layer.lora = {{a.data(), bt.data()}};
  layer.rank = rank;
  layer.scale = 1.5f;
  std::vector<float> u(t * rank), y(t * out), du(t * rank);
  std::vector<float> dx(t * in), dw(out * in, 0), da(rank * in, 0), dbt(rank * out, 0);
  const std::vector<int64_t> ends = {static_cast<int64_t>(t)};
  const LinearRows rows = {static_cast<int64_t>(t), ends};
  LinearGradient gradient;
  gradient.weight = dw.data();
  gradient.lora = {{da.data(), dbt.data()}};
  LinearForward({{&layer, u.data(), y.data()}}, x.data(), rows, pool_);
  LinearBackward({{&layer, &gradient, u.data(), dy.data()}}, x.data(), rows, du.data(),
                 Accumulate::kNo, dx.data(), pool_);
  const std::vector<size_t> sizes = {t * in, out * in, rank * in, rank * out};
  const auto function = [&](const Values<Complex>& all) {
    Values<Complex> result =
        testing::ScalarLinear(Part(all, sizes, 0), Part(all, sizes, 1), in, out);
    testing::ScalarAddLora(Part(all, sizes, 0), Part(all, sizes, 2), Part(all, sizes, 3), in, out,
                           1.5, result);
    return Weighted(result, dy);
  };
  ExpectGradients("linear + LoRA", function, {x, w, a, bt}, {dx, dw, da, dbt});
}

TEST_F(OpsTest, CrossEntropyGradientMatchesComplexStep) {
  const size_t t = 4, vocabulary = 67;
  const std::vector<float> logits = RandomValues(1, t * vocabulary, 3);
  const std::vector<TokenId> targets = {0, 66, 5, 5};
  std::vector<double> nats(t), plain(t);
  const std::vector<float> ones(t, 1.0f);
  std::vector<float> gradient = logits;
  CrossEntropyForward(logits.data(), targets.data(), t, vocabulary, plain.data(), pool_);
  CrossEntropyForwardBackward(gradient.data(), targets.data(), t, vocabulary, ones.data(),
                              nats.data(), pool_);
  EXPECT_EQ(nats, plain);
  const auto function = [&](const Values<Complex>& all) {
    return testing::ScalarCrossEntropy(all, targets, vocabulary);
  };
  ExpectGradients("cross-entropy", function, {logits}, {gradient});
  EXPECT_NEAR(std::accumulate(nats.begin(), nats.end(), 0.0),
              testing::ScalarCrossEntropy(Values<double>(logits.begin(), logits.end()), targets,
                                          vocabulary),
              1e-5);
}

TEST_F(OpsTest, CrossEntropyOfHugeLogitsIsFinite) {
  std::vector<float> logits = {1e5f, -1e5f, 0, 1e5f};
  const std::vector<TokenId> targets = {3};
  const float one = 1;
  std::vector<double> nats(1);
  CrossEntropyForwardBackward(logits.data(), targets.data(), 1, 4, &one, nats.data(), pool_);
  EXPECT_NEAR(nats[0], std::log(2.0), 1e-6);
  EXPECT_NEAR(logits[0], 0.5, 1e-6);
  EXPECT_NEAR(logits[3], -0.5, 1e-6);
  EXPECT_EQ(logits[1], 0);
}

TEST_F(OpsTest, EmbeddingBackwardAddsRowsOfTheSameToken) {
  const std::vector<TokenId> tokens = {2, 0, 2};
  const int64_t channels = 70;
  const std::vector<float> dy = RandomValues(1, 3 * channels);
  std::vector<float> dtable(3 * channels, 1);
  EmbeddingBackward(tokens, channels, dy.data(), dtable.data(), pool_);
  for (size_t i = 0; i < channels; ++i) {
    EXPECT_EQ(dtable[i], 1 + dy[channels + i]);
    EXPECT_EQ(dtable[channels + i], 1);
    EXPECT_EQ(dtable[2 * channels + i], (1 + dy[i]) + dy[2 * channels + i]);
  }
}

}  // namespace
}  // namespace fedge
