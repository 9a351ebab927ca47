#include "server/aggregation.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "server/aggregation_algebra.h"

namespace fedge {
namespace {

// A version travels as fp16: values beyond it could not be served.
constexpr float kLargestServedValue = 65504;
constexpr int64_t kProbes = 8;
// More components than this of a correction are left out: sketches grow with them.
constexpr int64_t kMaxSketchedRank = 64;
constexpr int64_t kOversampling = 8;

using Eigen::MatrixXd;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Components [first, end) of a module in a flat buffer.
FactorPair FactorsOf(const LoraModule& module, absl::Span<const float> flat, int64_t first,
                     int64_t end) {
  const float* const at = flat.data() + module.offset;
  const Eigen::Map<const RowMajor> a(at, module.rank, module.in_features);
  const Eigen::Map<const RowMajor> b(at + module.a_size(), module.rank, module.out_features);
  return {b.middleRows(first, end - first).transpose().cast<double>(),
          a.middleRows(first, end - first).cast<double>()};
}

void StoreFactors(const LoraModule& module, const FactorPair& factors, int64_t first,
                  absl::Span<float> flat) {
  float* const at = flat.data() + module.offset;
  Eigen::Map<RowMajor> a(at, module.rank, module.in_features);
  Eigen::Map<RowMajor> b(at + module.a_size(), module.rank, module.out_features);
  a.middleRows(first, factors.a.rows()) = factors.a.cast<float>();
  b.middleRows(first, factors.a.rows()) = factors.b.transpose().cast<float>();
}

class RoundCloser {
 public:
  RoundCloser(const RunPlan& plan, const ModelState& before, const UpdateAggregator& sums,
              absl::Span<const float> mean)
      : plan_(plan), before_(before), sums_(sums) {
    mean_.resize(before.adapter.values().size());
    if (mean.empty()) {
      const absl::Status status = sums.Mean(absl::MakeSpan(mean_));
      FEDGE_CHECK(status.ok(), status.message());
    } else {
      mean_.assign(mean.begin(), mean.end());
    }
    group_weights_ = sums.GroupWeights();
  }

  absl::StatusOr<NextVersion> Close();

 private:
  // What is known of a module's mean of products: means + E, E in factors and as probes see it.
  struct ModuleMeans {
    FactorPair means;        // mean(B_i), mean(A_i): all components
    FactorPair residual;     // ~ E; without components where the mode does not use it
    MatrixXd probes;         // random signs [in, n]
    MatrixXd residual_seen;  // E probes [out, n]
  };

  ModuleMeans MeansOf(int64_t index) const;
  // Replaces the module's factors as the mode says, except for what the optimizer does.
  void Reshape(const LoraModule& module, const ModuleMeans& means, absl::Span<float> flat) const;
  FactorPair FreshComponents(const LoraModule& module, int64_t count) const;
  void Measure(const LoraModule& module, const ModuleMeans& means,
               absl::Span<const float> aggregate);
  void StepOptimizer(absl::Span<const float> mean, ModelState& next) const;

  int64_t trained(const LoraModule& module) const {
    return std::min(plan_.trained_rank, module.rank);
  }

