#include "server/aggregation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <Eigen/SVD>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "common/base/rng.h"
#include "common/base/status.h"
#include "server/task_plan.h"

namespace fedge {
namespace {

using Eigen::MatrixXd;
using ::testing::HasSubstr;

constexpr int64_t kRank = 4;

// Two modules of `rank` components.
LoraSpec Spec(int64_t rank) {
  return LoraSpec::Create("llama", static_cast<float>(2 * rank),
                          {{.tensor = "a", .in_features = 40, .out_features = 30, .rank = rank},
                           {.tensor = "b", .in_features = 24, .out_features = 50, .rank = rank}})
      .value();
}

RunPlan Plan(AggregationMode mode, int64_t correction = 0) {
  RunPlan plan;
  plan.seed = 11;
  plan.aggregation = mode;
  plan.lora = Spec(kRank + correction);
  if (correction > 0) plan.trained_rank = kRank;
  return plan;
}

// A version in the middle of a run: no trained component is zero.
ModelState Before(const RunPlan& plan, bool holds_correction = false) {
  ModelState state{LoraAdapter(plan.lora), {}, 5};
  Rng rng(1);
  for (float& value : state.adapter.values()) value = static_cast<float>(rng.Normal() * 0.1);
  if (!holds_correction) {
    SliceLayout::Create(plan.lora, {.end_component = plan.trained_rank})
        .value()
        .ClearOutside(state.adapter.values());
  }
  return state;
}

struct Update {
  AdapterSlice slice;
  std::vector<float> delta;  // of the whole adapter
  uint64_t weight = 1;
};

// Nodes whose changes have a part in common, as those of one task have.
std::vector<Update> Updates(const RunPlan& plan, const std::vector<AdapterSlice>& slices) {
  std::vector<Update> updates;
  const auto size = static_cast<size_t>(plan.lora.num_parameters());
  Rng common(2);
  std::vector<double> shared(size);
  for (double& value : shared) value = common.Normal() * 0.03;
  for (size_t node = 0; node < slices.size(); ++node) {
    Rng rng = Rng::Stream(3, "node", node);
    Update& update = updates.emplace_back();
    update.slice = slices[node];
    update.weight = 1 + rng.Below(20);
    const SliceLayout layout = SliceLayout::Create(plan.lora, update.slice).value();
    update.delta.resize(size);
    for (size_t i = 0; i < size; ++i) {
      update.delta[i] = static_cast<float>(shared[i] + rng.Normal() * 0.05);
    }
    layout.ClearOutside(absl::MakeSpan(update.delta));
  }
  return updates;
}

std::vector<Update> Updates(const RunPlan& plan, size_t nodes = 6) {
  return Updates(plan, std::vector<AdapterSlice>(nodes, SliceOf(plan, 5)));
}

void Add(const RunPlan& plan, const Update& update, UpdateAggregator& sums) {
  const SliceLayout layout = SliceLayout::Create(plan.lora, update.slice).value();
  std::vector<float> values(static_cast<size_t>(layout.size()));
  layout.Gather(update.delta, absl::MakeSpan(values));
  ASSERT_TRUE(sums.Accumulate({.layout = &layout, .values = values}, update.weight).ok());
}

NextVersion Close(const RunPlan& plan, const ModelState& before,
                  const std::vector<Update>& updates) {
  UpdateAggregator sums(plan.lora, MakeAggregatorOptions(plan, before.version));
  for (const Update& update : updates) Add(plan, update, sums);
  absl::StatusOr<NextVersion> next = CloseRound(plan, before, sums);
  FEDGE_CHECK(next.ok(), next.status().message());
  EXPECT_EQ(next->state.version, before.version + 1);
  return *std::move(next);
}

MatrixXd A(const LoraModule& module, absl::Span<const float> flat) {
  MatrixXd a(module.rank, module.in_features);
  for (Eigen::Index i = 0; i < a.rows(); ++i) {
    for (Eigen::Index j = 0; j < a.cols(); ++j) {
      a(i, j) = double{flat[static_cast<size_t>(module.offset + i * a.cols() + j)]};
    }
  }
  return a;
}

MatrixXd B(const LoraModule& module, absl::Span<const float> flat) {
  MatrixXd b(module.out_features, module.rank);
  for (Eigen::Index i = 0; i < b.rows(); ++i) {
    for (Eigen::Index j = 0; j < b.cols(); ++j) {
      b(i, j) =
          double{flat[static_cast<size_t>(module.offset + module.a_size() + j * b.rows() + i)]};
    }
  }
  return b;
}

MatrixXd Product(const LoraModule& module, absl::Span<const float> flat) {
  return B(module, flat) * A(module, flat);
}

// The reference: dense, in double, one node after the other. Each component is averaged over the
// nodes that trained it.
MatrixXd MeanOfProducts(const LoraModule& module, const ModelState& before,
                        const std::vector<Update>& updates) {
  MatrixXd sum = MatrixXd::Zero(module.out_features, module.in_features);
  for (Eigen::Index c = 0; c < module.rank; ++c) {
    MatrixXd of_component = MatrixXd::Zero(sum.rows(), sum.cols());
    double weight = 0;
    for (const Update& update : updates) {
      if (c < update.slice.first_component || c >= update.slice.end_component) continue;
      std::vector<float> after = update.delta;
      for (size_t i = 0; i < after.size(); ++i) after[i] += before.adapter.values()[i];
      // In double: delta and version added without rounding.
      const MatrixXd a = A(module, before.adapter.values()).row(c) + A(module, update.delta).row(c);
      const MatrixXd b = B(module, before.adapter.values()).col(c) + B(module, update.delta).col(c);
      of_component += static_cast<double>(update.weight) * b * a;
      weight += static_cast<double>(update.weight);
    }
    if (weight > 0) {
      sum += of_component / weight;
    } else {
      sum += B(module, before.adapter.values()).col(c) * A(module, before.adapter.values()).row(c);
    }
  }
  return sum;
}

// What a round reports, exactly.
double ExactError(const RunPlan& plan, const ModelState& before, const std::vector<Update>& updates,
                  absl::Span<const float> aggregate) {
  double error = 0, total = 0;
  for (const LoraModule& module : plan.lora.modules()) {
    const MatrixXd mean = MeanOfProducts(module, before, updates);
    error += (mean - Product(module, aggregate)).squaredNorm();
    total += mean.squaredNorm();
  }
  return std::sqrt(error / total);
}

TEST(AggregationTest, FactorAveragingAveragesFactorsAndMeasuresWhatThatLeavesOut) {
  RunPlan plan = Plan(AggregationMode::kFactorAveraging);
  const ModelState before = Before(plan);
  const std::vector<Update> updates = Updates(plan);
  const NextVersion next = Close(plan, before, updates);
  double weight = 0;
  for (const Update& update : updates) weight += static_cast<double>(update.weight);
  for (size_t i = 0; i < next.state.adapter.values().size(); ++i) {
    double sum = 0;
    for (const Update& update : updates) {
      sum += static_cast<double>(update.weight) * double{update.delta[i]};
    }
    EXPECT_NEAR(next.state.adapter.values()[i], double{before.adapter.values()[i]} + sum / weight,
                1e-7);
  }
  // Unbiased in the squares: over many seeds the mean ratio of squares is 1.
  const double exact = ExactError(plan, before, updates, next.state.adapter.values());
  EXPECT_GT(exact, 0.05);
  double ratio = 0;
  constexpr int kSeeds = 100;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    plan.seed = seed;
    const double error = Close(plan, before, updates).aggregation_error;
    EXPECT_NEAR(error, exact, 0.4 * exact);  // 8 probes, 2 modules
    ratio += error * error / (exact * exact) / kSeeds;
  }
  EXPECT_NEAR(ratio, 1, 0.03);
}

TEST(AggregationTest, OneFactorAtATimeIsExact) {
  for (const AggregationMode mode : {AggregationMode::kRoLora, AggregationMode::kFfa}) {
    const RunPlan plan = Plan(mode);
    ModelState before = Before(plan);
    for (const uint64_t version : {4, 5}) {
      before.version = version;
      const std::vector<Update> updates =
          Updates(plan, std::vector<AdapterSlice>(5, SliceOf(plan, version)));
      const NextVersion next = Close(plan, before, updates);
      EXPECT_EQ(next.aggregation_error, 0);
      EXPECT_LT(ExactError(plan, before, updates, next.state.adapter.values()), 1e-6);
      for (const LoraModule& module : plan.lora.modules()) {
        const bool is_b = mode == AggregationMode::kFfa || version % 2 == 0;
        const auto values = next.state.adapter.values();
        EXPECT_EQ(A(module, values) == A(module, before.adapter.values()), is_b);
        EXPECT_EQ(B(module, values) == B(module, before.adapter.values()), !is_b);
      }
    }
  }
}

TEST(AggregationTest, FlexLoraIsNearlyTheBestOfItsRank) {
  const RunPlan plan = Plan(AggregationMode::kFlexLora);
  const ModelState before = Before(plan);
  const std::vector<Update> updates = Updates(plan);
  const NextVersion next = Close(plan, before, updates);
  double best = 0, total = 0, made = 0;
  for (const LoraModule& module : plan.lora.modules()) {
    const MatrixXd mean = MeanOfProducts(module, before, updates);
    const Eigen::VectorXd s = Eigen::JacobiSVD<MatrixXd>(mean).singularValues();
    best += s.tail(s.size() - kRank).squaredNorm();
    total += mean.squaredNorm();
    made += (mean - Product(module, next.state.adapter.values())).squaredNorm();
    // The gauge: A as long as the mean's A, its rows orthogonal.
    const MatrixXd gram =
        A(module, next.state.adapter.values()) * A(module, next.state.adapter.values()).transpose();
    EXPECT_LT((gram - gram(0, 0) * MatrixXd::Identity(kRank, kRank)).norm(), 1e-5 * gram(0, 0));
  }
  EXPECT_GE(made, best * (1 - 1e-6));
  EXPECT_LE(made, best * 1.1);
  EXPECT_NEAR(next.aggregation_error, std::sqrt(made / total), 0.3 * std::sqrt(made / total));
  // Averaging the factors leaves more out.
  RunPlan averaging = plan;
  averaging.aggregation = AggregationMode::kFactorAveraging;
  const NextVersion averaged = Close(averaging, before, updates);
  EXPECT_GT(ExactError(plan, before, updates, averaged.state.adapter.values()),
            std::sqrt(made / total));
}

TEST(AggregationTest, FlexLoraOrdersComponentsForNodesOfLowerRank) {
  RunPlan plan = Plan(AggregationMode::kFlexLora);
  plan.node_ranks = {{.rank = 2, .share = 0.5}};
  const ModelState before = Before(plan);
  const NextVersion next = Close(plan, before, Updates(plan));
  for (const LoraModule& module : plan.lora.modules()) {
    const MatrixXd b = B(module, next.state.adapter.values());
    for (Eigen::Index c = 1; c < kRank; ++c) EXPECT_LE(b.col(c).norm(), b.col(c - 1).norm());
    EXPECT_NEAR(b.col(0).dot(b.col(1)), 0, 1e-5 * b.squaredNorm());
  }
}

TEST(AggregationTest, FedExKeepsWhatAveragingLeavesOut) {
  const ModelState plain = Close(Plan(AggregationMode::kFactorAveraging),
                                 Before(Plan(AggregationMode::kFactorAveraging)),
                                 Updates(Plan(AggregationMode::kFactorAveraging)))
                               .state;
  double last = 1;
  for (const int64_t correction : {2, 6, 24}) {
    const RunPlan plan = Plan(AggregationMode::kFedEx, correction);
    const ModelState before = Before(plan);
    const std::vector<Update> updates = Updates(plan);
    const NextVersion next = Close(plan, before, updates);
    const double exact = ExactError(plan, before, updates, next.state.adapter.values());
    EXPECT_LT(exact, last);
    EXPECT_NEAR(next.aggregation_error, exact, 0.3 * exact + 1e-6) << correction;
    last = exact;
    // The trained components are the averages.
    for (const LoraModule& module : plan.lora.modules()) {
      MatrixXd expected = A(module, before.adapter.values()).topRows(kRank);
      double weight = 0;
      MatrixXd sum = MatrixXd::Zero(kRank, module.in_features);
      for (const Update& update : updates) {
        sum += static_cast<double>(update.weight) * A(module, update.delta).topRows(kRank);
        weight += static_cast<double>(update.weight);
      }
      expected += sum / weight;
      EXPECT_LT((A(module, next.state.adapter.values()).topRows(kRank) - expected).norm(), 1e-5);
    }
  }
  // 6 nodes of rank 4 differ from their mean in at most (6 - 1) * 4 directions, and one is there
  // already: 24 components hold all of it.
  EXPECT_LT(last, 1e-4);
  EXPECT_EQ(plain.version, 6u);
}

TEST(AggregationTest, FloraFoldsTheMeanOfProductsAndStartsAgain) {
  const RunPlan plan = Plan(AggregationMode::kFlora, 28);
  const ModelState before = Before(plan);
  const std::vector<Update> updates = Updates(plan);
  const NextVersion next = Close(plan, before, updates);
  EXPECT_LT(ExactError(plan, before, updates, next.state.adapter.values()), 1e-4);
  EXPECT_LT(next.aggregation_error, 1e-4);
  for (const LoraModule& module : plan.lora.modules()) {
    const auto values = next.state.adapter.values();
    EXPECT_EQ(B(module, values).leftCols(kRank).norm(), 0);
    const MatrixXd a = A(module, values).topRows(kRank);
    const double bound = 1 / std::sqrt(static_cast<double>(module.in_features));
    EXPECT_LE(a.cwiseAbs().maxCoeff(), bound);
    EXPECT_NEAR(a.squaredNorm() / static_cast<double>(a.size()), bound * bound / 3,
                0.25 * bound * bound / 3);
  }
  ModelState later = before;
  ++later.version;
  EXPECT_NE(A(plan.lora.modules()[0], Close(plan, later, updates).state.adapter.values())(0, 0),
            A(plan.lora.modules()[0], next.state.adapter.values())(0, 0));
}

TEST(AggregationTest, BoundedFloraIsNearlyTheBestOfItsRank) {
  const RunPlan plan = Plan(AggregationMode::kFlora, 5);
  const ModelState before = Before(plan, /*holds_correction=*/true);
  const std::vector<Update> updates = Updates(plan);
  const NextVersion next = Close(plan, before, updates);
  double best = 0, made = 0;
  for (const LoraModule& module : plan.lora.modules()) {
    const MatrixXd mean = MeanOfProducts(module, before, updates);
    const Eigen::VectorXd s = Eigen::JacobiSVD<MatrixXd>(mean).singularValues();
    best += s.tail(s.size() - 5).squaredNorm();
    made += (mean - Product(module, next.state.adapter.values())).squaredNorm();
  }
  EXPECT_GE(made, best * (1 - 1e-6));
  EXPECT_LE(made, best * 1.2);
}

TEST(AggregationTest, NodesOfTwoRanksShareTheirComponents) {
  for (const AggregationMode mode : {AggregationMode::kFactorAveraging, AggregationMode::kFedEx}) {
    RunPlan plan = Plan(mode, mode == AggregationMode::kFedEx ? 24 : 0);
    plan.node_ranks = {{.rank = 1, .share = 0.5}};
    const ModelState before = Before(plan);
    AdapterSlice whole = SliceOf(plan, 5);
    AdapterSlice small = whole;
    small.end_component = 1;
    const std::vector<Update> updates = Updates(plan, {whole, small, small, whole, small});
    const NextVersion next = Close(plan, before, updates);
    const double exact = ExactError(plan, before, updates, next.state.adapter.values());
    if (mode == AggregationMode::kFedEx) {
      EXPECT_LT(exact, 1e-4);
    } else {
      EXPECT_GT(exact, 0.03);
      EXPECT_NEAR(next.aggregation_error, exact, 0.3 * exact);
    }
  }
}

TEST(AggregationTest, GivesTheSameBitsForEveryOrderAndTreeOfShards) {
  for (const AggregationMode mode :
       {AggregationMode::kFactorAveraging, AggregationMode::kRoLora, AggregationMode::kFlexLora,
        AggregationMode::kFedEx, AggregationMode::kFlora}) {
    const bool corrects = mode == AggregationMode::kFedEx || mode == AggregationMode::kFlora;
    const RunPlan plan = Plan(mode, corrects ? 5 : 0);
    const ModelState before = Before(plan);
    std::vector<Update> updates = Updates(plan, 7);
    const NextVersion expected = Close(plan, before, updates);
    for (uint64_t trial = 0; trial < 5; ++trial) {
      Rng(trial).Shuffle(absl::MakeSpan(updates));
      std::vector<UpdateAggregator> shards(
          3, UpdateAggregator(plan.lora, MakeAggregatorOptions(plan, before.version)));
      for (size_t i = 0; i < updates.size(); ++i) Add(plan, updates[i], shards[i % 3]);
      ASSERT_TRUE(shards[1].Merge(shards[2]).ok());
      ASSERT_TRUE(shards[0].Merge(shards[1]).ok());
      const auto next = CloseRound(plan, before, shards[0]);
      ASSERT_TRUE(next.ok());
      EXPECT_EQ(next->state.adapter.values(), expected.state.adapter.values());
      EXPECT_EQ(next->aggregation_error, expected.aggregation_error);
    }
  }
}

TEST(AggregationTest, CoordinateMeanMovesAsFarAsThoseWhoSent) {
  RunPlan plan = Plan(AggregationMode::kFactorAveraging);
  plan.coordinate_mean = true;
  const ModelState before = Before(plan);
  UpdateAggregator sums(plan.lora, MakeAggregatorOptions(plan, before.version));
  const SliceLayout layout = SliceLayout::Whole(plan.lora);
  const std::vector<uint32_t> first = {3, 200};
  const std::vector<uint32_t> second = {200};
  ASSERT_TRUE(
      sums.Accumulate({.layout = &layout, .coordinates = first, .values = {1.0f, 1.0f}}, 1).ok());
  ASSERT_TRUE(
      sums.Accumulate({.layout = &layout, .coordinates = second, .values = {-1.0f}}, 3).ok());
  const auto next = CloseRound(plan, before, sums);
  ASSERT_TRUE(next.ok());
  for (size_t i = 0; i < before.adapter.values().size(); ++i) {
    const float step = i == 3 ? 1.0f : i == 200 ? -0.5f : 0.0f;
    EXPECT_EQ(next->state.adapter.values()[i], before.adapter.values()[i] + step) << i;
  }
  EXPECT_GT(next->aggregation_error, 0);  // beside the mean over all nodes
}

TEST(AggregationTest, OuterOptimizerStepsOnlyWhatWasTrained) {
  RunPlan plan = Plan(AggregationMode::kRoLora);
  plan.outer = {.kind = OuterOptimizerKind::kNesterov, .learning_rate = 0.5, .beta1 = 0.5};
  ModelState state = Before(plan);
  state.version = 4;  // trains B
  for (int round = 0; round < 3; ++round) {
    const std::vector<Update> updates =
        Updates(plan, std::vector<AdapterSlice>(3, SliceOf(plan, state.version)));
    const ModelState next = Close(plan, state, updates).state;
    ASSERT_EQ(next.momentum.size(), next.adapter.values().size());
    const SliceLayout layout = SliceLayout::Create(plan.lora, SliceOf(plan, state.version)).value();
    std::vector<float> inside(next.momentum.size());
    layout.Scatter(std::vector<float>(static_cast<size_t>(layout.size()), 1.0f),
                   absl::MakeSpan(inside));
    for (size_t i = 0; i < inside.size(); ++i) {
      const float before = state.momentum.empty() ? 0.0f : state.momentum[i];
      EXPECT_EQ(next.momentum[i] == before, inside[i] == 0) << round << " " << i;
      EXPECT_EQ(next.adapter.values()[i] == state.adapter.values()[i], inside[i] == 0);
    }
    state = next;
  }
}

TEST(AggregationTest, FedExStepsTheTrainedPartAndKeepsTheCorrection) {
  RunPlan plan = Plan(AggregationMode::kFedEx, 6);
  const ModelState before = Before(plan);
  const std::vector<Update> updates = Updates(plan);
  const ModelState plain = Close(plan, before, updates).state;
  plan.outer.learning_rate = 0.5;
  const ModelState half = Close(plan, before, updates).state;
  for (const LoraModule& module : plan.lora.modules()) {
    const MatrixXd start = A(module, before.adapter.values());
    const MatrixXd full_step = A(module, plain.adapter.values()) - start;
    const MatrixXd half_step = A(module, half.adapter.values()) - start;
    EXPECT_LT((half_step - 0.5 * full_step).topRows(kRank).norm(), 1e-6);
    EXPECT_EQ((half_step - full_step).bottomRows(6).norm(), 0);
  }
}

TEST(AggregationTest, RefusesWhatCouldNotBeServed) {
  RunPlan plan = Plan(AggregationMode::kFactorAveraging);
  plan.outer.learning_rate = 10;
  ModelState before = Before(plan);
  before.adapter.values()[7] = 65504;
  UpdateAggregator sums(plan.lora, MakeAggregatorOptions(plan, 5));
  const SliceLayout layout = SliceLayout::Whole(plan.lora);
  const std::vector<uint32_t> coordinates = {7};
  ASSERT_TRUE(
      sums.Accumulate({.layout = &layout, .coordinates = coordinates, .values = {1.0f}}, 1).ok());
  const auto next = CloseRound(plan, before, sums);
  EXPECT_EQ(next.status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(next.status().message()), HasSubstr("beyond 65504"));
}

TEST(AggregationTest, StartsFromZeroWithoutLosingTheFrame) {
  // Version 0: B is zero, and nodes that change nothing at all.
  for (const AggregationMode mode : {AggregationMode::kFlexLora, AggregationMode::kFedEx}) {
    const RunPlan plan = Plan(mode, mode == AggregationMode::kFedEx ? 3 : 0);
    ModelState before{LoraAdapter(plan.lora), {}, 0};
    before.adapter.InitializeForTraining(1);
    const SliceLayout layout = SliceLayout::Create(plan.lora, SliceOf(plan, 0)).value();
    UpdateAggregator sums(plan.lora, MakeAggregatorOptions(plan, 0));
    ASSERT_TRUE(sums.Accumulate({.layout = &layout}, 1).ok());
    const auto next = CloseRound(plan, before, sums);
    ASSERT_TRUE(next.ok()) << next.status();
    EXPECT_EQ(next->aggregation_error, 0);
    for (const LoraModule& module : plan.lora.modules()) {
      EXPECT_EQ(Product(module, next->state.adapter.values()).norm(), 0);
      EXPECT_NEAR(A(module, next->state.adapter.values()).topRows(kRank).norm(),
                  A(module, before.adapter.values()).topRows(kRank).norm(), 1e-5);
    }
  }
}

}  // namespace
}  // namespace fedge
