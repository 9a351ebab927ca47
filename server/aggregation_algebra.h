// Small dense algebra on products of thin factors, in double: what aggregation does with a module
// once a round. No product of two factors is ever formed: cost O((rank)^2 (in + out)).
// Internal to aggregation.cc and its tests.
#ifndef FEDGE_SERVER_AGGREGATION_ALGEBRA_H_
#define FEDGE_SERVER_AGGREGATION_ALGEBRA_H_

#include <Eigen/Core>

#include "absl/types/span.h"

namespace fedge {

// The matrix b a, kept as its factors.
struct FactorPair {
  Eigen::MatrixXd b;  // [out, q]
  Eigen::MatrixXd a;  // [q, in]
};

// u diag(s) v^T with orthonormal columns of u and v, s descending.
struct ThinSvd {
  Eigen::MatrixXd u;  // [out, q]
  Eigen::VectorXd s;  // [q]
  Eigen::MatrixXd v;  // [in, q]
};

// The sum of products as one product: [b_1 b_2 ...] [a_1; a_2; ...].
FactorPair Stack(absl::Span<const FactorPair> terms);

// The best approximation of `product` of rank at most `rank`, without singular values that are
// zero beside the largest (so q may be less than `rank`, also 0): QR of both factors, SVD of the
// small core.
ThinSvd TruncatedSvd(const FactorPair& product, int64_t rank);

// E from right = E Omega [out, k] and left = Psi^T E [l, in], given psi [out, l] with l > k:
// E ~= Q (Psi^T Q)^+ left, Q an orthonormal basis of `right` (Halko, Martinsson, Tropp 2011, sec.
// 5.5; Tropp, Yurtsever, Udell, Cevher 2017, alg. 4). Exact when E has rank at most k.
FactorPair RecoverFromSketch(const Eigen::MatrixXd& right, const Eigen::MatrixXd& left,
                             const Eigen::MatrixXd& psi);

// u diag(s) v^T as factors of exactly `rank` components, in one of two gauges:
// - SplitEvenly: both factors carry the root of the singular values, largest first; components
//   beyond the SVD's are zero.
FactorPair SplitEvenly(const ThinSvd& svd, int64_t rank);
// - AlignToFrame: A has orthogonal rows of one length, that of `frame`'s [rank, in] rows in the
//   root mean square, and is as near to `frame` as such a matrix with these rows' space can be
//   (orthogonal Procrustes, Schoenemann 1966); B carries the rest. A LoRA trains best like that: A
//   of order 1, B small; and coordinates keep their meaning as far as the subspace lets them.
//   Components the SVD does not have keep directions of `frame`. With `ordered`, rows are the
//   singular directions by size instead, so that the first components are the best of lower rank.
//   Needs rank <= in.
FactorPair AlignToFrame(const ThinSvd& svd, const Eigen::MatrixXd& frame, bool ordered);

}  // namespace fedge

#endif  // FEDGE_SERVER_AGGREGATION_ALGEBRA_H_
