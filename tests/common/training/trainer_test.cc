#include "common/training/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "common/base/thread_pool.h"
#include "common/formats/gguf.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

class TrainerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    gguf_ = testing::MakeTinyModelGguf({});
    model_ = BaseModel::FromGguf(GgufFile::Parse(gguf_, "tiny").value()).value();
    for (const char* text : {"the cat sat on the mat", "a dog and a cat", "the end is in sight"}) {
      Record record;
      record.spans = {{text, true}};
      for (Example& example : MakeExamples(record, model_->tokenizer(), 32)) {
        examples_.push_back(std::move(example));
      }
    }
    options_.steps = 12;
    options_.batch_size = 2;
    options_.length = 32;
    options_.learning_rate = {2e-2f, Schedule::kConstant, 0, 0, 1.0f};
    options_.seed = 4;
  }
  LoraAdapter NewAdapter() const {
    LoraTargets targets;
    targets.rank = 4;
    LoraAdapter adapter(model_->MakeLoraSpec(targets).value());
    adapter.InitializeForTraining(7);
    return adapter;
  }
  absl::StatusOr<TrainResult> Train(LoraAdapter& adapter, int threads = 1,
                                    const std::function<bool(const TrainProgress&)>& on_step = {}) {
    ThreadPool pool(threads);
    Transformer transformer(model_, &pool);
    return TrainAdapter(transformer, examples_, options_, on_step, adapter);
  }

  std::string gguf_;
  std::shared_ptr<const BaseModel> model_;
  std::vector<Example> examples_;
  TrainOptions options_;
};

TEST_F(TrainerTest, LowersTheLossAndReportsEveryStep) {
  LoraAdapter adapter = NewAdapter();
  std::vector<TrainProgress> seen;
  const absl::StatusOr<TrainResult> result = Train(adapter, 1, [&seen](const TrainProgress& p) {
    seen.push_back(p);
    return true;
  });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->num_examples, 3);
  EXPECT_LT(result->last_loss, result->first_loss - 0.5);
  EXPECT_GT(result->last_loss, 0.1);
  ASSERT_EQ(seen.size(), 12u);
  EXPECT_EQ(seen.front().step, 1);
  EXPECT_EQ(seen.front().steps, 12);
  EXPECT_EQ(seen.front().loss, result->first_loss);
  EXPECT_GT(seen.front().grad_norm, 0);
  EXPECT_EQ(seen.back().tokens, result->num_tokens);
}

TEST_F(TrainerTest, GivesTheSameBitsForAnyNumberOfThreads) {
  LoraAdapter one = NewAdapter();
  LoraAdapter two = NewAdapter();
  ASSERT_TRUE(Train(one, 1).ok());
  ASSERT_TRUE(Train(two, 3).ok());
  EXPECT_EQ(one.values(), two.values());
}

TEST_F(TrainerTest, MicroBatchesGiveTheWholeBatchsResultWithinRounding) {
  options_.precision = Precision::kFloat32;
  options_.batch_size = 5;
  options_.steps = 4;
  LoraAdapter whole = NewAdapter();
  const absl::StatusOr<TrainResult> expected = Train(whole);
  ASSERT_TRUE(expected.ok()) << expected.status();
  for (const int64_t micro_batch : {1, 2, 4}) {
    options_.micro_batch = micro_batch;
    LoraAdapter parts = NewAdapter();
    const absl::StatusOr<TrainResult> result = Train(parts);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->num_tokens, expected->num_tokens);
    EXPECT_NEAR(result->last_loss, expected->last_loss, 2e-5 * expected->last_loss);
    EXPECT_NEAR(result->first_loss, expected->first_loss, 1e-6 * expected->first_loss);
  }
}

