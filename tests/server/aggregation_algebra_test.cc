#include "server/aggregation_algebra.h"

#include <gtest/gtest.h>

#include <Eigen/SVD>
#include <cmath>

#include "common/base/rng.h"
#include "server/aggregation_sketch.h"

namespace fedge {
namespace {

using Eigen::MatrixXd;

MatrixXd Random(Eigen::Index rows, Eigen::Index columns, uint64_t seed) {
  Rng rng(seed);
  MatrixXd matrix(rows, columns);
  for (Eigen::Index i = 0; i < rows; ++i) {
    for (Eigen::Index j = 0; j < columns; ++j) matrix(i, j) = rng.Normal();
  }
  return matrix;
}

FactorPair RandomPair(Eigen::Index out, Eigen::Index in, Eigen::Index rank, uint64_t seed) {
  return {Random(out, rank, seed), Random(rank, in, seed + 1)};
}

MatrixXd Dense(const FactorPair& pair) { return pair.b * pair.a; }

MatrixXd Dense(const ThinSvd& svd) { return svd.u * svd.s.asDiagonal() * svd.v.transpose(); }

// What no approximation of that rank can go below (Eckart, Young 1936).
double TailNorm(const MatrixXd& matrix, Eigen::Index rank) {
  const Eigen::VectorXd s = Eigen::JacobiSVD<MatrixXd>(matrix).singularValues();
  return s.tail(s.size() - std::min(rank, s.size())).norm();
}

TEST(AggregationAlgebraTest, StacksTheSumOfProducts) {
  const FactorPair x = RandomPair(5, 7, 2, 1);
  const FactorPair y = RandomPair(5, 7, 3, 3);
  const FactorPair none{MatrixXd(5, 0), MatrixXd(0, 7)};
  const FactorPair sum = Stack({x, none, y});
  EXPECT_EQ(sum.b.cols(), 5);
  EXPECT_LT((Dense(sum) - Dense(x) - Dense(y)).norm(), 1e-13);
}

TEST(AggregationAlgebraTest, TruncatesLikeTheDenseSvd) {
  for (const Eigen::Index q : {3, 12, 40}) {  // also more components than rows or columns
    const FactorPair pair = RandomPair(20, 30, q, 5);
    const MatrixXd dense = Dense(pair);
    for (const int64_t rank : {1, 3, 8}) {
      const ThinSvd svd = TruncatedSvd(pair, rank);
      const double best = TailNorm(dense, rank);
      EXPECT_NEAR((dense - Dense(svd)).norm(), best, 1e-11 * dense.norm()) << q << " " << rank;
      EXPECT_EQ(svd.s.size(), std::min<Eigen::Index>(rank, q));
      EXPECT_LT((svd.u.transpose() * svd.u - MatrixXd::Identity(svd.s.size(), svd.s.size())).norm(),
                1e-12);
    }
  }
}

TEST(AggregationAlgebraTest, HasNoComponentsForZero) {
  const ThinSvd svd = TruncatedSvd({MatrixXd::Zero(6, 4), Random(4, 9, 1)}, 3);
  EXPECT_EQ(svd.s.size(), 0);
  const FactorPair even = SplitEvenly(svd, 3);
  EXPECT_EQ(even.b.cols(), 3);
  EXPECT_EQ(even.a.rows(), 3);
  EXPECT_EQ(Dense(even).norm(), 0);
}

TEST(AggregationAlgebraTest, SplitsEvenly) {
  const FactorPair pair = RandomPair(9, 6, 2, 7);
  const FactorPair even = SplitEvenly(TruncatedSvd(pair, 4), 4);
  EXPECT_EQ(even.b.cols(), 4);
  EXPECT_LT((Dense(even) - Dense(pair)).norm(), 1e-12);
  EXPECT_NEAR(even.b.norm(), even.a.norm(), 1e-12);
  EXPECT_EQ(even.b.rightCols(2).norm(), 0);
}

TEST(AggregationAlgebraTest, AlignsWithoutChangingTheProduct) {
  const FactorPair pair = RandomPair(12, 16, 4, 9);
  const MatrixXd frame = Random(4, 16, 11);
  for (const bool ordered : {false, true}) {
    const FactorPair aligned = AlignToFrame(TruncatedSvd(pair, 4), frame, ordered);
    EXPECT_LT((Dense(aligned) - Dense(pair)).norm(), 1e-12) << ordered;
    const double square = frame.squaredNorm() / 4;
    EXPECT_LT((aligned.a * aligned.a.transpose() - square * MatrixXd::Identity(4, 4)).norm(),
              1e-11 * square);
  }
  // Ordered: the first components are the best approximation of lower rank.
  const FactorPair ordered = AlignToFrame(TruncatedSvd(pair, 4), frame, true);
  const MatrixXd two = ordered.b.leftCols(2) * ordered.a.topRows(2);
  EXPECT_NEAR((Dense(pair) - two).norm(), TailNorm(Dense(pair), 2), 1e-11);
}

TEST(AggregationAlgebraTest, LeavesAFrameAloneThatFits) {
  // A with orthogonal rows of one length, and a product in its row space: nothing has to turn.
  const MatrixXd basis =
      TruncatedSvd({Random(16, 3, 1), MatrixXd::Identity(3, 3)}, 3).u.transpose();  // [3, 16]
  const MatrixXd frame = 2 * basis;
  const MatrixXd b = Random(12, 3, 2);
  const FactorPair aligned = AlignToFrame(TruncatedSvd({b, frame}, 3), frame, false);
  EXPECT_LT((aligned.a - frame).norm(), 1e-11);
  EXPECT_LT((aligned.b - b).norm(), 1e-11);
}

TEST(AggregationAlgebraTest, KeepsDirectionsOfTheFrameThatTheProductLacks) {
  const MatrixXd frame = Random(5, 20, 3);
  // Rank 2, then nothing at all.
  for (const Eigen::Index rank : {2, 0}) {
    const FactorPair product{Random(8, rank, 4), Random(rank, 20, 5)};
    const ThinSvd svd = rank == 0 ? TruncatedSvd({MatrixXd::Zero(8, 2), Random(2, 20, 1)}, 5)
                                  : TruncatedSvd(product, 5);
    const FactorPair aligned = AlignToFrame(svd, frame, false);
    EXPECT_EQ(aligned.a.rows(), 5);
    if (rank > 0) {
      EXPECT_LT((Dense(aligned) - Dense(product)).norm(), 1e-11);
    }
    // Five directions of one length: the row space of the product and some of the frame's.
    const MatrixXd gram = aligned.a * aligned.a.transpose();
    EXPECT_LT((gram - MatrixXd::Identity(5, 5) * gram(0, 0)).norm(), 1e-11 * gram(0, 0));
    MatrixXd both(20, 5 + rank);
    both << frame.transpose(), product.a.transpose();
    const MatrixXd space = TruncatedSvd({both, MatrixXd::Identity(5 + rank, 5 + rank)}, 9).u;
    EXPECT_LT((aligned.a.transpose() - space * (space.transpose() * aligned.a.transpose())).norm(),
              1e-10 * aligned.a.norm());
  }
}

TEST(AggregationAlgebraTest, RecoversWhatFitsTheSketchExactly) {
  const MatrixXd e = Dense(RandomPair(40, 30, 5, 6));
  const MatrixXd omega = SignMatrix(1, 11).Dense(30);
  const MatrixXd psi = SignMatrix(2, 23).Dense(40);
  const FactorPair found = RecoverFromSketch(e * omega, psi.transpose() * e, psi);
  EXPECT_LT((Dense(found) - e).norm(), 1e-10 * e.norm());
  const FactorPair zero = RecoverFromSketch(MatrixXd::Zero(40, 11), MatrixXd::Zero(23, 30), psi);
  EXPECT_EQ(Dense(zero).norm(), 0);
}

// Tropp et al. 2017, theorem 4.3 with k = 2 q + 1 and l = 2 k + 1: the mean squared error of the
// recovery is at most (1 + q/(k - q - 1)) (1 + k/(l - k - 1)) = 4 times that of the best rank q.
TEST(AggregationAlgebraTest, RecoversNearlyTheBestOfAFlatSpectrum) {
  const Eigen::Index q = 6;
  MatrixXd e = Random(60, 50, 8);
  Eigen::BDCSVD<MatrixXd> svd(e, Eigen::ComputeThinU | Eigen::ComputeThinV);
  Eigen::VectorXd s(50);
  for (Eigen::Index i = 0; i < 50; ++i) s[i] = std::pow(0.9, static_cast<double>(i));
  e = svd.matrixU() * s.asDiagonal() * svd.matrixV().transpose();
  const double best = TailNorm(e, q);
  double mean_square = 0;
  constexpr int kTrials = 40;
  for (uint64_t trial = 0; trial < kTrials; ++trial) {
    const MatrixXd omega = SignMatrix(100 + trial, 2 * q + 1).Dense(50);
    const MatrixXd psi = SignMatrix(200 + trial, 4 * q + 3).Dense(60);
    const FactorPair found = RecoverFromSketch(e * omega, psi.transpose() * e, psi);
    const double error = (Dense(found) - e).squaredNorm() / (best * best);
    EXPECT_LT(error, 8);  // each one, well outside the mean's bound
    mean_square += error / kTrials;
  }
  EXPECT_LT(mean_square, 4);
  // 2 q + 1 components see more than the best q do, but never more than the best 2 q + 1.
  EXPECT_GT(mean_square, std::pow(TailNorm(e, 2 * q + 1) / best, 2));
}

}  // namespace
}  // namespace fedge
