#include "common/tensor/matmul.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <string>
#include <vector>

#include "common/base/rng.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

std::vector<float> RandomFloats(int64_t count, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(rng.Normal());
  return values;
}

// A random weight in `type`; for types without an encoder the blocks are random bytes with tame
// scales.
struct TestWeight {
  std::vector<uint8_t> bytes;
  std::vector<float> dense;
  WeightMatrix view;
};

TestWeight MakeWeight(DType type, int64_t rows, int64_t cols, uint64_t seed) {
  TestWeight w;
  w.bytes.resize(static_cast<size_t>(rows * RowBytes(type, cols)));
  const std::vector<float> values = RandomFloats(rows * cols, seed);
  if (!Quantize(type, values, w.bytes.data()).ok()) {
    Rng rng(seed);
    for (uint8_t& byte : w.bytes) byte = static_cast<uint8_t>(rng.Below(40));
  }
  w.dense.resize(values.size());
  w.view = {w.bytes.data(), type, rows, cols};
  for (int64_t r = 0; r < rows; ++r)
    Dequantize(type, w.view.Row(r), cols, w.dense.data() + r * cols);
  return w;
}

// Largest |got - want| over the largest |want|.
double RelativeError(const std::vector<float>& got, const std::vector<double>& want) {
  double error = 0, largest = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error = std::max(error, std::fabs(static_cast<double>(got[i]) - want[i]));
    largest = std::max(largest, std::fabs(want[i]));
  }
  return largest == 0 ? error : error / largest;
}

// want [m, n] = start + scale * A B by the naive triple loop in double.
template <typename A, typename B>
std::vector<double> NaiveProduct(int64_t m, int64_t n, int64_t k, A a, B b, double scale,
                                 double start) {
  std::vector<double> c(static_cast<size_t>(m * n), start);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t l = 0; l < k; ++l)
        c[static_cast<size_t>(i * n + j)] += scale * a(i, l) * b(l, j);
    }
  }
  return c;
}

struct Shape {
  int64_t t, rows, cols;
};

// Runs the checks on every SIMD target this machine has, as dynamic dispatch would pick it
// elsewhere.
class MatMulTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

void CheckAllDirections(DType type, const Shape& s, ThreadPool& pool) {
  SCOPED_TRACE(std::string(DTypeName(type)) + " " + std::to_string(s.t) + "x" +
               std::to_string(s.rows) + "x" + std::to_string(s.cols));
  const TestWeight w = MakeWeight(type, s.rows, s.cols, 7);
  const std::vector<float> x = RandomFloats(s.t * s.cols, 1), dy = RandomFloats(s.t * s.rows, 2);
  const auto weight = [&](int64_t r, int64_t c) {
    return double{w.dense[static_cast<size_t>(r * s.cols + c)]};
  };
  const auto x_at = [&](int64_t i, int64_t c) {
    return double{x[static_cast<size_t>(i * s.cols + c)]};
  };
  const auto dy_at = [&](int64_t i, int64_t r) {
    return double{dy[static_cast<size_t>(i * s.rows + r)]};
  };

  std::vector<float> y(static_cast<size_t>(s.t * s.rows), 3.0f);
  MatMulForward(w.view, x.data(), s.t, 0.5f, Accumulate::kYes, y.data(), pool);
  EXPECT_LT(RelativeError(y, NaiveProduct(
                                 s.t, s.rows, s.cols, x_at,
                                 [&](int64_t k, int64_t n) { return weight(n, k); }, 0.5, 3.0)),
            3e-6);
  std::vector<float> dx(static_cast<size_t>(s.t * s.cols), NAN);
  MatMulBackward(w.view, dy.data(), s.t, 1.0f, Accumulate::kNo, dx.data(), pool);
  EXPECT_LT(RelativeError(dx, NaiveProduct(s.t, s.cols, s.rows, dy_at, weight, 1.0, 0.0)), 3e-6);
  std::fill(dx.begin(), dx.end(), 2.0f);
  MatMulBackward(w.view, dy.data(), s.t, 3.0f, Accumulate::kYes, dx.data(), pool);
  EXPECT_LT(RelativeError(dx, NaiveProduct(s.t, s.cols, s.rows, dy_at, weight, 3.0, 2.0)), 3e-6);

  std::vector<float> dw(static_cast<size_t>(s.rows * s.cols), NAN);
  MatMulWeightGradient(dy.data(), x.data(), s.t, s.rows, s.cols, 2.0f, Accumulate::kNo, dw.data(),
                       pool);
  EXPECT_LT(
      RelativeError(dw, NaiveProduct(
                            s.rows, s.cols, s.t, [&](int64_t r, int64_t k) { return dy_at(k, r); },
                            x_at, 2.0, 0.0)),
      3e-6);
}

