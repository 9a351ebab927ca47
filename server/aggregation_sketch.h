// What the sum of products over nodes needs beyond the sums of the factors, in memory that does not
// grow with the number of nodes.
//
// Node i's product is (B + dB_i)(A + dA_i). All of its weighted mean but the last term of
//   mean(B_i A_i) = B A + B mean(dA) + mean(dB) A + mean(dB_i dA_i)
// follows from the means of the factors. The last term, C, is second order in what a node changes;
// this class keeps it as seen through random matrices,
//   right: C [Omega | probes]  [out, range + probes]     left: Psi^T C  [corange, in]
// which are linear in the updates: they are summed as each comes. From `right` and `left` C is
// recovered up to a rank (server/aggregation_algebra.h); the probes, which take no part in that,
// measure what is left of it: E |C z|^2 = |C|_F^2 for a z of independent signs (Hutchinson 1990).
// The random matrices have entries +-1 made from a hash when they are needed, so they take no room.
//
// Exact sums: what a value adds is rounded once to a multiple of 2^-25 and summed as an integer,
// so the sketch has the same bits for any order and any tree of shards, and the same for a sparse
// update as for the same update sent dense. No entry of one update's sketch may pass
// kMaxSketchMagnitude: with its rounding that is below 2^32 units, weights together are below 2^31.
//
// Nested ranks: a component is averaged over the nodes that trained it, so nodes of other ranks
// divide by another weight. The components between two ranks of the run are a group with sketches
// of its own.
#ifndef FEDGE_SERVER_AGGREGATION_SKETCH_H_
#define FEDGE_SERVER_AGGREGATION_SKETCH_H_

#include <cstdint>
#include <vector>

#include <Eigen/Core>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/large_page_allocator.h"
#include "server/aggregation_runs.h"

namespace fedge {

inline constexpr double kMaxSketchMagnitude = 120;

// A matrix of independent +-1, [rows, columns]; row j's signs are the bits of hashes of (seed, j).
class SignMatrix {
 public:
  SignMatrix(uint64_t seed, int64_t columns) : seed_(seed), columns_(columns) {}

  int64_t columns() const { return columns_; }
  // sum[columns] += value * (row `row`)
  void AddRow(int64_t row, double value, double* sum) const;
  Eigen::MatrixXd Dense(int64_t rows) const;

 private:
  uint64_t seed_;
  int64_t columns_;
};

struct SketchOptions {
  uint64_t seed = 0;
  int64_t range = 0;    // columns of Omega; 0: C is only measured, not recovered
  int64_t corange = 0;  // columns of Psi; at least 2 * range + 1 (Tropp et al. 2017, eq. 4.4)
  int64_t probes = 8;
  // Where the groups of components end, ascending; components from the last on have no product.
  std::vector<int64_t> group_ends;
};

// Not thread-safe. Memory: 8 bytes * groups * ((range + probes) * out + corange * in) a module.
class ProductSketch {
 public:
  ProductSketch(const LoraSpec& spec, SketchOptions options);

  // Adds weight * dB dA. An update of one factor only has no such product and adds nothing.
  // InvalidArgument: an entry beyond kMaxSketchMagnitude; nothing is added then. The owner checks
  // the weights.
  absl::Status Accumulate(absl::Span<const RunValues> runs, uint64_t weight);
  void Merge(const ProductSketch& other);  // of the same spec and options

  const SketchOptions& options() const { return options_; }
  // [Omega | probes] and Psi of a module; the same for all of one seed.
  SignMatrix RightSigns(int64_t module) const;
  SignMatrix LeftSigns(int64_t module) const;
  // Sums divided by the weight of their group; a group without weight counts as zero.
  Eigen::MatrixXd Right(int64_t module, absl::Span<const uint64_t> group_weights) const;
  Eigen::MatrixXd Left(int64_t module, absl::Span<const uint64_t> group_weights) const;

 private:
  struct Module {
    int64_t in = 0;
    int64_t out = 0;
    size_t right = 0;  // offsets in sums_: [groups][out][range + probes]
    size_t left = 0;   // [groups][in][corange]
  };
  // dA [Omega | probes] and dB^T Psi of one update and module, a row for each component.
  struct Projection {
    std::vector<double> a;
    std::vector<double> b;
  };

  int64_t right_columns() const { return options_.range + options_.probes; }
  Projection Project(const RunValues& a, const RunValues& b) const;
  absl::Status CheckBound(const RunValues& a, const RunValues& b,
                          const Projection& projection) const;
  void Add(const RunValues& a, const RunValues& b, const Projection& projection, uint64_t weight);
  Eigen::MatrixXd Quotient(size_t offset, int64_t rows, int64_t columns,
                           absl::Span<const uint64_t> group_weights) const;

  SketchOptions options_;
  std::vector<int32_t> group_of_;  // by component
  std::vector<Module> modules_;
  LargePageVector<int64_t> sums_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_AGGREGATION_SKETCH_H_
