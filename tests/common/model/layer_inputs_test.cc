#include "common/model/layer_inputs.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "common/base/rng.h"
#include "common/model/layer.h"
#include "common/model/transformer.h"
#include "common/tensor/quantize.h"
#include "tests/testing/tiny_transformer.h"

namespace fedge {
namespace {

std::vector<float> RandomValues(int64_t count, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(rng.Normal());
  return values;
}

TEST(LayerInputsTest, GivesBackWhatWasKeptRoundedBelowTheExactLayers) {
  constexpr int64_t kSize = 40'000;  // several tasks
  ThreadPool pool(2);
  LayerInputs inputs(4, &pool);
  for (const size_t first_exact : {2, 0, 4}) {
    inputs.BeginGradient(kSize, first_exact);
    for (size_t i = 0; i <= 4; ++i) {
      const std::vector<float> values = RandomValues(kSize, i);
      std::copy(values.begin(), values.end(), inputs.Make(i));
      if (i < 4) inputs.Keep(i);
    }
    for (size_t i = 4; i-- > 0;) {
      const std::vector<float> values = RandomValues(kSize, i);
      const float* const restored = inputs.Restore(i);
      for (size_t k = 0; k < values.size(); ++k) {
        const float expected =
            i >= first_exact ? values[k] : Bfloat16ToFloat(FloatToBfloat16(values[k]));
        ASSERT_EQ(restored[k], expected) << i << " " << k;
      }
    }
  }
}

TEST(LayerInputsTest, ALayersInputOutlivesTheNextOnesMaking) {
  ThreadPool pool(1);
  LayerInputs inputs(3, &pool);
  inputs.BeginForward(8);
  float* const first = inputs.Make(0);
  std::iota(first, first + 8, 0.0f);
  float* const second = inputs.Make(1);
  EXPECT_NE(first, second);
  EXPECT_EQ(first[7], 7.0f);
}

// Gradients with rounded checkpoints stay near the exact ones, and the loss is the same bits.
TEST(LayerInputsTest, RoundedCheckpointsKeepGradientsWithinAPercent) {
  testing::TinyModelOptions options;
  options.block_count = 6;
  const testing::Tiny deep(options);
  const LoraAdapter adapter = deep.Adapter({"all"});
  const Batch batch = testing::RandomBatch(3, 24, deep.model()->config().vocab_size);
  ThreadPool pool(2);
  std::vector<float> exact(adapter.values().size()), rounded(adapter.values().size());
  Transformer keeps(deep.model(), &pool, {0, false});
  Transformer rounds(deep.model(), &pool, {0, true});
  const double loss = keeps.LossAndGradient(batch, adapter, 1, absl::MakeSpan(exact)).nats;
  EXPECT_EQ(rounds.LossAndGradient(batch, adapter, 1, absl::MakeSpan(rounded)).nats, loss);
  double difference = 0, norm = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    difference += std::pow(double{rounded[i]} - double{exact[i]}, 2);
    norm += std::pow(double{exact[i]}, 2);
  }
  EXPECT_LT(std::sqrt(difference), 1e-2 * std::sqrt(norm));
  EXPECT_GT(difference, 0);  // something was rounded
}

TEST(LayerInputsTest, LayersThatAreKeptAreNotRounded) {
  const testing::Tiny tiny((testing::TinyModelOptions()));
  const LoraAdapter adapter = tiny.Adapter({"all"});
  const Batch batch = testing::RandomBatch(3, 24, tiny.model()->config().vocab_size);
  ThreadPool pool(1);
  std::vector<float> exact(adapter.values().size()), kept(adapter.values().size());
  Transformer(tiny.model(), &pool, {0, false})
      .LossAndGradient(batch, adapter, 1, absl::MakeSpan(exact));
  Transformer(tiny.model(), &pool).LossAndGradient(batch, adapter, 1, absl::MakeSpan(kept));
  EXPECT_EQ(kept, exact);
}

}  // namespace
}  // namespace fedge