TEST_P(MatMulTest, AgreesWithTheNaiveProductForEveryType) {
  ThreadPool pool(1);
  for (const DType type :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,
        DType::kQ5_1, DType::kQ8_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    CheckAllDirections(type, {.t = 19, .rows = 70, .cols = 512}, pool);
  }
}

TEST_P(MatMulTest, AgreesWithTheNaiveProductForRaggedDenseShapes) {
  ThreadPool pool(2);
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{2, 3, 5}, Shape{7, 16, 33}, Shape{25, 8, 300},
                             Shape{64, 17, 64}, Shape{300, 8, 48}, Shape{5, 530, 270}}) {
    CheckAllDirections(DType::kF32, shape, pool);
  }
}

TEST_P(MatMulTest, GivesTheSameBytesForAnyNumberOfThreads) {
  const TestWeight w = MakeWeight(DType::kQ8_0, 600, 544, 3);
  const std::vector<float> x = RandomFloats(130 * 544, 4);
  const std::vector<float> dy = RandomFloats(130 * 600, 5);
  for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
    std::vector<std::vector<float>> forward, backward;
    for (const int threads : {1, 2, 3, 5}) {
      ThreadPool pool(threads);
      forward.emplace_back(130 * 600);
      backward.emplace_back(130 * 544);
      MatMulForward(w.view, x.data(), 130, 1.0f, Accumulate::kNo, forward.back().data(), pool,
                    precision);
      MatMulBackward(w.view, dy.data(), 130, 1.0f, Accumulate::kNo, backward.back().data(), pool,
                     precision);
      EXPECT_EQ(forward.back(), forward.front());
      EXPECT_EQ(backward.back(), backward.front());
    }
  }
}

// Up to kMaxVectorRows rows are summed in another order than more rows.
TEST_P(MatMulTest, RowsDoNotDependOnTheirNeighbours) {
  constexpr int64_t kIn = 256, kOut = 96, kRows = 31;
  const TestWeight w = MakeWeight(DType::kQ4_0, kOut, kIn, 3);
  const std::vector<float> x = RandomFloats(kRows * kIn, 4);
  ThreadPool pool(1);
  const auto product = [&](int64_t first, int64_t count, Precision precision) {
    std::vector<float> y(static_cast<size_t>(count * kOut));
    MatMulForward(w.view, x.data() + first * kIn, count, 1.0f, Accumulate::kNo, y.data(), pool,
                  precision);
    return y;
  };
  for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
    const std::vector<float> all = product(0, kRows, precision);
    for (int64_t i = 0; i + 5 <= kRows; ++i) {
      EXPECT_EQ(product(i, 5, precision),
                std::vector<float>(all.begin() + i * kOut, all.begin() + (i + 5) * kOut))
          << i;
    }
  }
  const std::vector<float> four = product(0, kMaxVectorRows, Precision::kFloat32);
  for (int64_t i = 0; i < kMaxVectorRows; ++i) {
    EXPECT_EQ(product(i, 1, Precision::kFloat32),
              std::vector<float>(four.begin() + i * kOut, four.begin() + (i + 1) * kOut))
        << i;
  }
}

// Largest |got - want| over its bound: both factors of each product rounded to bf16 (relative error
// 2^-9 each, hence 2^-8 + 2^-18), and the sum of k of them in fp32, in any order, to k * 2^-24.
template <typename A, typename B>
double WorstOfBound(const std::vector<float>& got, int64_t m, int64_t n, int64_t k, A a, B b) {
  const std::vector<double> want = NaiveProduct(m, n, k, a, b, 1.0, 0.0);
  const std::vector<double> magnitude = NaiveProduct(
      m, n, k, [&](int64_t i, int64_t l) { return std::fabs(a(i, l)); },
      [&](int64_t l, int64_t j) { return std::fabs(b(l, j)); }, 1.0, 0.0);
  const double relative = 0x1p-8 + 0x1p-18 + static_cast<double>(k + 1) * 0x1.02p-24;
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(static_cast<double>(got[i]) - want[i]);
    worst = std::max(worst, error / (relative * magnitude[i]));
  }
  return worst;
}

