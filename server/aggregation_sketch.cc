#include "server/aggregation_sketch.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "hwy/cache_control.h"

namespace fedge {
namespace {

constexpr double kUnitsPerOne = 0x1p25;
static_assert((kMaxSketchMagnitude * kUnitsPerOne) + kMaxLoraRank <= 0x1p32,
              "an update's entry and its rounding, times a weight below 2^31, must fit a sum");

// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

uint64_t SignBits(uint64_t seed, int64_t row, int64_t word) {
  const uint64_t at = static_cast<uint64_t>(row) * 16 + static_cast<uint64_t>(word);
  return Mix(seed + (at + 1) * 0x9E3779B97F4A7C15u);
}

// The nearest integer, ties to even; |x| < 2^51. The sum's low bits are the integer.
int64_t Round(double x) {
  const double shifted = x + 0x1.8p52;
  int64_t bits = 0;
  std::memcpy(&bits, &shifted, sizeof(bits));
  return bits - 0x4338000000000000;
}

// sums[i] += weight * round(value * row[i])
void AddScaled(double value, const double* row, int64_t columns, int64_t weight, int64_t* sums) {
  for (int64_t i = 0; i < columns; ++i) sums[i] += weight * Round(value * row[i]);
}

// Calls f(a's run, b's run) for each module that has both.
template <typename F>
void ForEachPair(absl::Span<const RunValues> runs, const F& f) {
  for (size_t i = 1; i < runs.size(); ++i) {
    const RunValues& a = runs[i - 1];
    const RunValues& b = runs[i];
    if (a.run().module == b.run().module && !a.run().is_b && b.run().is_b) f(a, b);
  }
}

}  // namespace

void SignMatrix::AddRow(int64_t row, double value, double* sum) const {
  for (int64_t first = 0; first < columns_; first += 64) {
    uint64_t bits = SignBits(seed_, row, first / 64);
    const int64_t end = std::min(columns_, first + 64);
    // Signs are as good as random: what branches on them is predicted half of the time.
    const double signed_value[] = {-value, value};
    for (int64_t i = first; i < end; ++i, bits >>= 1) sum[i] += signed_value[bits & 1];
  }
}

Eigen::MatrixXd SignMatrix::Dense(int64_t rows) const {
  Eigen::MatrixXd result(columns_, rows);
  result.setZero();
  for (int64_t row = 0; row < rows; ++row) AddRow(row, 1.0, result.col(row).data());
  return result.transpose();
}

ProductSketch::ProductSketch(const LoraSpec& spec, SketchOptions options)
    : options_(std::move(options)) {
  // 16 words a row, see SignBits.
  FEDGE_CHECK(options_.range >= 0 && options_.probes >= 0 && right_columns() <= 1024 &&
                  options_.corange <= 1024,
              "sketch of ", right_columns(), " and ", options_.corange, " columns");
  FEDGE_CHECK(std::is_sorted(options_.group_ends.begin(), options_.group_ends.end()));
  for (size_t group = 0; group < options_.group_ends.size(); ++group) {
    group_of_.resize(static_cast<size_t>(options_.group_ends[group]), static_cast<int32_t>(group));
  }
  size_t size = 0;
  for (const LoraModule& module : spec.modules()) {
    const size_t groups = options_.group_ends.size();
    Module& to = modules_.emplace_back();
    to.in = module.in_features;
    to.out = module.out_features;
    to.right = size;
    size += groups * static_cast<size_t>(to.out * right_columns());
    to.left = size;
    size += groups * static_cast<size_t>(to.in * options_.corange);
  }
  sums_.resize(size);
}

SignMatrix ProductSketch::RightSigns(int64_t module) const {
  return SignMatrix(Mix(options_.seed) + static_cast<uint64_t>(module) * 2, right_columns());
}

SignMatrix ProductSketch::LeftSigns(int64_t module) const {
  return SignMatrix(Mix(~options_.seed) + static_cast<uint64_t>(module) * 2, options_.corange);
}

ProductSketch::Projection ProductSketch::Project(const RunValues& a, const RunValues& b) const {
  Projection result;
  const auto project = [](const RunValues& run, const SignMatrix& signs) {
    std::vector<double> rows(static_cast<size_t>(run.num_components() * signs.columns()));
    run.ForEach([&](int64_t component, int64_t column, float value) {
      if (value == 0) return;
      signs.AddRow(column, value,
                   rows.data() + (component - run.first_component()) * signs.columns());
    });
    return rows;
  };
  result.a = project(a, RightSigns(a.run().module));
  result.b = project(b, LeftSigns(b.run().module));
  return result;
}

// Sum over components of (largest value of the factor) * (the other's projection) bounds all
// entries of a column.
absl::Status ProductSketch::CheckBound(const RunValues& a, const RunValues& b,
                                       const Projection& projection) const {
  const auto bound = [](const RunValues& run, const std::vector<double>& rows, int64_t columns) {
    std::vector<double> peak(static_cast<size_t>(run.num_components()));
    run.ForEach([&](int64_t component, int64_t /*column*/, float value) {
      double& of_component = peak[static_cast<size_t>(component - run.first_component())];
      of_component = std::max(of_component, static_cast<double>(std::abs(value)));
    });
    double largest = 0;
    for (int64_t column = 0; column < columns; ++column) {
      double sum = 0;
      for (size_t c = 0; c < peak.size(); ++c) {
        sum += peak[c] *
               std::abs(rows[c * static_cast<size_t>(columns) + static_cast<size_t>(column)]);
      }
      largest = std::max(largest, sum);
    }
    return largest;
  };
  const double largest =
      std::max(bound(b, projection.a, right_columns()), bound(a, projection.b, options_.corange));
  if (!(largest <= kMaxSketchMagnitude)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the update's product of factors reaches ", largest, " in module ", a.run().module,
        "; the limit is ", kMaxSketchMagnitude, " (did the training diverge?)"));
  }
  return absl::OkStatus();
}

