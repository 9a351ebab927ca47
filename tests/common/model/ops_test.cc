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

TEST_F(OpsTest, HeadNormGradientMatchesComplexStep) {
  // Two heads of three in rows that hold something else too.
  const size_t rows = 4, heads = 3, n = 21, stride = 80;
  const std::vector<float> x = RandomValues(1, rows * stride), w = RandomValues(2, n);
  std::vector<float> dy = RandomValues(3, rows * stride);
  const HeadShape shape = {rows, heads, n, stride};
  std::vector<float> y(rows * heads * n), inv(rows * heads), dw(n, 0), dx = dy;
  HeadNormForward(shape, x.data(), w.data(), 1e-5f, y.data(), inv.data(), pool_);
  HeadNormBackward(shape, x.data(), w.data(), inv.data(), dx.data(), dw.data(), pool_);
  const auto function = [&](const Values<Complex>& all) {
    const std::vector<size_t> sizes = {rows * stride, n};
    return Weighted(
        testing::ScalarRmsNorm(testing::ScalarColumns(Part(all, sizes, 0), stride, 0, heads * n),
                               Part(all, sizes, 1), 1e-5),
        testing::ScalarColumns(dy, stride, 0, heads * n));
  };
  for (size_t i = 0; i < rows * stride; ++i) {
    if (i % stride < heads * n) continue;
    EXPECT_EQ(dx[i], dy[i]) << "not a head's";
    dx[i] = 0;
  }
  ExpectGradients("head norm", function, {x, w}, {dx, dw});
}

TEST_F(OpsTest, RopeGradientMatchesComplexStep) {
  const size_t batch = 2, length = 5, heads = 3, head_dim = 22, stride = 70;
  RopeFrequencies frequencies;
  frequencies.theta = {1, 0.5f, 0.3f, 0.2f, 0.1f, 0.05f, 0.02f, 0.01f, 0.005f};
  frequencies.magnitude = 1.25f;
  const size_t size = batch * length * stride;  // 18 of 22 values of a head are rotated
  const std::vector<float> x = RandomValues(1, size), dy = RandomValues(2, size);
  for (const RopePairs pairs : {RopePairs::kAdjacent, RopePairs::kHalves}) {
    RopeTable table(frequencies, pairs);
    table.EnsurePositions(length);
    const RopePositions positions = {length, 0};
    const HeadShape shape = {batch * length, heads, head_dim, stride};
    std::vector<float> dx = dy, y = x;
    RopeForward(table, positions, shape, y.data(), pool_);
    RopeBackward(table, positions, shape, dx.data(), pool_);
    testing::ScalarRopeSettings rope;
    rope.frequencies.assign(frequencies.theta.begin(), frequencies.theta.end());
    rope.magnitude = 1.25;
    rope.halves = pairs == RopePairs::kHalves;
    const auto columns = [&](const auto& values) {
      return testing::ScalarColumns(values, stride, 0, heads * head_dim);
    };
    const auto function = [&](const Values<Complex>& all) {
      return Weighted(testing::ScalarRope(columns(all), rope, length, heads, head_dim),
                      columns(dy));
    };
    for (size_t i = 0; i < size; ++i) {
      if (i % stride >= heads * head_dim) dx[i] = 0;
    }
    ExpectGradients(rope.halves ? "RoPE, halves" : "RoPE, adjacent", function, {x}, {dx});
    const Values<double> expected = testing::ScalarRope(columns(Values<double>(x.begin(), x.end())),
                                                        rope, length, heads, head_dim);
    const std::vector<float> got = columns(y);
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-5);
  }
}

