#include "common/tensor/row_ops.h"

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cmath>
#include <functional>
#include <vector>

#include "common/base/rng.h"

namespace fedge {
namespace {

constexpr int64_t kLengths[] = {1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 77, 130};

std::vector<float> RandomFloats(int64_t count, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(rng.Normal());
  return values;
}

// Runs `body` on every SIMD target of this processor.
void OnEveryTarget(const std::function<void()>& body) {
  for (const int64_t simd_target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(simd_target));
    hwy::SetSupportedTargetsForTest(simd_target);
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(RowOpsTest, SumsAndProductsMatchScalarAndStayInBounds) {
  OnEveryTarget([] {
    for (const int64_t n : kLengths) {
      const size_t size = static_cast<size_t>(n);
      const std::vector<float> x = RandomFloats(n, 1);
      std::vector<float> y = RandomFloats(n + 1, 2), added = y, scaled = y;
      double dot = 0;
      for (size_t i = 0; i < size; ++i) dot += double{x[i]} * double{y[i]};
      EXPECT_NEAR(RowDot(x.data(), y.data(), n), dot, 1e-4) << n;
      const std::vector<float> old = y;
      RowAxpy(0.5f, x.data(), n, y.data());
      RowAdd(x.data(), n, added.data());
      RowScale(3, n, scaled.data());
      for (size_t i = 0; i < size; ++i) {
        EXPECT_FLOAT_EQ(y[i], old[i] + 0.5f * x[i]);
        EXPECT_EQ(added[i], old[i] + x[i]);
        EXPECT_EQ(scaled[i], 3 * old[i]);
      }
      EXPECT_EQ(y[size], old[size]);
      EXPECT_EQ(added[size], old[size]);
      EXPECT_EQ(scaled[size], old[size]);
    }
  });
}

TEST(RowOpsTest, SoftmaxMatchesScalar) {
  OnEveryTarget([] {
    for (const int64_t n : {1, 5, 16, 33, 5000}) {
      const std::vector<float> x = RandomFloats(n, 3);
      std::vector<float> p = x, again = x;
      double sum = 0;
      for (const float value : x) sum += std::exp(2 * double{value});
      const double lse = SoftmaxRow(2, 0.5f, n, p.data());
      EXPECT_NEAR(lse, std::log(sum), 1e-5);
      EXPECT_EQ(lse, LogSumExpRow(x.data(), 2, n));
      ExpRow(2, static_cast<float>(lse), n, again.data());
      for (size_t i = 0; i < x.size(); ++i) {
        const double expected = std::exp(2 * double{x[i]}) / sum;
        EXPECT_NEAR(p[i], 0.5 * expected, 1e-6 * expected + 1e-12);
        EXPECT_NEAR(again[i], expected, 3e-6 * expected + 1e-12);
      }
    }
  });
}

TEST(RowOpsTest, SwiGluMatchesScalarFarOut) {
  OnEveryTarget([] {
    const std::vector<float> gate = {-1e4f, -100, -20, -1, 0, 1, 20, 100, 1e4f, 0.5f, -0.5f};
    const std::vector<float> up(gate.size(), 2);
    std::vector<float> y(gate.size());
    SwiGluRow(gate.data(), up.data(), static_cast<int64_t>(gate.size()), y.data());
    for (size_t i = 0; i < gate.size(); ++i) {
      const double g = double{gate[i]};
      const double expected = 2 * g / (1 + std::exp(-g));
      EXPECT_NEAR(y[i], expected, 1e-6 * std::abs(expected) + 1e-30) << g;
    }
  });
}

TEST(RowOpsTest, RopeBackwardUndoesRope) {
  OnEveryTarget([] {
    for (const int64_t n : {2, 6, 16, 34, 64}) {
      const std::vector<float> x = RandomFloats(n, 4);
      std::vector<float> cosine, sine;
      for (int64_t i = 0; i < n / 2; ++i) {
        const float angle = static_cast<float>(i) + 0.3f;
        cosine.insert(cosine.end(), {std::cos(angle), std::cos(angle)});
        sine.insert(sine.end(), {-std::sin(angle), std::sin(angle)});
      }
      std::vector<float> y = x;
      RopeRow(cosine.data(), sine.data(), n, y.data());
      EXPECT_NEAR(y[0], x[0] * cosine[0] - x[1] * sine[1], 1e-6);
      EXPECT_NEAR(y[1], x[1] * cosine[0] + x[0] * sine[1], 1e-6);
      RopeRowBackward(cosine.data(), sine.data(), n, y.data());
      for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(y[i], x[i], 1e-6);
    }
  });
}

TEST(RowOpsTest, RmsNormMatchesScalar) {
  OnEveryTarget([] {
    for (const int64_t n : kLengths) {
      const std::vector<float> x = RandomFloats(n, 5), w = RandomFloats(n, 6);
      std::vector<float> y(x.size());
      double sum = 0;
      for (const float value : x) sum += double{value} * double{value};
      const double inv = 1 / std::sqrt(sum / static_cast<double>(n) + 1e-5);
      EXPECT_NEAR(RmsNormRow(x.data(), w.data(), n, 1e-5f, y.data()), inv, 1e-5 * inv);
      for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(y[i], x[i] * inv * w[i], 1e-5);
    }
  });
}

TEST(RowOpsTest, SmallMatMulMatchesScalarForEveryShape) {
  OnEveryTarget([] {
    for (const int64_t m : {1, 2, 5, 6, 7, 32}) {
      for (const int64_t n : {1, 4, 16, 31, 48, 64, 100}) {
        for (const bool transposed : {false, true}) {
          const int64_t k = 9, b_row = n + 3, c_row = n + 1;
          const std::vector<float> a = RandomFloats(m * k, 1), b = RandomFloats(k * b_row, 2);
          std::vector<float> c = RandomFloats(m * c_row, 3);
          const std::vector<float> old = c;
          SmallMatMulShape shape = {m, n, k, k, 1, b_row, c_row, transposed};
          if (transposed) {
            shape.a_row = 1;
            shape.a_col = m;
          }
          SmallMatMul(shape, a.data(), b.data(), c.data());
          for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < c_row; ++j) {
              const size_t at = static_cast<size_t>(i * c_row + j);
              double expected = double{old[at]};
              if (j < n && !transposed) expected = 0;
              for (int64_t l = 0; l < k && j < n; ++l) {
                expected += double{a[static_cast<size_t>(i * shape.a_row + l * shape.a_col)]} *
                            double{b[static_cast<size_t>(l * b_row + j)]};
              }
              ASSERT_NEAR(c[at], expected, 1e-5) << m << " x " << n << " at " << i << "," << j;
            }
          }
        }
      }
    }
  });
}

TEST(RowOpsTest, TransposeMovesEveryValue) {
  const std::vector<float> x = RandomFloats(37 * 50, 1);
  std::vector<float> xt(21 * 40, -7);
  Transpose(x.data(), 50, 37, 21, xt.data(), 40);
  for (size_t i = 0; i < 40; ++i) {
    for (size_t j = 0; j < 21; ++j) EXPECT_EQ(xt[j * 40 + i], i < 37 ? x[i * 50 + j] : -7);
  }
}

}  // namespace
}  // namespace fedge