void ProductSketch::Add(const RunValues& a, const RunValues& b, const Projection& projection,
                        uint64_t weight) {
  const Module& module = modules_[static_cast<size_t>(a.run().module)];
  const auto add = [&](const RunValues& run, const std::vector<double>& rows, size_t offset,
                       int64_t features, int64_t columns) {
    if (columns == 0) return;
    const auto sums_of = [&](int64_t component, int64_t column) -> int64_t* {
      if (component >= static_cast<int64_t>(group_of_.size())) return nullptr;
      const int64_t group = group_of_[static_cast<size_t>(component)];
      return sums_.data() + offset + (group * features + column) * columns;
    };
    run.ForEach(
        [&](int64_t component, int64_t column, float value) {
          int64_t* const sums = sums_of(component, column);
          if (value == 0 || sums == nullptr) return;
          AddScaled(value * kUnitsPerOne,
                    rows.data() + (component - run.first_component()) * columns, columns,
                    static_cast<int64_t>(weight), sums);
        },
        [&](int64_t component, int64_t column) { hwy::Prefetch(sums_of(component, column)); });
  };
  add(b, projection.a, module.right, module.out, right_columns());
  add(a, projection.b, module.left, module.in, options_.corange);
}

absl::Status ProductSketch::Accumulate(absl::Span<const RunValues> runs, uint64_t weight) {
  std::vector<Projection> projections;
  absl::Status status;
  ForEachPair(runs, [&](const RunValues& a, const RunValues& b) {
    projections.push_back(Project(a, b));
    if (status.ok()) status = CheckBound(a, b, projections.back());
  });
  RETURN_IF_ERROR(status);
  size_t next = 0;
  ForEachPair(runs, [&](const RunValues& a, const RunValues& b) {
    Add(a, b, projections[next++], weight);
  });
  return absl::OkStatus();
}

void ProductSketch::Merge(const ProductSketch& other) {
  FEDGE_CHECK(other.sums_.size() == sums_.size() && other.options_.seed == options_.seed);
  for (size_t i = 0; i < sums_.size(); ++i) sums_[i] += other.sums_[i];
}

Eigen::MatrixXd ProductSketch::Quotient(size_t offset, int64_t rows, int64_t columns,
                                        absl::Span<const uint64_t> group_weights) const {
  FEDGE_CHECK(group_weights.size() == options_.group_ends.size());
  Eigen::MatrixXd result = Eigen::MatrixXd::Zero(rows, columns);
  const int64_t* sums = sums_.data() + offset;
  for (const uint64_t weight : group_weights) {
    const double divisor = static_cast<double>(weight) * kUnitsPerOne;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; weight > 0 && j < columns; ++j) {
        result(i, j) += static_cast<double>(sums[i * columns + j]) / divisor;
      }
    }
    sums += rows * columns;
  }
  return result;
}

Eigen::MatrixXd ProductSketch::Right(int64_t module,
                                     absl::Span<const uint64_t> group_weights) const {
  const Module& of = modules_[static_cast<size_t>(module)];
  return Quotient(of.right, of.out, right_columns(), group_weights);
}

Eigen::MatrixXd ProductSketch::Left(int64_t module,
                                    absl::Span<const uint64_t> group_weights) const {
  const Module& of = modules_[static_cast<size_t>(module)];
  return Quotient(of.left, of.in, options_.corange, group_weights).transpose();
}

}  // namespace fedge