TEST_F(OpsTest, AttentionGradientMatchesComplexStep) {
  // More than one block of queries, a group of two query heads for each key head.
  const size_t batch = 2, length = 35, heads = 4, kv_heads = 2, head_dim = 4;
  const size_t q_width = heads * head_dim, kv_width = kv_heads * head_dim;
  const size_t q_size = batch * length * q_width, kv_size = batch * length * kv_width;
  const std::vector<float> q = RandomValues(1, q_size, 1.5), k = RandomValues(2, kv_size, 1.5);
  const std::vector<float> v = RandomValues(3, kv_size), dy = RandomValues(4, q_size);
  for (const size_t window : {0, 1, 9}) {
    AttentionShape shape = {batch, length, 0, heads, kv_heads, head_dim, 0.6f, 0};
    shape.window = static_cast<int64_t>(window);
    std::vector<float> y(q_size), lse(batch * length * heads);
    std::vector<float> dq(q_size), dk(kv_size), dv(kv_size);
    const ConstRows q_rows = {q.data(), q_width}, k_rows = {k.data(), kv_width};
    const ConstRows v_rows = {v.data(), kv_width};
    AttentionForward(shape, q_rows, k_rows, v_rows, y.data(), lse.data(), scratch_, pool_);
    AttentionBackward(shape, {q_rows, k_rows, v_rows, y.data(), lse.data()}, dy.data(),
                      {{dq.data(), q_width}, {dk.data(), kv_width}, {dv.data(), kv_width}},
                      scratch_, pool_);
    const std::vector<size_t> sizes = {q_size, kv_size, kv_size};
    const auto function = [&](const Values<Complex>& all) {
      return Weighted(testing::ScalarAttention<Complex>(
                          {batch, length, heads, kv_heads, head_dim, double{0.6f}, window},
                          Part(all, sizes, 0), Part(all, sizes, 1), Part(all, sizes, 2)),
                      dy);
    };
    if (window == 1) {  // the score of one key has no effect: its weight is 1
      for (const float value : dq) EXPECT_NEAR(value, 0, 1e-5);
      continue;
    }
    ExpectGradients(window == 0 ? "attention" : "attention, window", function, {q, k, v},
                    {dq, dk, dv});
  }
}

TEST_F(OpsTest, AttentionForwardMatchesScalar) {
  for (const size_t n : {1, 2, 3, 4, 31, 32, 33, 100}) {
    for (const size_t window : {0, 1, 5, 16, 33, 64}) {
      const size_t q_size = 2 * n * 6 * 24, kv_size = 2 * n * 3 * 24;
      const std::vector<float> q = RandomValues(1, q_size), k = RandomValues(2, kv_size);
      const std::vector<float> v = RandomValues(3, kv_size);
      std::vector<float> y(q_size), lse(2 * n * 6);
      AttentionShape shape = {2, static_cast<int64_t>(n), 0, 6, 3, 24, 1.0f / std::sqrt(24.0f), 0};
      shape.window = static_cast<int64_t>(window);
      AttentionForward(shape, {q.data(), 6 * 24}, {k.data(), 3 * 24}, {v.data(), 3 * 24}, y.data(),
                       lse.data(), scratch_, pool_);
      const Values<double> expected =
          testing::ScalarAttention<double>({2, n, 6, 3, 24, 0, window}, {q.begin(), q.end()},
                                           {k.begin(), k.end()}, {v.begin(), v.end()});
      for (size_t i = 0; i < q_size; ++i)
        ASSERT_NEAR(y[i], expected[i], 2e-6) << n << " " << window;
    }
  }
}