TEST_F(TrainerTest, MomentsInBytesTrainAsWellAsFp32Ones) {
  options_.precision = Precision::kFloat32;
  options_.steps = 300;
  options_.learning_rate.peak = 5e-3f;
  LoraAdapter exact = NewAdapter();
  const absl::StatusOr<TrainResult> expected = Train(exact);
  options_.adamw.moment_bits = 8;
  LoraAdapter coded = NewAdapter();
  const absl::StatusOr<TrainResult> result = Train(coded);
  ASSERT_TRUE(expected.ok() && result.ok()) << result.status();
  EXPECT_LT(expected->mean_loss, 0.1 * expected->first_loss);  // there was something to learn
  EXPECT_NEAR(result->mean_loss, expected->mean_loss, 0.01 * expected->mean_loss);
  LoraAdapter again = NewAdapter();
  ASSERT_TRUE(Train(again, 3).ok());
  EXPECT_EQ(again.values(), coded.values());
}

TEST_F(TrainerTest, LoraPlusMovesBByTheRatioInTheFirstStep) {
  options_.steps = 1;
  options_.clip_norm = 0;
  LoraAdapter plain = NewAdapter();
  ASSERT_TRUE(Train(plain).ok());
  options_.lora_plus_ratio = 16;
  LoraAdapter plus = NewAdapter();
  ASSERT_TRUE(Train(plus).ok());
  for (int64_t i = 0; i < static_cast<int64_t>(plain.spec().modules().size()); ++i) {
    EXPECT_EQ(plain.a(i), plus.a(i));
    for (size_t j = 0; j < plain.b(i).size(); ++j) {
      EXPECT_NEAR(plus.b(i)[j], 16 * plain.b(i)[j], 1e-6f) << i << " " << j;  // B began at zero
    }
  }
}

