#include "server/aggregation_algebra.h"

#include <Eigen/QR>
#include <Eigen/SVD>
#include <algorithm>
#include <cmath>

#include "common/base/status.h"

namespace fedge {
namespace {

// Singular values below this share of the largest are rounding.
constexpr double kRankTolerance = 1e-12;

using Eigen::MatrixXd;

struct ThinQr {
  MatrixXd q;  // [rows, k], k = min(rows, columns)
  MatrixXd r;  // [k, columns]
};

ThinQr QrOf(const MatrixXd& matrix) {
  const Eigen::Index k = std::min(matrix.rows(), matrix.cols());
  const Eigen::HouseholderQR<MatrixXd> qr(matrix);
  return {qr.householderQ() * MatrixXd::Identity(matrix.rows(), k),
          qr.matrixQR().topRows(k).triangularView<Eigen::Upper>()};
}

// `rank` orthonormal columns: those of `first`, then directions of `more`'s columns, those with the
// longest parts outside `first` before others, then any. Householder's Q has orthonormal columns
// even where the matrix has none left to offer.
MatrixXd CompleteBasis(const MatrixXd& first, const MatrixXd& more, Eigen::Index rank) {
  const Eigen::Index missing = rank - first.cols();
  if (missing == 0) return first;
  const MatrixXd rest = more - first * (first.transpose() * more).eval();
  const Eigen::ColPivHouseholderQR<MatrixXd> pivoted(rest);
  MatrixXd columns(first.rows(), rank);
  columns.leftCols(first.cols()) = first;
  columns.rightCols(missing) = (rest * pivoted.colsPermutation()).leftCols(missing);
  columns.rightCols(missing) = QrOf(columns).q.rightCols(missing).eval();
  return columns;
}

}  // namespace

FactorPair Stack(absl::Span<const FactorPair> terms) {
  FEDGE_CHECK(!terms.empty());
  Eigen::Index components = 0;
  for (const FactorPair& term : terms) components += term.b.cols();
  FactorPair result{MatrixXd(terms[0].b.rows(), components),
                    MatrixXd(components, terms[0].a.cols())};
  Eigen::Index at = 0;
  for (const FactorPair& term : terms) {
    result.b.middleCols(at, term.b.cols()) = term.b;
    result.a.middleRows(at, term.b.cols()) = term.a;
    at += term.b.cols();
  }
  return result;
}

ThinSvd TruncatedSvd(const FactorPair& product, int64_t rank) {
  const ThinQr b = QrOf(product.b);
  const ThinQr a = QrOf(product.a.transpose());
  const Eigen::BDCSVD<MatrixXd> core(b.r * a.r.transpose(),
                                     Eigen::ComputeThinU | Eigen::ComputeThinV);
  const Eigen::VectorXd& s = core.singularValues();
  Eigen::Index keep = 0;
  while (keep < std::min<Eigen::Index>(rank, s.size()) && s[keep] > kRankTolerance * s[0]) ++keep;
  return {b.q * core.matrixU().leftCols(keep), s.head(keep), a.q * core.matrixV().leftCols(keep)};
}

FactorPair RecoverFromSketch(const MatrixXd& right, const MatrixXd& left, const MatrixXd& psi) {
  MatrixXd q = QrOf(right).q;
  const MatrixXd seen = psi.transpose() * q;
  MatrixXd a = Eigen::CompleteOrthogonalDecomposition<MatrixXd>(seen).solve(left);
  return {std::move(q), std::move(a)};
}

FactorPair SplitEvenly(const ThinSvd& svd, int64_t rank) {
  FEDGE_CHECK(svd.s.size() <= rank);
  FactorPair result{MatrixXd::Zero(svd.u.rows(), rank), MatrixXd::Zero(rank, svd.v.rows())};
  const Eigen::VectorXd root = svd.s.cwiseSqrt();
  result.b.leftCols(svd.s.size()) = svd.u * root.asDiagonal();
  result.a.topRows(svd.s.size()) = root.asDiagonal() * svd.v.transpose();
  return result;
}

FactorPair AlignToFrame(const ThinSvd& svd, const MatrixXd& frame, bool ordered) {
  const Eigen::Index rank = frame.rows();
  FEDGE_CHECK(svd.s.size() <= rank && rank <= frame.cols());
  const MatrixXd basis = CompleteBasis(svd.v, frame.transpose(), rank);  // [in, rank]
  MatrixXd rotation = MatrixXd::Identity(rank, rank);
  if (!ordered) {
    // The orthogonal R that brings R^T basis^T nearest to the frame: polar factor of basis^T
    // frame^T.
    const Eigen::BDCSVD<MatrixXd> polar(basis.transpose() * frame.transpose(),
                                        Eigen::ComputeFullU | Eigen::ComputeFullV);
    rotation = polar.matrixU() * polar.matrixV().transpose();
  }
  double length = frame.norm() / std::sqrt(static_cast<double>(rank));
  if (!(length > 0)) length = 1;
  const Eigen::Index known = svd.s.size();
  FactorPair result;
  result.a = length * (basis * rotation).transpose();
  result.b = svd.u * svd.s.asDiagonal() * rotation.topRows(known) / length;
  return result;
}

}  // namespace fedge