// q, k and v side by side in the rows of one matrix give the same bits as apart.
TEST_F(OpsTest, AttentionReadsInterleavedRows) {
  const int64_t length = 40, heads = 4, kv_heads = 2, n = 8;
  const int64_t q_width = heads * n, kv_width = kv_heads * n, width = q_width + 2 * kv_width;
  const std::vector<float> all = RandomValues(1, static_cast<size_t>(length * width));
  const std::vector<float> dy = RandomValues(2, static_cast<size_t>(length * q_width));
  const auto columns = [&](const std::vector<float>& values, int64_t begin, int64_t count) {
    return testing::ScalarColumns(values, static_cast<size_t>(width), static_cast<size_t>(begin),
                                  static_cast<size_t>(begin + count));
  };
  const std::vector<float> q = columns(all, 0, q_width), k = columns(all, q_width, kv_width);
  const std::vector<float> v = columns(all, q_width + kv_width, kv_width);
  const AttentionShape shape = {1, length, 0, heads, kv_heads, n, 0.3f, 11};
  const auto run = [&](ConstRows q_rows, ConstRows k_rows, ConstRows v_rows, Rows dq, Rows dk,
                       Rows dv) {
    std::vector<float> y(dy.size()), lse(static_cast<size_t>(length * heads));
    AttentionForward(shape, q_rows, k_rows, v_rows, y.data(), lse.data(), scratch_, pool_);
    AttentionBackward(shape, {q_rows, k_rows, v_rows, y.data(), lse.data()}, dy.data(),
                      {dq, dk, dv}, scratch_, pool_);
    return y;
  };
  std::vector<float> d_all(all.size()), dq(q.size()), dk(k.size()), dv(v.size());
  const float* const x = all.data();
  float* const dx = d_all.data();
  const int64_t v_at = q_width + kv_width;
  const std::vector<float> together = run({x, width}, {x + q_width, width}, {x + v_at, width},
                                          {dx, width}, {dx + q_width, width}, {dx + v_at, width});
  const std::vector<float> apart =
      run({q.data(), q_width}, {k.data(), kv_width}, {v.data(), kv_width}, {dq.data(), q_width},
          {dk.data(), kv_width}, {dv.data(), kv_width});
  EXPECT_EQ(together, apart);
  EXPECT_EQ(columns(d_all, 0, q_width), dq);
  EXPECT_EQ(columns(d_all, q_width, kv_width), dk);
  EXPECT_EQ(columns(d_all, v_at, kv_width), dv);
}

// With fewer key heads than threads these share one; sums keep their order.
TEST_F(OpsTest, AttentionHasTheSameBitsForAnyNumberOfThreads) {
  const int64_t length = 150, n = 24;
  for (const int64_t kv_heads : {1, 3}) {
    for (const int64_t window : {0, 9, 70}) {
      const int64_t heads = 2 * kv_heads, q_width = heads * n, kv_width = kv_heads * n;
      const auto values = [&](uint64_t seed, int64_t width) {
        return RandomValues(seed, static_cast<size_t>(length * width));
      };
      const std::vector<float> q = values(1, q_width), k = values(2, kv_width);
      const std::vector<float> v = values(3, kv_width), dy = values(4, q_width);
      const AttentionShape shape = {1, length, 0, heads, kv_heads, n, 0.3f, window};
      std::vector<std::vector<float>> results;
      for (const int threads : {1, 2, 4, 5}) {
        ThreadPool pool(threads);
        std::vector<float> y(q.size()), lse(static_cast<size_t>(length * heads));
        std::vector<float> dq(q.size()), dk(k.size()), dv(v.size());
        const ConstRows q_rows = {q.data(), q_width}, k_rows = {k.data(), kv_width};
        const ConstRows v_rows = {v.data(), kv_width};
        AttentionForward(shape, q_rows, k_rows, v_rows, y.data(), lse.data(), scratch_, pool);
        AttentionBackward(shape, {q_rows, k_rows, v_rows, y.data(), lse.data()}, dy.data(),
                          {{dq.data(), q_width}, {dk.data(), kv_width}, {dv.data(), kv_width}},
                          scratch_, pool);
        for (const auto* part : {&lse, &dq, &dk, &dv})
          y.insert(y.end(), part->begin(), part->end());
        results.push_back(y);
      }
      for (const auto& result : results) EXPECT_EQ(result, results[0]) << kv_heads << " " << window;
    }
  }
}