TEST_F(TrainerTest, TheProximalTermPullsBackToTheStart) {
  options_.clip_norm = 0;
  const auto norms = [&](float mu) {
    options_.proximal_mu = mu;
    options_.steps = 2;
    LoraAdapter adapter = NewAdapter();
    std::vector<double> seen;
    EXPECT_TRUE(Train(adapter, 1, [&](const TrainProgress& p) {
                  seen.push_back(p.grad_norm);
                  return true;
                }).ok());
    return seen;
  };
  const std::vector<double> plain = norms(0), pulled = norms(1000);
  EXPECT_EQ(pulled[0], plain[0]);  // there is no distance yet
  options_.proximal_mu = 0;
  options_.steps = 1;
  LoraAdapter moved = NewAdapter();
  ASSERT_TRUE(Train(moved).ok());
  const LoraAdapter start = NewAdapter();
  double square = 0;
  for (size_t i = 0; i < start.values().size(); ++i) {
    square += std::pow(double{moved.values()[i]} - double{start.values()[i]}, 2);
  }
  const double pull = 1000 * std::sqrt(square);
  EXPECT_GT(pull, 10 * plain[1]);
  EXPECT_NEAR(pulled[1], pull, plain[1]);  // the triangle inequality
  options_.proximal_mu = -1;
  EXPECT_EQ(Train(moved).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(TrainerTest, DropoutIsTheSameForAnyThreadsAndWithinRoundingForAnyPasses) {
  options_.precision = Precision::kFloat32;
  options_.lora_dropout = 0.3f;
  options_.batch_size = 4;
  options_.steps = 3;
  LoraAdapter one = NewAdapter(), three = NewAdapter(), plain = NewAdapter();
  const absl::StatusOr<TrainResult> whole = Train(one, 1);
  ASSERT_TRUE(whole.ok()) << whole.status();
  ASSERT_TRUE(Train(three, 3).ok());
  EXPECT_EQ(one.values(), three.values());
  options_.micro_batch = 1;
  LoraAdapter parts = NewAdapter();
  const absl::StatusOr<TrainResult> split = Train(parts);
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_NEAR(split->last_loss, whole->last_loss, 2e-4 * whole->last_loss);
  options_.lora_dropout = 0;
  ASSERT_TRUE(Train(plain).ok());
  EXPECT_NE(plain.values(), one.values());
  options_.lora_dropout = 1;
  EXPECT_EQ(Train(plain).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(TrainerTest, TrainsTheSliceAndLeavesTheRest) {
  options_.adamw.weight_decay = 0.1f;  // must not touch the rest either
  for (const AdapterSlice& slice : std::vector<AdapterSlice>{{SliceFactors::kB, 0, kMaxLoraRank},
                                                             {SliceFactors::kBoth, 1, 3}}) {
    options_.slice = slice;
    LoraAdapter adapter = NewAdapter();
    const absl::StatusOr<TrainResult> result = Train(adapter);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_LT(result->last_loss, result->first_loss - 0.2) << DescribeSlice(slice);
    const LoraAdapter before = NewAdapter();
    std::vector<float> moved(adapter.values().size());
    for (size_t i = 0; i < moved.size(); ++i) moved[i] = adapter.values()[i] - before.values()[i];
    std::vector<float> inside = moved;
    const SliceLayout layout = SliceLayout::Create(adapter.spec(), slice).value();
    layout.ClearOutside(absl::MakeSpan(inside));
    EXPECT_EQ(moved, inside) << DescribeSlice(slice);
    const auto changed = std::count_if(moved.begin(), moved.end(), [](float x) { return x != 0; });
    EXPECT_GT(changed, layout.size() * 9 / 10);
  }
}

TEST_F(TrainerTest, TheFirstComponentsAreTrainedAsAnAdapterOfTheirRank) {
  options_.slice = {SliceFactors::kBoth, 0, 2};
  options_.precision = Precision::kFloat32;
  LoraAdapter nested = NewAdapter();  // B is zero: the other components do nothing
  LoraTargets targets;
  targets.rank = 2;
  targets.alpha = nested.spec().alpha() / 2;  // the same scale
  LoraAdapter small(model_->MakeLoraSpec(targets).value());
  for (size_t i = 0; i < small.spec().modules().size(); ++i) {
    const auto module = static_cast<int64_t>(i);
    const absl::Span<const float> a = std::as_const(nested).a(module);
    std::copy_n(a.begin(), small.a(module).size(), small.a(module).begin());
  }
  ASSERT_TRUE(Train(nested).ok());
  options_.slice = AdapterSlice();
  ASSERT_TRUE(Train(small).ok());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < small.spec().modules().size(); ++i) {
    const auto module = static_cast<int64_t>(i);
    const absl::Span<const float> expected = std::as_const(small).b(module);
    for (size_t j = 0; j < expected.size(); ++j) {
      difference += std::pow(expected[j] - std::as_const(nested).b(module)[j], 2);
      norm += std::pow(expected[j], 2);
    }
  }
  EXPECT_GT(norm, 0);
  EXPECT_LT(std::sqrt(difference / norm), 0.02);  // sums of another rank have another order
}

TEST_F(TrainerTest, GoesOnFromItsStateWithTheSameBytes) {
  options_.steps = 6;
  options_.lora_dropout = 0.1f;
  ThreadPool pool(1);
  Transformer transformer(model_, &pool);
  for (const int moment_bits : {32, 8}) {
    for (const SliceFactors factors : {SliceFactors::kBoth, SliceFactors::kB}) {
      options_.adamw.moment_bits = moment_bits;
      options_.slice.factors = factors;
      LoraAdapter straight = NewAdapter();
      const TrainResult expected = Train(straight).value();
      LoraAdapter resumed = NewAdapter();
      std::string state;
      for (int64_t step = 0; step < options_.steps; ++step) {
        LoraAdapter adapter = NewAdapter();
        auto training = AdapterTraining::Create(*model_, examples_, options_, adapter);
        ASSERT_TRUE(training.ok()) << training.status();
        if (step > 0) {
          ASSERT_TRUE(training->Restore(state, adapter).ok());
        }
        ASSERT_EQ(training->step(), step);
        ASSERT_TRUE(training->Step(transformer, nullptr, adapter).ok());
        state = training->Serialize(adapter);
        resumed = adapter;
        if (!training->done()) continue;
        EXPECT_EQ(training->result().mean_loss, expected.mean_loss);
        EXPECT_EQ(training->result().first_loss, expected.first_loss);
        EXPECT_EQ(training->result().num_tokens, expected.num_tokens);
        EXPECT_EQ(training->result().num_examples, expected.num_examples);
      }
      EXPECT_EQ(resumed.values(), straight.values()) << moment_bits;
    }
  }
}

TEST_F(TrainerTest, RefusesADamagedStateAndThatOfAnotherOptimizer) {
  ThreadPool pool(1);
  Transformer transformer(model_, &pool);
  LoraAdapter adapter = NewAdapter();
  auto training = AdapterTraining::Create(*model_, examples_, options_, adapter).value();
  ASSERT_TRUE(training.Step(transformer, nullptr, adapter).ok());
  const std::string state = training.Serialize(adapter);
  for (const size_t place : {size_t{0}, size_t{5}, state.size() / 2, state.size() - 1}) {
    std::string damaged = state;
    damaged[place] = static_cast<char>(damaged[place] ^ 1);
    auto other = AdapterTraining::Create(*model_, examples_, options_, adapter).value();
    EXPECT_EQ(other.Restore(damaged, adapter).code(), absl::StatusCode::kDataLoss) << place;
    EXPECT_FALSE(other.Restore(state.substr(0, place), adapter).ok()) << place;
  }
  options_.adamw.moment_bits = 8;
  auto other = AdapterTraining::Create(*model_, examples_, options_, adapter).value();
  EXPECT_EQ(other.Restore(state, adapter).code(), absl::StatusCode::kDataLoss);
}

TEST_F(TrainerTest, AStepWhoseWorkWasTurnedAwayChangesNothing) {
  for (const int threads : {1, 2}) {
    LoraAdapter straight = NewAdapter();
    ASSERT_TRUE(Train(straight).ok());
    ThreadPool pool(threads);
    WorkGate gate;
    Transformer transformer(model_, &pool);
    LoraAdapter adapter = NewAdapter();
    auto training = AdapterTraining::Create(*model_, examples_, options_, adapter).value();
    while (!training.done()) {
      if (training.step() == 3 && !gate.closed()) {
        pool.set_gate(&gate);
        gate.Close();
        const std::string before = training.Serialize(adapter);
        EXPECT_EQ(training
                      .Step(
                          transformer, [&] { return gate.closed(); }, adapter)
                      .status()
                      .code(),
                  absl::StatusCode::kCancelled);
        EXPECT_EQ(training.Serialize(adapter), before);
        pool.set_gate(nullptr);
      }
      ASSERT_TRUE(training.Step(transformer, nullptr, adapter).ok());
    }
    EXPECT_EQ(adapter.values(), straight.values());
  }
}

TEST_F(TrainerTest, StopsWhenAsked) {
  LoraAdapter adapter = NewAdapter();
  const absl::Status status =
      Train(adapter, 1, [](const TrainProgress& p) { return p.step < 3; }).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(status.message(), "stopped after step 3");
}

TEST_F(TrainerTest, NeedsATokenToTrainOn) {
  for (Example& example : examples_) {
    example.num_targets = 0;
    example.targets.assign(example.targets.size(), kNoToken);
  }
  LoraAdapter adapter = NewAdapter();
  EXPECT_EQ(Train(adapter).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(TrainerTest, NamesTheStepOfALossThatIsNotFinite) {
  LoraAdapter adapter = NewAdapter();
  adapter.values()[0] = std::numeric_limits<float>::quiet_NaN();
  adapter.b(0)[0] = 1.0f;
  const absl::Status status = Train(adapter).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("step 1: the loss is not finite"));
}

TEST_F(TrainerTest, RefusesOptionsOutOfRangeAndAForeignAdapter) {
  LoraAdapter adapter = NewAdapter();
  options_.steps = 0;
  EXPECT_EQ(Train(adapter).status().code(), absl::StatusCode::kInvalidArgument);
  options_.steps = 1;
  options_.adamw.moment_bits = 16;
  EXPECT_EQ(Train(adapter).status().code(), absl::StatusCode::kInvalidArgument);
  options_.adamw.moment_bits = 32;
  options_.lora_plus_ratio = 0;
  EXPECT_EQ(Train(adapter).status().code(), absl::StatusCode::kInvalidArgument);
  options_.lora_plus_ratio = 1;
  options_.micro_batch = -1;
  EXPECT_EQ(Train(adapter).status().code(), absl::StatusCode::kInvalidArgument);
  options_.micro_batch = 0;
  LoraAdapter foreign(
      LoraSpec::Create("llama", 8, {{"blk.9.attn_q.weight", 32, 32, 4, 0}}).value());
  EXPECT_EQ(Train(foreign).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace fedge