  const RunPlan& plan_;
  const ModelState& before_;
  const UpdateAggregator& sums_;
  std::vector<float> mean_;  // by component
  std::vector<uint64_t> group_weights_;
  double error_square_ = 0;
  double total_square_ = 0;
};

RoundCloser::ModuleMeans RoundCloser::MeansOf(int64_t index) const {
  const LoraModule& module = before_.adapter.spec().modules()[static_cast<size_t>(index)];
  const int64_t rank = module.rank;
  const FactorPair change = FactorsOf(module, mean_, 0, rank);
  ModuleMeans result;
  result.means = FactorsOf(module, before_.adapter.values(), 0, rank);
  result.means.a += change.a;
  result.means.b += change.b;
  result.residual = {MatrixXd(module.out_features, 0), MatrixXd(0, module.in_features)};
  const ProductSketch* const sketch = sums_.sketch();
  if (sketch == nullptr) {  // one factor at a time: E = 0
    const SignMatrix signs(Rng::Stream(plan_.seed, "probes", before_.version).Next(), kProbes);
    result.probes = signs.Dense(module.in_features);
    result.residual_seen = MatrixXd::Zero(module.out_features, kProbes);
    return result;
  }
  // E = C - mean(dB) mean(dA), whatever was there before.
  const MatrixXd omega = sketch->RightSigns(index).Dense(module.in_features);
  const MatrixXd right =
      sketch->Right(index, group_weights_) - change.b * (change.a * omega).eval();
  const int64_t range = sketch->options().range;
  result.probes = omega.rightCols(sketch->options().probes);
  result.residual_seen = right.rightCols(sketch->options().probes);
  if (range > 0) {
    const MatrixXd psi = sketch->LeftSigns(index).Dense(module.out_features);
    const MatrixXd left =
        sketch->Left(index, group_weights_) - (psi.transpose() * change.b).eval() * change.a;
    result.residual = RecoverFromSketch(right.leftCols(range), left, psi);
  }
  return result;
}

FactorPair RoundCloser::FreshComponents(const LoraModule& module, int64_t count) const {
  // As LoraAdapter::InitializeForTraining, from a stream of this version.
  Rng rng = Rng::Stream(plan_.seed, absl::StrCat("flora/", module.tensor, "/", module.first_row),
                        before_.version);
  const double bound = std::sqrt(1.0 / static_cast<double>(module.in_features));
  FactorPair fresh{MatrixXd::Zero(module.out_features, count), MatrixXd(count, module.in_features)};
  for (Eigen::Index i = 0; i < fresh.a.rows(); ++i) {
    for (Eigen::Index j = 0; j < fresh.a.cols(); ++j) {
      fresh.a(i, j) = bound * (2.0 * rng.Uniform() - 1.0);
    }
  }
  return fresh;
}

void RoundCloser::Reshape(const LoraModule& module, const ModuleMeans& means,
                          absl::Span<float> flat) const {
  const int64_t rank = trained(module);
  const int64_t frozen = module.rank - rank;
  const FactorPair own{means.means.b.leftCols(rank), means.means.a.topRows(rank)};
  const FactorPair kept{means.means.b.rightCols(frozen), means.means.a.bottomRows(frozen)};
  switch (plan_.aggregation) {
    case AggregationMode::kFlexLora: {
      const ThinSvd svd = TruncatedSvd(Stack({own, means.residual}), rank);
      StoreFactors(module, AlignToFrame(svd, own.a, !plan_.node_ranks.empty()), 0, flat);
      break;
    }
    case AggregationMode::kFedEx:
      StoreFactors(module, SplitEvenly(TruncatedSvd(Stack({kept, means.residual}), frozen), frozen),
                   rank, flat);
      break;
    case AggregationMode::kFlora:
      StoreFactors(module,
                   SplitEvenly(TruncatedSvd(Stack({kept, own, means.residual}), frozen), frozen),
                   rank, flat);
      StoreFactors(module, FreshComponents(module, rank), 0, flat);
      break;
    default:
      break;
  }
}

void RoundCloser::Measure(const LoraModule& module, const ModuleMeans& means,
                          absl::Span<const float> aggregate) {
  const MatrixXd exact =
      means.means.b * (means.means.a * means.probes).eval() + means.residual_seen;
  const FactorPair made = FactorsOf(module, aggregate, 0, module.rank);
  const double scale = static_cast<double>(before_.adapter.spec().scale(module));
  error_square_ += scale * scale * (exact - made.b * (made.a * means.probes).eval()).squaredNorm();
  total_square_ += scale * scale * exact.squaredNorm();
}

// What was trained goes back to where it was and takes the optimizer's step from there.
void RoundCloser::StepOptimizer(absl::Span<const float> mean, ModelState& next) const {
  const absl::Span<float> values = next.adapter.values();
  if (next.momentum.size() != plan_.outer.StateSize(values.size())) {
    next.momentum.resize(plan_.outer.StateSize(values.size()));
    plan_.outer.InitializeState(absl::MakeSpan(next.momentum));
  }
  for (const SliceRun& run : sums_.TrainedRuns()) {
    const auto first = static_cast<size_t>(run.offset);
    const auto size = static_cast<size_t>(run.size);
    const absl::Span<const float> from = before_.adapter.values().subspan(first, size);
    std::copy(from.begin(), from.end(), values.begin() + run.offset);
    plan_.outer.Step(mean.subspan(first, size), first, values, absl::MakeSpan(next.momentum));
  }
}

absl::StatusOr<NextVersion> RoundCloser::Close() {
  std::vector<float> step = mean_;
  if (plan_.coordinate_mean) {
    const absl::Status status = sums_.CoordinateMean(absl::MakeSpan(step));
    FEDGE_CHECK(status.ok(), status.message());
  }
  // The version as the mode makes it, without the outer optimizer.
  LoraAdapter aggregate = before_.adapter;
  for (size_t i = 0; i < step.size(); ++i) aggregate.values()[i] += step[i];
  const std::vector<LoraModule>& modules = aggregate.spec().modules();
  const bool exact = sums_.sketch() == nullptr && !plan_.coordinate_mean;
  for (size_t i = 0; !exact && i < modules.size(); ++i) {
    const ModuleMeans means = MeansOf(static_cast<int64_t>(i));
    if (Decomposes(plan_.aggregation)) Reshape(modules[i], means, aggregate.values());
    Measure(modules[i], means, aggregate.values());
  }
  NextVersion next;
  next.state.momentum = before_.momentum;
  next.state.typical_norm = before_.typical_norm;
  next.state.version = before_.version + 1;
  next.state.adapter = std::move(aggregate);
  if (!RotatesFrame(plan_.aggregation)) StepOptimizer(step, next.state);
  for (const float value : next.state.adapter.values()) {
    if (!(std::abs(value) <= kLargestServedValue)) {
      return absl::OutOfRangeError(
          absl::StrCat("the aggregate has a value beyond ", kLargestServedValue,
                       ": lower run.training.learning_rate or run.admission.norm_ratio"));
    }
  }
  if (total_square_ > 0) next.aggregation_error = std::sqrt(error_square_ / total_square_);
  return next;
}

}  // namespace

AggregatorOptions MakeAggregatorOptions(const RunPlan& plan, uint64_t version) {
  AggregatorOptions options;
  options.coordinate_weights = plan.coordinate_mean;
  // What a rule makes of each coordinate has no mean of products to be measured against.
  if (plan.robust.rule != RobustRule::kNone && !WeighsUpdates(plan.robust.rule)) return options;
  if (plan.aggregation == AggregationMode::kRoLora || plan.aggregation == AggregationMode::kFfa) {
    return options;
  }
  SketchOptions& sketch = options.sketch.emplace();
  sketch.seed = Rng::Stream(plan.seed, "sketch", version).Next();
  sketch.probes = kProbes;
  int64_t rank = 0;
  for (const LoraModule& module : plan.lora.modules()) rank = std::max(rank, module.rank);
  const int64_t trained = std::min(plan.trained_rank, rank);
  for (const NodeRank& node : plan.node_ranks) sketch.group_ends.push_back(node.rank);
  std::sort(sketch.group_ends.begin(), sketch.group_ends.end());
  sketch.group_ends.push_back(trained);
  sketch.group_ends.erase(std::unique(sketch.group_ends.begin(), sketch.group_ends.end()),
                          sketch.group_ends.end());
  if (Decomposes(plan.aggregation)) {
    // Of rank r the sketches recover about the best approximation: Tropp et al. 2017, section 4.5.
    const int64_t target = std::min(std::max(trained, rank - trained), kMaxSketchedRank);
    sketch.range = 2 * target + kOversampling;
    sketch.corange = 2 * sketch.range + 1;
  }
  return options;
}

absl::StatusOr<NextVersion> CloseRound(const RunPlan& plan, const ModelState& before,
                                       const UpdateAggregator& sums, absl::Span<const float> mean) {
  return RoundCloser(plan, before, sums, mean).Close();
}

}  // namespace fedge