TEST_P(MatMulTest, StaysWithinTheBoundOfBfloat16ForEveryType) {
  ThreadPool pool(2);
  for (const DType type :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,
        DType::kQ5_1, DType::kQ8_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    SCOPED_TRACE(DTypeName(type));
    constexpr int64_t kT = 39, kOut = 101, kIn = 512;
    const TestWeight w = MakeWeight(type, kOut, kIn, 7);
    const std::vector<float> x = RandomFloats(kT * kIn, 1), dy = RandomFloats(kT * kOut, 2);
    const auto weight = [&](int64_t r, int64_t c) {
      return double{w.dense[static_cast<size_t>(r * kIn + c)]};
    };
    const auto weight_t = [&](int64_t c, int64_t r) { return weight(r, c); };
    const auto x_at = [&](int64_t i, int64_t c) {
      return double{x[static_cast<size_t>(i * kIn + c)]};
    };
    const auto dy_at = [&](int64_t i, int64_t r) {
      return double{dy[static_cast<size_t>(i * kOut + r)]};
    };
    std::vector<float> y(kT * kOut, NAN), dx(kT * kIn, NAN);
    MatMulForward(w.view, x.data(), kT, 1.0f, Accumulate::kNo, y.data(), pool,
                  Precision::kBFloat16);
    MatMulBackward(w.view, dy.data(), kT, 1.0f, Accumulate::kNo, dx.data(), pool,
                   Precision::kBFloat16);
    const double forward = WorstOfBound(y, kT, kOut, kIn, x_at, weight_t);
    const double backward = WorstOfBound(dx, kT, kIn, kOut, dy_at, weight);
    EXPECT_LT(forward, 1.0);
    EXPECT_LT(backward, 1.0);
    // Rounding that leaves no trace did not happen.
    if (HasBFloat16Dot()) {
      EXPECT_GT(forward, 0.01);
      EXPECT_GT(backward, 0.01);
    } else {
      EXPECT_LT(forward, 0.01);
    }
  }
}

TEST_P(MatMulTest, ComputesBf16AsFp32WhereThereIsNoBf16Dot) {
  if (HasBFloat16Dot()) GTEST_SKIP() << "bf16 dot product on " << hwy::TargetName(GetParam());
  constexpr int64_t kT = 37, kOut = 70, kIn = 288;
  ThreadPool pool(2);
  const TestWeight w = MakeWeight(DType::kQ4_0, kOut, kIn, 31);
  const std::vector<float> x = RandomFloats(kT * kIn, 32), dy = RandomFloats(kT * kOut, 33);
  const auto products = [&](Precision precision) {
    std::vector<float> y(kT * kOut, NAN), dx(kT * kIn, NAN);
    MatMulForward(w.view, x.data(), kT, 0.5f, Accumulate::kNo, y.data(), pool, precision);
    MatMulBackward(w.view, dy.data(), kT, 0.5f, Accumulate::kNo, dx.data(), pool, precision);
    y.insert(y.end(), dx.begin(), dx.end());
    return y;
  };
  EXPECT_EQ(products(Precision::kBFloat16), products(Precision::kFloat32));
}

TEST_P(MatMulTest, AgreesWithTheNaiveProductForFewRows) {
  ThreadPool pool(2);
  for (const int64_t t : {1, 2, 3, 4}) {
    for (const DType type : {DType::kF32, DType::kQ4_0, DType::kQ5_K, DType::kQ6_K}) {
      CheckAllDirections(type, {.t = t, .rows = 1030, .cols = 256}, pool);
    }
    CheckAllDirections(DType::kF32, {.t = t, .rows = 3, .cols = 37}, pool);
  }
}

TEST_P(MatMulTest, TakesAnEmptyDepthAsZero) {
  ThreadPool pool(1);
  std::vector<float> y(7 * 5, 3.0f);
  MatMulForward(DenseView(nullptr, 5, 0), nullptr, 7, 1.0f, Accumulate::kNo, y.data(), pool);
  EXPECT_EQ(y, std::vector<float>(7 * 5, 0.0f));
}

INSTANTIATE_TEST_SUITE_P(AllTargets, MatMulTest,
                         ::testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& target) {
                           return std::string(hwy::TargetName(target.param));
                         });

}  // namespace
}  // namespace fedge
