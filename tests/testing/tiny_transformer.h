// A tiny model in memory with adapters and batches for it, and the comparison of a gradient with
// the complex step of the scalar transformer.
#ifndef FEDGE_TESTS_TESTING_TINY_TRANSFORMER_H_
#define FEDGE_TESTS_TESTING_TINY_TRANSFORMER_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/model/transformer.h"
#include "tests/testing/scalar_transformer.h"
#include "tests/testing/tiny_model.h"

namespace fedge::testing {

// A model over bytes it owns.
class Tiny {
 public:
  explicit Tiny(const TinyModelOptions& options)
      : bytes_(std::make_unique<std::string>(MakeTinyModelGguf(options))) {
    auto file = GgufFile::Parse(*bytes_, "tiny");
    FEDGE_CHECK(file.ok(), file.status().ToString());
    auto model = BaseModel::FromGguf(*file);
    FEDGE_CHECK(model.ok(), model.status().ToString());
    model_ = *model;
  }

  const std::shared_ptr<const BaseModel>& model() const { return model_; }

  // An adapter with random A and B (B is zero only before training).
  LoraAdapter Adapter(std::vector<std::string> modules, int64_t rank = 3) const {
    LoraTargets targets;
    targets.modules = std::move(modules);
    targets.rank = rank;
    targets.alpha = 2 * static_cast<float>(rank);
    const auto spec = model_->MakeLoraSpec(targets);
    FEDGE_CHECK(spec.ok(), spec.status().ToString());
    LoraAdapter adapter(*spec);
    Rng rng(5);
    for (float& value : adapter.values()) value = static_cast<float>(0.2 * rng.Normal());
    return adapter;
  }

 private:
  std::unique_ptr<std::string> bytes_;
  std::shared_ptr<const BaseModel> model_;
};

// One in five positions has no target.
inline Batch RandomBatch(int64_t batch_size, int64_t length, int64_t vocabulary,
                         uint64_t seed = 9) {
  Rng rng(seed);
  Batch batch;
  batch.batch_size = batch_size;
  batch.length = length;
  for (int64_t i = 0; i < batch_size * length; ++i) {
    batch.tokens.push_back(static_cast<TokenId>(rng.Below(static_cast<uint64_t>(vocabulary))));
    const TokenId target = static_cast<TokenId>(rng.Below(static_cast<uint64_t>(vocabulary)));
    batch.targets.push_back(i % 5 == 3 ? kNoToken : target);
  }
  return batch;
}

inline std::vector<double> ToDouble(absl::Span<const float> values) {
  return std::vector<double>(values.begin(), values.end());
}

inline double NatsOf(const std::vector<float>& logits, TokenId target) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit});
  return std::log(sum) - double{logits[static_cast<size_t>(target)]};
}

// Compares `gradient` with the complex step of `loss` at a sample of coordinates and along two
// random directions, which see all coordinates.
template <typename LossFunction>
void ExpectGradient(const std::string& name, const LossFunction& loss,
                    const std::vector<double>& point, const std::vector<float>& gradient,
                    size_t samples = 150) {
  Rng rng(11);
  std::vector<size_t> coordinates;
  for (size_t i = 0; i < samples; ++i) coordinates.push_back(rng.Below(point.size()));
  const std::vector<double> expected = ComplexStepGradient(loss, point, coordinates);
  double largest = 0, error = 0;
  for (const float value : gradient) largest = std::max(largest, std::abs(double{value}));
  for (size_t i = 0; i < samples; ++i) {
    error = std::max(error, std::abs(expected[i] - double{gradient[coordinates[i]]}));
  }
  double along_error = 0;
  for (int trial = 0; trial < 2; ++trial) {
    std::vector<double> direction(point.size());
    for (double& value : direction) value = rng.Normal();
    const double along = ComplexStepAlong(loss, point, direction);
    double sum = 0, norm = 0;
    for (size_t i = 0; i < direction.size(); ++i) {
      sum += direction[i] * double{gradient[i]};
      norm += double{gradient[i]} * double{gradient[i]};
    }
    along_error = std::max(along_error, std::abs(along - sum) / std::sqrt(norm));
  }
  std::printf("gradient of %-26s max relative error %.2g, along a direction %.2g (%zu values)\n",
              name.c_str(), error / largest, along_error, point.size());
  EXPECT_GT(largest, 1e-3);
  EXPECT_LT(error / largest, 2e-5) << name;
  EXPECT_LT(along_error, 2e-5) << name;
}

// The adapter's gradient for `batch`, and the loss, against the scalar transformer.
inline void ExpectAdapterGradient(const std::string& name, const Tiny& tiny,
                                  const LoraAdapter& adapter, const Batch& batch,
                                  size_t samples = 150) {
  ThreadPool pool(1);
  Transformer transformer(tiny.model(), &pool);
  std::vector<float> gradient(adapter.values().size(), 0);
  const LossSum loss = transformer.LossAndGradient(batch, adapter, 1, absl::MakeSpan(gradient));
  const ScalarTransformer scalar(*tiny.model());
  const std::vector<double> point = ToDouble(adapter.values());
  EXPECT_NEAR(loss.nats, scalar.Loss(batch, scalar.weights(), &adapter.spec(), point),
              1e-5 * loss.nats);
  const Values<Complex> weights(scalar.weights().begin(), scalar.weights().end());
  ExpectGradient(
      name,
      [&](const Values<Complex>& x) { return scalar.Loss(batch, weights, &adapter.spec(), x); },
      point, gradient, samples);
}

// The gradient of all weights of an F32 model, likewise.
inline void ExpectWeightGradients(const std::string& name, const Tiny& tiny, const Batch& batch,
                                  size_t samples = 150) {
  ThreadPool pool(1);
  Transformer transformer(tiny.model(), &pool);
  WeightGradients gradients;
  const LossSum loss = transformer.LossAndWeightGradients(batch, 1, gradients);
  EXPECT_EQ(loss.nats, transformer.Loss(batch, nullptr).nats);
  const ScalarTransformer scalar(*tiny.model());
  std::vector<float> joined;
  for (const auto& part : gradients) joined.insert(joined.end(), part.begin(), part.end());
  ASSERT_EQ(joined.size(), scalar.weights().size());
  ExpectGradient(
      name, [&](const Values<Complex>& x) { return scalar.Loss<Complex>(batch, x, nullptr, {}); },
      scalar.weights(), joined, samples);
}

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_TINY_TRANSFORMER_H_
