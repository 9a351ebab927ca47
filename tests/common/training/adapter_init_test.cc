#include "common/training/adapter_init.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <Eigen/SVD>
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/model/transformer.h"
#include "common/tensor/quantize.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

class AdapterInitTest : public ::testing::Test {
 protected:
  AdapterInitTest() : pool_(2) {
    testing::TinyModelOptions options;
    options.embedding_length = 64;
    options.feed_forward_length = 96;
    full_bytes_ = testing::MakeTinyModelGguf(options);
    options.dtype = DType::kQ4_0;
    base_bytes_ = testing::MakeTinyModelGguf(options);
    full_ = GgufFile::Parse(full_bytes_, "full.gguf").value();
    base_ = BaseModel::FromGguf(GgufFile::Parse(base_bytes_, "base.gguf").value()).value();
  }

  LoraAdapter NewAdapter(int64_t rank) const {
    LoraTargets targets;
    targets.rank = rank;
    targets.alpha = 12;
    return LoraAdapter(base_->MakeLoraSpec(targets).value());
  }
  static Eigen::MatrixXd Dense(const WeightMatrix& matrix) {
    std::vector<float> values(static_cast<size_t>(matrix.rows * matrix.cols));
    Dequantize(matrix.type, matrix.data, matrix.rows * matrix.cols, values.data());
    Eigen::MatrixXd dense(matrix.rows, matrix.cols);
    for (int64_t i = 0; i < matrix.rows; ++i) {
      for (int64_t j = 0; j < matrix.cols; ++j) {
        dense(i, j) = double{values[static_cast<size_t>(i * matrix.cols + j)]};
      }
    }
    return dense;
  }
  Eigen::MatrixXd Error(const LoraModule& module) const {
    return Dense(full_->FindTensor(module.tensor)->AsMatrix().value()) -
           Dense(base_->file().FindTensor(module.tensor)->AsMatrix().value());
  }
  // scale B A
  static Eigen::MatrixXd Delta(const LoraAdapter& adapter, int64_t i) {
    const LoraModule& module = adapter.spec().modules()[static_cast<size_t>(i)];
    const auto in = static_cast<size_t>(module.in_features);
    const auto out = static_cast<size_t>(module.out_features);
    Eigen::MatrixXd delta = Eigen::MatrixXd::Zero(module.out_features, module.in_features);
    for (size_t r = 0; r < static_cast<size_t>(module.rank); ++r) {
      for (size_t o = 0; o < out; ++o) {
        for (size_t k = 0; k < in; ++k) {
          delta(static_cast<int64_t>(o), static_cast<int64_t>(k)) +=
              double{adapter.b(i)[r * out + o]} * double{adapter.a(i)[r * in + k]};
        }
      }
    }
    return delta * double{adapter.spec().scale(module)};
  }

  ThreadPool pool_;
  std::string full_bytes_, base_bytes_;
  std::shared_ptr<const GgufFile> full_;
  std::shared_ptr<const BaseModel> base_;
};

TEST_F(AdapterInitTest, IsTheBestApproximationOfTheQuantizationError) {
  LoraAdapter adapter = NewAdapter(6);
  ASSERT_TRUE(StartFromQuantizationError(*base_, *full_, 3, pool_, adapter).ok());
  for (size_t i = 0; i < adapter.spec().modules().size(); ++i) {
    const LoraModule& module = adapter.spec().modules()[i];
    const Eigen::MatrixXd error = Error(module);
    const Eigen::VectorXd values = Eigen::BDCSVD<Eigen::MatrixXd>(error).singularValues();
    const double best = std::sqrt(values.tail(values.size() - 6).squaredNorm());
    const double left = (error - Delta(adapter, static_cast<int64_t>(i))).norm();
    EXPECT_GE(left, best * (1 - 1e-5)) << module.tensor;
    EXPECT_LE(left, best * 1.001) << module.tensor;
    EXPECT_LT(left, 0.95 * error.norm()) << module.tensor;
  }
}

TEST_F(AdapterInitTest, SplitsTheSingularValuesEvenly) {
  LoraAdapter adapter = NewAdapter(4);
  ASSERT_TRUE(StartFromQuantizationError(*base_, *full_, 3, pool_, adapter).ok());
  for (int64_t i = 0; i < static_cast<int64_t>(adapter.spec().modules().size()); ++i) {
    double a = 0, b = 0;
    for (const float x : adapter.a(i)) a += double{x} * double{x};
    for (const float x : adapter.b(i)) b += double{x} * double{x};
    EXPECT_NEAR(a, b, 1e-4 * a);
  }
}

TEST_F(AdapterInitTest, FullRankGivesTheUnquantizedModelBack) {
  LoraTargets targets;
  targets.rank = 64;
  LoraAdapter adapter(base_->MakeLoraSpec(targets).value());
  ASSERT_TRUE(StartFromQuantizationError(*base_, *full_, 3, pool_, adapter).ok());
  for (size_t i = 0; i < adapter.spec().modules().size(); ++i) {
    const Eigen::MatrixXd error = Error(adapter.spec().modules()[i]);
    EXPECT_LT((error - Delta(adapter, static_cast<int64_t>(i))).norm(), 1e-4 * error.norm());
  }
}

TEST_F(AdapterInitTest, IsTheSameForAnyThreadsAndFollowsTheSeed) {
  ThreadPool one(1);
  LoraAdapter first = NewAdapter(4), second = NewAdapter(4), other = NewAdapter(4);
  ASSERT_TRUE(StartFromQuantizationError(*base_, *full_, 3, pool_, first).ok());
  ASSERT_TRUE(StartFromQuantizationError(*base_, *full_, 3, one, second).ok());
  ASSERT_TRUE(StartFromQuantizationError(*base_, *full_, 4, one, other).ok());
  EXPECT_EQ(first.values(), second.values());
  EXPECT_NE(first.values(), other.values());
}