TEST_F(OpsTest, GateGradientMatchesComplexStep) {
  const size_t t = 3, n = 41, size = t * n;
  const std::vector<float> gate = RandomValues(1, size, 3), up = RandomValues(2, size);
  const std::vector<float> dy = RandomValues(3, size);
  for (const GateFunction gate_function : {GateFunction::kSilu, GateFunction::kGeluTanh}) {
    const bool silu = gate_function == GateFunction::kSilu;
    const auto scalar = [&](const auto& g, const auto& u) {
      return silu ? testing::ScalarSwiGlu(g, u) : testing::ScalarGeluGlu(g, u);
    };
    std::vector<float> dgate = gate, dup = up, y(size);
    GateForward({gate_function, t, n, n}, gate.data(), up.data(), y.data(), pool_);
    GateBackward({gate_function, t, n, n}, dgate.data(), dup.data(), dy.data(), pool_);
    const auto function = [&](const Values<Complex>& all) {
      return Weighted(scalar(Part(all, {size, size}, 0), Part(all, {size, size}, 1)), dy);
    };
    ExpectGradients(silu ? "SwiGLU" : "GELU gate", function, {gate, up}, {dgate, dup});
    const Values<double> expected =
        scalar(Values<double>(gate.begin(), gate.end()), Values<double>(up.begin(), up.end()));
    for (size_t i = 0; i < size; ++i) EXPECT_NEAR(y[i], expected[i], 2e-6);

    // Side by side in each row: the same bits.
    std::vector<float> rows, y_rows(size);
    for (size_t i = 0; i < t; ++i) {
      rows.insert(rows.end(), gate.data() + i * n, gate.data() + (i + 1) * n);
      rows.insert(rows.end(), up.data() + i * n, up.data() + (i + 1) * n);
    }
    const GateShape shape = {gate_function, t, n, 2 * n};
    GateForward(shape, rows.data(), rows.data() + n, y_rows.data(), pool_);
    for (size_t i = 0; i < size; ++i) EXPECT_NEAR(y_rows[i], y[i], 1e-6);
    GateBackward(shape, rows.data(), rows.data() + n, dy.data(), pool_);
    const auto d = testing::ScalarColumns(rows, 2 * n, 0, n);
    for (size_t i = 0; i < size; ++i) EXPECT_NEAR(d[i], dgate[i], 1e-5);
  }
}

TEST_F(OpsTest, SoftCapGradientMatchesComplexStep) {
  const size_t t = 3, n = 53;
  const std::vector<float> x = RandomValues(1, t * n, 4), dy = RandomValues(2, t * n);
  std::vector<float> y = x, dx = dy;
  SoftCapForward(5, t, n, y.data(), pool_);
  SoftCapBackward(5, y.data(), t, n, dx.data(), pool_);
  const auto function = [&](const Values<Complex>& all) {
    return Weighted(testing::ScalarSoftCap(all, 5), dy);
  };
  ExpectGradients("soft cap", function, {x}, {dx});
  const Values<double> expected = testing::ScalarSoftCap(Values<double>(x.begin(), x.end()), 5);
  for (size_t i = 0; i < t * n; ++i) EXPECT_NEAR(y[i], expected[i], 2e-6);
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
  std::vector<float> u(t * rank), y(t * out);
  std::vector<float> dx(t * in), dw(out * in, 0), da(rank * in, 0), dbt(rank * out, 0);
  const std::vector<int64_t> ends = {static_cast<int64_t>(t)};
  const LinearRows rows = {static_cast<int64_t>(t), ends};
  LinearGradient gradient;
  gradient.weight = dw.data();
  gradient.lora = {{da.data(), dbt.data()}};
  LinearForward({{&layer, u.data(), y.data()}}, x.data(), rows, pool_);
  LinearBackward({{&layer, &gradient, u.data(), dy.data()}}, x.data(), rows, Accumulate::kNo,
                 dx.data(), pool_);
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
  EmbeddingBackward(tokens, channels, 2, dy.data(), dtable.data(), pool_);
  for (size_t i = 0; i < channels; ++i) {
    EXPECT_EQ(dtable[i], 1 + 2 * dy[channels + i]);
    EXPECT_EQ(dtable[channels + i], 1);
    EXPECT_EQ(dtable[2 * channels + i], (1 + 2 * dy[i]) + 2 * dy[2 * channels + i]);
  }
}

}  // namespace
}  // namespace fedge
