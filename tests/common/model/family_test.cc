// Every model family on tiny random files: losses and gradients against the scalar transformer, and
// decoding with a cache against the whole batch.
#include "common/model/family.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "common/formats/gguf_writer.h"
#include "tests/testing/tiny_transformer.h"

namespace fedge {
namespace {

using testing::NatsOf;
using testing::RandomBatch;
using testing::Tiny;
using testing::TinyModelOptions;

TEST(FamilyTest, TableNamesEachFamilyOnce) {
  EXPECT_EQ(SupportedFamilies(), "llama, qwen2, qwen3, gemma3, phi3");
  for (const ModelFamily& family : ModelFamilies()) {
    EXPECT_EQ(FindModelFamily(family.architecture), &family);
  }
  EXPECT_EQ(FindModelFamily("mamba"), nullptr);
}

struct Case {
  std::string name;
  TinyModelOptions options;
};

TinyModelOptions Small(const std::string& architecture) {
  TinyModelOptions options;
  options.architecture = architecture;
  options.embedding_length = 16;
  options.feed_forward_length = 24;
  options.head_dim = 8;
  return options;
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const ModelFamily& family : ModelFamilies()) {
    const std::string name(family.architecture);
    cases.push_back({name, Small(name)});
  }
  TinyModelOptions options = Small("llama");
  options.biases = true;
  options.tied_output = false;
  cases.push_back({"llama_biases", options});
  options = Small("qwen2");
  options.fused_qkv = true;
  options.biases = true;  // of a tied head too
  cases.push_back({"qwen2_fused", options});
  options = Small("qwen3");
  options.fused_qkv = true;
  options.rope_dim = 6;
  cases.push_back({"qwen3_fused", options});
  options = Small("gemma3");
  options.block_count = 7;
  options.sliding_window = 3;
  options.extra = [](GgufWriter& writer) {
    writer.SetFloat32("gemma3.final_logit_softcapping", 5);
    writer.SetFloat32("gemma3.rope.scaling.factor", 8);
    writer.SetFloat32("gemma3.rope.freq_base_swa", 1000);
    writer.SetFloat32("gemma3.attention.scale", 0.2f);
  };
  cases.push_back({"gemma3_window_cap", options});
  options = Small("phi3");
  options.rope_dim = 6;
  options.biases = true;
  options.extra = [](GgufWriter& writer) {
    writer.SetFloat32("phi3.rope.scaling.attn_factor", 1.19f);
  };
  cases.push_back({"phi3_partial", options});
  return cases;
}

class FamilyGradientTest : public ::testing::TestWithParam<Case> {};

TEST_P(FamilyGradientTest, AdapterGradientMatchesComplexStep) {
  TinyModelOptions options = GetParam().options;
  options.rope_frequency_factors =
      options.architecture == "llama" || options.architecture == "phi3";
  const Tiny tiny(options);
  const std::vector<std::string> modules = {"all"};
  testing::ExpectAdapterGradient(GetParam().name, tiny, tiny.Adapter(modules),
                                 RandomBatch(2, 7, tiny.model()->config().vocab_size), 60);
}

TEST_P(FamilyGradientTest, WeightGradientsMatchComplexStep) {
  const Tiny tiny(GetParam().options);
  testing::ExpectWeightGradients(GetParam().name + ", weights", tiny,
                                 RandomBatch(2, 7, tiny.model()->config().vocab_size), 60);
}

// Token by token, and in pieces, across several windows.
TEST_P(FamilyGradientTest, DecodingAgreesWithTheBatch) {
  TinyModelOptions options = GetParam().options;
  if (options.sliding_window != 0) options.sliding_window = 20;
  const Tiny tiny(options);
  const LoraAdapter adapter = tiny.Adapter({"all"});
  const Batch batch = RandomBatch(1, 70, tiny.model()->config().vocab_size);
  ThreadPool pool(2);
  Transformer transformer(tiny.model(), &pool);
  std::vector<float> nats(batch.tokens.size());
  transformer.Loss(batch, &adapter, absl::MakeSpan(nats));
  const KvCacheOptions exact = {KvType::kF32};
  KvCache stepwise(tiny.model()->config(), 70, exact), whole(tiny.model()->config(), 70, exact);
  std::vector<float> last;
  for (size_t i = 0; i < batch.tokens.size(); ++i) {
    const auto logits = transformer.Decode({batch.tokens[i]}, &adapter, stepwise);
    ASSERT_TRUE(logits.ok()) << logits.status();
    last = *logits;
    if (batch.targets[i] == kNoToken) continue;
    EXPECT_NEAR(NatsOf(last, batch.targets[i]), nats[i], 2e-4) << i;
  }
  const absl::Span<const TokenId> tokens = batch.tokens;
  for (const auto& piece : {tokens.subspan(0, 37), tokens.subspan(37, 2), tokens.subspan(39)}) {
    const auto logits = transformer.Decode(piece, &adapter, whole);
    ASSERT_TRUE(logits.ok()) << logits.status();
    if (whole.size() < 70) continue;
    for (size_t i = 0; i < last.size(); ++i) EXPECT_NEAR((*logits)[i], last[i], 2e-4);
  }
}

TEST_P(FamilyGradientTest, SameBytesForAnyNumberOfThreads) {
  TinyModelOptions options = GetParam().options;
  if (options.sliding_window != 0) options.sliding_window = 20;
  const Tiny tiny(options);
  const LoraAdapter adapter = tiny.Adapter({"all"});
  const Batch batch = RandomBatch(3, 50, tiny.model()->config().vocab_size);
  std::vector<std::vector<float>> gradients;
  for (const int threads : {1, 3}) {
    for (const int64_t budget : {int64_t{0}, kDefaultActivationBudget}) {
      ThreadPool pool(threads);
      Transformer transformer(tiny.model(), &pool, {budget, false});
      gradients.emplace_back(adapter.values().size(), 0.0f);
      transformer.LossAndGradient(batch, adapter, 0.1f, absl::MakeSpan(gradients.back()));
    }
  }
  for (const auto& gradient : gradients) EXPECT_EQ(gradient, gradients[0]);
}

// Sequences [first, first + count) of `batch`.
Batch Sequences(const Batch& batch, int64_t first, int64_t count) {
  Batch part;
  part.batch_size = count;
  part.length = batch.length;
  const auto cut = [&](const auto& from, auto& to) {
    to.assign(from.begin() + first * batch.length, from.begin() + (first + count) * batch.length);
  };
  cut(batch.tokens, part.tokens);
  cut(batch.targets, part.targets);
  cut(batch.weights, part.weights);
  return part;
}

// Five adapters, the third without sequences and the last without targets, in one pass and each in
// a pass of its own.
TEST_P(FamilyGradientTest, AdaptersThatShareAPassDoNotMeet) {
  const Tiny tiny(GetParam().options);
  const int64_t sequences[] = {1, 3, 0, 2, 1};
  Batch batch = RandomBatch(7, 9, tiny.model()->config().vocab_size);
  for (size_t i = 0; i < batch.tokens.size(); ++i) {
    batch.weights.push_back(i % 3 == 0 ? 2.0f : 1.0f);
    if (i >= 6 * 9) batch.targets[i] = kNoToken;
  }
  std::vector<std::string> modules = {"all"};
  if (!GetParam().options.tied_output) modules.push_back("output");
  std::vector<LoraAdapter> adapters(5, tiny.Adapter(modules));
  for (size_t i = 0; i < adapters.size(); ++i) {
    for (float& value : adapters[i].values()) value *= 1 + 0.5f * static_cast<float>(i);
  }
  std::vector<std::vector<float>> shared(5, std::vector<float>(adapters[0].values().size()));
  for (const float rate : {0.0f, 0.3f}) {
    for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
      ThreadPool pool(2);
      Transformer transformer(tiny.model(), &pool, {0, false});
      transformer.set_training_precision(precision);
      std::vector<AdapterPass> passes;
      for (size_t i = 0; i < 5; ++i) {
        std::fill(shared[i].begin(), shared[i].end(), 0.0f);
        AdapterPass pass;
        pass.adapter = &adapters[i];
        pass.batch_size = sequences[i];
        pass.grad_scale = 0.1f + 0.1f * static_cast<float>(i);
        pass.gradient = absl::MakeSpan(shared[i]);
        pass.dropout.rate = rate;
        pass.dropout.seed = i;
        pass.dropout.first_sequence = static_cast<int64_t>(i);
        passes.push_back(pass);
      }
      const std::vector<LossSum> losses = transformer.LossAndGradients(batch, passes);
      int64_t first = 0;
      for (size_t i = 0; i < 5; ++i) {
        std::vector<float> alone(shared[i].size());
        const LossSum loss = transformer.LossAndGradient(Sequences(batch, first, sequences[i]),
                                                         adapters[i], passes[i].grad_scale,
                                                         absl::MakeSpan(alone), passes[i].dropout);
        first += sequences[i];
        EXPECT_EQ(losses[i].nats, loss.nats) << i;
        EXPECT_EQ(losses[i].num_tokens, loss.num_tokens) << i;
        EXPECT_EQ(shared[i], alone) << i;
        EXPECT_EQ(loss.num_tokens > 0, i != 2 && i != 4);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyGradientTest, ::testing::ValuesIn(Cases()),
                         [](const auto& test) { return test.param.name; });

// --- Adapters on parts of fused linears ---

TinyModelOptions FusedQwen() {
  TinyModelOptions options = Small("qwen2");
  options.fused_qkv = true;
  options.biases = true;
  return options;
}

TEST(FusedPartsTest, GradientsMatchComplexStep) {
  const Tiny phi(Small("phi3"));
  const Batch batch = RandomBatch(2, 7, phi.model()->config().vocab_size);
  testing::ExpectAdapterGradient("phi3, q and up", phi, phi.Adapter({"q", "up"}), batch, 60);
  testing::ExpectAdapterGradient("phi3, k, v, gate", phi,
                                 phi.Adapter({"k", "v", "gate", "o", "down"}), batch, 60);
  testing::ExpectAdapterGradient("phi3, q and gate_up", phi, phi.Adapter({"q", "gate_up"}), batch,
                                 60);
  const Tiny qwen(FusedQwen());
  testing::ExpectAdapterGradient("qwen2 fused, v", qwen, qwen.Adapter({"v"}), batch, 60);
}

// The same adapter on the whole tensors has the same effect, here and in decoding.
TEST(FusedPartsTest, AreWhatTheyAreWithoutParts) {
  for (const TinyModelOptions& options : {Small("phi3"), FusedQwen()}) {
    const Tiny tiny(options);
    const LoraAdapter parts = tiny.Adapter({"q", "v", "up", "down"});
    const LoraAdapter whole = WithoutParts(parts).value();
    const Batch batch = RandomBatch(2, 20, tiny.model()->config().vocab_size);
    ThreadPool pool(2);
    Transformer transformer(tiny.model(), &pool);
    const double base = transformer.Loss(batch, nullptr).nats;
    const double expected = transformer.Loss(batch, &whole).nats;
    EXPECT_GT(std::abs(expected - base), 0.1);
    EXPECT_NEAR(transformer.Loss(batch, &parts).nats, expected, 1e-5 * expected);
    KvCache with_parts(tiny.model()->config(), 8), without(tiny.model()->config(), 8);
    for (const TokenId token : {5, 17, 3}) {
      const std::vector<float> a = transformer.Decode({token}, &parts, with_parts).value();
      const std::vector<float> b = transformer.Decode({token}, &whole, without).value();
      for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-4);
    }
  }
}

// One transformer serves adapters of any shape, the base and all weights in turn.
TEST(FusedPartsTest, LeaveNothingBehind) {
  const Tiny tiny(Small("phi3"));
  const Batch batch = RandomBatch(2, 9, tiny.model()->config().vocab_size);
  const LoraAdapter parts = tiny.Adapter({"q", "up"}), others = tiny.Adapter({"k", "gate"});
  const LoraAdapter whole = tiny.Adapter({"all"});
  ThreadPool pool(1);
  Transformer shared(tiny.model(), &pool);
  const auto gradient = [&](Transformer& transformer, const LoraAdapter& adapter) {
    std::vector<float> values(adapter.values().size());
    transformer.LossAndGradient(batch, adapter, 1, absl::MakeSpan(values));
    return values;
  };
  for (const LoraAdapter* adapter : {&parts, &whole, &others, &parts, &others}) {
    Transformer fresh(tiny.model(), &pool);
    EXPECT_EQ(gradient(shared, *adapter), gradient(fresh, *adapter));
    EXPECT_EQ(shared.Loss(batch, nullptr).nats, fresh.Loss(batch, nullptr).nats);
    WeightGradients first, second;
    gradient(shared, *adapter);
    shared.LossAndWeightGradients(batch, 1, first);
    Transformer(tiny.model(), &pool).LossAndWeightGradients(batch, 1, second);
    EXPECT_EQ(first, second);
  }
}

TEST(RopeFactorsTest, ContextBeyondTheOriginalUsesLongFactors) {
  TinyModelOptions options = Small("phi3");
  options.rope_frequency_factors = true;
  options.extra = [](GgufWriter& writer) {
    writer.SetUint32("phi3.rope.scaling.original_context_length", 6);
  };
  const Tiny tiny(options);
  const LoraAdapter adapter = tiny.Adapter({"all"});
  testing::ExpectAdapterGradient("phi3, long factors", tiny, adapter, RandomBatch(2, 7, 320), 20);
  testing::ExpectAdapterGradient("phi3, short factors", tiny, adapter, RandomBatch(2, 6, 320), 20);
  // A cache's context is its capacity, from the first token on.
  ThreadPool pool(1);
  Transformer transformer(tiny.model(), &pool);
  const std::vector<TokenId> tokens = {5, 6, 7};
  KvCache usual(tiny.model()->config(), 6), beyond(tiny.model()->config(), 7);
  EXPECT_NE(transformer.Decode(tokens, nullptr, usual).value(),
            transformer.Decode(tokens, nullptr, beyond).value());
}

}  // namespace
}  // namespace fedge