TEST_F(AdapterInitTest, AnExactBaseStartsAsWithoutAFile) {
  const auto exact = BaseModel::FromGguf(full_).value();
  LoraAdapter adapter = NewAdapter(4), usual = NewAdapter(4);
  ASSERT_TRUE(StartFromQuantizationError(*exact, *full_, 3, pool_, adapter).ok());
  usual.InitializeForTraining(3);
  EXPECT_EQ(adapter.values(), usual.values());
}

// The rows of a part are approximated as if they were a matrix of their own.
TEST_F(AdapterInitTest, PartsOfATensorAreApproximatedAlone) {
  testing::TinyModelOptions options;
  options.architecture = "phi3";
  options.embedding_length = 64;
  options.feed_forward_length = 96;
  const std::string full_bytes = testing::MakeTinyModelGguf(options);
  options.dtype = DType::kQ4_0;
  const std::string base_bytes = testing::MakeTinyModelGguf(options);
  const auto full = GgufFile::Parse(full_bytes, "full.gguf").value();
  const auto base = BaseModel::FromGguf(GgufFile::Parse(base_bytes, "base.gguf").value()).value();
  LoraTargets targets;
  targets.modules = {"v", "up"};
  targets.rank = 6;
  LoraAdapter adapter(base->MakeLoraSpec(targets).value());
  ASSERT_TRUE(StartFromQuantizationError(*base, *full, 3, pool_, adapter).ok());
  ASSERT_EQ(adapter.spec().modules().size(), 4u);
  for (size_t i = 0; i < adapter.spec().modules().size(); ++i) {
    const LoraModule& module = adapter.spec().modules()[i];
    const Eigen::MatrixXd error =
        (Dense(full->FindTensor(module.tensor)->AsMatrix().value()) -
         Dense(base->file().FindTensor(module.tensor)->AsMatrix().value()))
            .middleRows(module.first_row, module.out_features);
    const Eigen::VectorXd values = Eigen::BDCSVD<Eigen::MatrixXd>(error).singularValues();
    const double best = std::sqrt(values.tail(values.size() - 6).squaredNorm());
    const double left = (error - Delta(adapter, static_cast<int64_t>(i))).norm();
    EXPECT_GE(left, best * (1 - 1e-5));
    EXPECT_LE(left, best * 1.001);
  }
}

TEST_F(AdapterInitTest, NamesTheTensorThatDoesNotFit) {
  testing::TinyModelOptions options;
  options.embedding_length = 64;
  options.feed_forward_length = 128;
  const std::string wider = testing::MakeTinyModelGguf(options);
  LoraAdapter adapter = NewAdapter(4);
  const absl::Status shape = StartFromQuantizationError(
      *base_, *GgufFile::Parse(wider, "wide.gguf").value(), 3, pool_, adapter);
  EXPECT_EQ(shape.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(shape.message()), HasSubstr("wide.gguf: tensor blk.0.ffn_gate.weight"));
  options.block_count = 1;
  const std::string shallow = testing::MakeTinyModelGguf(options);
  LoraTargets attention;
  attention.modules = {"q"};
  LoraAdapter queries(base_->MakeLoraSpec(attention).value());
  const absl::Status missing = StartFromQuantizationError(
      *base_, *GgufFile::Parse(shallow, "shallow.gguf").value(), 3, pool_, queries);
  EXPECT_EQ(missing.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(missing.message()),
              HasSubstr("shallow.gguf: no tensor blk.1.attn_q.weight"));
}

TEST_F(AdapterInitTest, RefusesAnUnknownKindAndAFileWithoutUse) {
  EXPECT_TRUE(CheckAdapterInit({}).ok());
  EXPECT_TRUE(CheckAdapterInit({"loftq", "f32.gguf"}).ok());
  for (const AdapterInit& init :
       std::vector<AdapterInit>{{"pissa", ""}, {"loftq", ""}, {"zero-b", "f32.gguf"}}) {
    EXPECT_EQ(CheckAdapterInit(init).code(), absl::StatusCode::kInvalidArgument) << init.kind;
  }
}

// Squared distance of the adapted model's losses from the unquantized model's, over some tokens.
double Distance(Transformer& base, const LoraAdapter* adapter, const std::vector<float>& wanted,
                const Batch& batch) {
  std::vector<float> nats(batch.tokens.size());
  base.Loss(batch, adapter, absl::MakeSpan(nats));
  double sum = 0;
  for (size_t i = 0; i < nats.size(); ++i) sum += std::pow(double{nats[i]} - double{wanted[i]}, 2);
  return sum;
}

TEST_F(AdapterInitTest, StartsNearerToTheUnquantizedModel) {
  Batch batch;
  batch.batch_size = 4;
  batch.length = 64;
  for (int i = 0; i < 256; ++i) batch.tokens.push_back((i * i * 7 + 3 * i) % 320);
  for (int i = 0; i < 256; ++i) batch.targets.push_back((i * 11 + 5) % 320);
  std::vector<float> wanted(256);
  Transformer full(BaseModel::FromGguf(full_).value(), &pool_);
  full.Loss(batch, nullptr, absl::MakeSpan(wanted));
  LoraAdapter adapter = NewAdapter(24);
  ASSERT_TRUE(StartFromQuantizationError(*base_, *full_, 3, pool_, adapter).ok());
  Transformer base(base_, &pool_);
  EXPECT_LT(Distance(base, &adapter, wanted, batch), 0.7 * Distance(base, nullptr, wanted, batch));
}

}  // namespace
}  // namespace fedge
