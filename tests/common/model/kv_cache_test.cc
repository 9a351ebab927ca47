#include "common/model/kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "common/base/rng.h"
#include "common/model/transformer.h"
#include "tests/testing/tiny_transformer.h"

namespace fedge {
namespace {

using testing::Tiny;
using testing::TinyModelOptions;

constexpr KvType kTypes[] = {KvType::kF32, KvType::kF16, KvType::kQ8, KvType::kQ4};

std::vector<float> RandomValues(uint64_t seed, int64_t count) {
  Rng rng(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(rng.Normal());
  return values;
}

std::vector<TokenId> RandomTokens(int64_t count) {
  Rng rng(4);
  std::vector<TokenId> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<TokenId>(rng.Below(320)));
  return tokens;
}

// Five layers with a window and one without.
TinyModelOptions Windows(int64_t window) {
  TinyModelOptions options;
  options.architecture = "gemma3";
  options.block_count = 6;
  options.sliding_window = window;
  return options;
}

ModelConfig Config(int64_t head_dim, const std::vector<int64_t>& windows) {
  ModelConfig config;
  config.head_count_kv = 3;
  config.head_dim = head_dim;
  config.windows = windows;
  return config;
}

TEST(KvCacheTest, TakesExactlyTheBytesOfItsType) {
  const ModelConfig config = Config(64, {0, 20});  // 3 heads; keys and values
  const auto bytes = [&](KvType type, int64_t rewind) {
    return KvCache(config, 100, {type, rewind}).bytes();
  };
  EXPECT_EQ(bytes(KvType::kF32, 1), 2 * 3 * (100 + 20) * 64 * 4);
  EXPECT_EQ(bytes(KvType::kF16, 1), 2 * 3 * (100 + 20) * 64 * 2);
  EXPECT_EQ(bytes(KvType::kQ8, 1), 2 * 3 * (100 + 20) * 2 * 34);
  EXPECT_EQ(bytes(KvType::kQ4, 1), 2 * 3 * (100 + 20) * 2 * 20);
  EXPECT_EQ(bytes(KvType::kF16, 11), 2 * 3 * (100 + 30) * 64 * 2);
  EXPECT_EQ(bytes(KvType::kF16, 1000), 2 * 3 * (100 + 100) * 64 * 2);
  EXPECT_EQ(KvCache(Config(40, {0}), 10, {KvType::kQ8}).bytes(), 2 * 3 * 10 * 2 * 34) << "padded";
  EXPECT_EQ(KvCache(Config(40, {0}), 10, {KvType::kF16}).bytes(), 2 * 3 * 10 * 40 * 2);
}

TEST(KvCacheTest, NamesItsTypes) {
  EXPECT_EQ(KvTypeFromName("f32").value(), KvType::kF32);
  EXPECT_EQ(KvTypeFromName("f16").value(), KvType::kF16);
  EXPECT_EQ(KvTypeFromName("q8").value(), KvType::kQ8);
  EXPECT_EQ(KvTypeFromName("q4").value(), KvType::kQ4);
  EXPECT_EQ(KvTypeFromName("q5").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(KvLayerTest, KeepsTheLastTokensRounded) {
  constexpr int64_t kHeads = 2, kDim = 40, kTokens = 25, kSlots = 10;
  const std::vector<float> k = RandomValues(1, kTokens * kHeads * kDim);
  const std::vector<float> v = RandomValues(2, kTokens * kHeads * kDim);
  ThreadPool pool(2);
  // Largest difference: none, half a unit of the last of 11 bits, half a step of a block's scale.
  const std::tuple<DType, double, double> cases[] = {{DType::kF32, 0, 0},
                                                     {DType::kF16, 2e-4, 1.1e-3},
                                                     {DType::kQ8_0, 5e-3, 2e-2},
                                                     {DType::kQ4_1, 0.1, 0.3}};
  for (const auto& [type, least, most] : cases) {
    KvLayer layer(type, kHeads, kDim, kSlots);
    int64_t at = 0;
    for (const int64_t count : {4, 1, 3, 11, 6}) {  // also more than there is room for
      const int64_t offset = at * kHeads * kDim;
      EXPECT_TRUE(layer.Write(at, count, {k.data() + offset, kHeads * kDim},
                              {v.data() + offset, kHeads * kDim}, pool));
      at += count;
      EXPECT_EQ(layer.oldest(), std::max<int64_t>(0, at - kSlots));
    }
    std::vector<float> rows(static_cast<size_t>(kSlots * layer.row_stride()));
    double error = 0;
    for (int64_t head = 0; head < kHeads; ++head) {
      for (const bool keys : {true, false}) {
        const std::vector<float>& expected = keys ? k : v;
        keys ? layer.ReadKeys(head, 15, 10, rows.data())
             : layer.ReadValues(head, 15, 10, rows.data());
        for (int64_t i = 0; i < 10; ++i) {
          for (int64_t j = 0; j < kDim; ++j) {
            const float want = expected[static_cast<size_t>(((15 + i) * kHeads + head) * kDim + j)];
            const float got = rows[static_cast<size_t>(i * layer.row_stride() + j)];
            error = std::max(error, std::abs(double{want} - double{got}));
          }
        }
      }
    }
    EXPECT_GE(error, least) << DTypeName(type);
    EXPECT_LE(error, most) << DTypeName(type);
  }
}

TEST(KvLayerTest, LimitsWhatF16CannotHoldAndNoticesWhatIsNotFinite) {
  ThreadPool pool(1);
  KvLayer layer(DType::kF16, 1, 2, 4);
  const std::vector<float> large = {1e6f, -1e6f};
  ASSERT_TRUE(layer.Write(0, 1, {large.data(), 2}, {large.data(), 2}, pool));
  std::vector<float> row(2);
  layer.ReadKeys(0, 0, 1, row.data());
  EXPECT_THAT(row, ::testing::ElementsAre(65504.0f, -65504.0f));
  const std::vector<float> fine = {1, 2};
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    const std::vector<float> broken = {1, bad};
    EXPECT_FALSE(layer.Write(1, 1, {fine.data(), 2}, {broken.data(), 2}, pool));
    EXPECT_FALSE(layer.Write(1, 1, {broken.data(), 2}, {fine.data(), 2}, pool));
  }
}

// A cache in fp32 gives what attention over all tokens at once gives, for any split.
TEST(CachedAttentionTest, IsThatOfABatch) {
  constexpr int64_t kDim = 24;
  for (const int64_t group : {1, 2, 7}) {
    for (const auto& [past, length] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 1}, {127, 2}, {128, 3}, {300, 1}, {300, 3}, {300, 4}, {40, 50}}) {
      for (const int64_t window : {0, 1, 33, 200}) {
        const int64_t kv_heads = 2, heads = group * kv_heads, total = past + length;
        const int64_t q_width = heads * kDim, kv_width = kv_heads * kDim;
        const std::vector<float> q = RandomValues(1, total * q_width);
        const std::vector<float> k = RandomValues(2, total * kv_width);
        const std::vector<float> v = RandomValues(3, total * kv_width);
        AttentionShape shape = {1, total, 0, heads, kv_heads, kDim, 0.5f, window};
        std::vector<float> all(q.size()), all_lse(static_cast<size_t>(total * heads));
        FloatBuffer scratch;
        ThreadPool one(1), three(3);
        AttentionForward(shape, {q.data(), q_width}, {k.data(), kv_width}, {v.data(), kv_width},
                         all.data(), all_lse.data(), scratch, one);
        const int64_t slots = window == 0 ? past : std::min(past, window);
        KvLayer cache(DType::kF32, kv_heads, kDim, slots);
        ASSERT_TRUE(cache.Write(0, past, {k.data(), kv_width}, {v.data(), kv_width}, one));
        shape.past = past;
        shape.length = length;
        std::vector<std::vector<float>> results;
        for (ThreadPool* pool : {&one, &three}) {
          std::vector<float> out(static_cast<size_t>(length * q_width));
          std::vector<float> lse(static_cast<size_t>(length * heads));
          CachedAttention(shape, {q.data() + past * q_width, q_width},
                          {k.data() + past * kv_width, kv_width},
                          {v.data() + past * kv_width, kv_width}, cache, out.data(), lse.data(),
                          scratch, *pool);
          for (size_t i = 0; i < out.size(); ++i) {
            ASSERT_NEAR(out[i], all[static_cast<size_t>(past * q_width) + i], 3e-6)
                << past << "+" << length << " window " << window;
          }
          for (size_t i = 0; i < lse.size(); ++i) {
            ASSERT_NEAR(lse[i], all_lse[static_cast<size_t>(past * heads) + i], 3e-6);
          }
          results.push_back(out);
        }
        EXPECT_EQ(results[0], results[1]);
      }
    }
  }
}

class KvDecodeTest : public ::testing::Test {
 protected:
  // Logits after the tokens one by one.
  static std::vector<float> Decode(const Tiny& tiny, absl::Span<const TokenId> tokens,
                                   KvCache& cache, int threads = 2) {
    ThreadPool pool(threads);
    Transformer transformer(tiny.model(), &pool);
    std::vector<float> logits;
    for (const TokenId token : tokens) {
      logits = transformer.Decode({token}, nullptr, cache).value();
    }
    return logits;
  }
  static double Difference(const std::vector<float>& a, const std::vector<float>& b) {
    double difference = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      difference = std::max(difference, std::abs(double{a[i]} - double{b[i]}));
    }
    return difference;
  }
};

TEST_F(KvDecodeTest, FewerBitsCostMore) {
  const Tiny tiny(Windows(20));
  const std::vector<TokenId> tokens = RandomTokens(60);
  std::vector<std::vector<float>> logits;
  for (const KvType type : kTypes) {
    KvCache cache(tiny.model()->config(), 60, {type});
    logits.push_back(Decode(tiny, tokens, cache));
  }
  const double half = Difference(logits[1], logits[0]), eight = Difference(logits[2], logits[0]);
  const double four = Difference(logits[3], logits[0]);
  std::printf("largest difference of a logit: f16 %.2g, q8 %.2g, q4 %.2g\n", half, eight, four);
  EXPECT_GT(half, 1e-7);
  EXPECT_LT(half, 1e-2);
  EXPECT_GT(eight, half);
  EXPECT_LT(eight, 0.2);
  EXPECT_GT(four, eight);
  EXPECT_LT(four, 2);
}

TEST_F(KvDecodeTest, SameBitsForAnyNumberOfThreads) {
  const Tiny tiny(Windows(20));
  const std::vector<TokenId> tokens = RandomTokens(150);
  for (const KvType type : kTypes) {
    KvCache one(tiny.model()->config(), 150, {type}), three(tiny.model()->config(), 150, {type});
    EXPECT_EQ(Decode(tiny, tokens, one, 1), Decode(tiny, tokens, three, 3));
  }
}

// More tokens than one pass of Decode has.
TEST_F(KvDecodeTest, LongPromptsAgreeWithTheBatch) {
  const Tiny tiny(Windows(100));
  Batch batch = testing::RandomBatch(1, 1100, 320);
  std::fill(batch.targets.begin(), batch.targets.end(), 7);
  ThreadPool pool(2);
  Transformer transformer(tiny.model(), &pool);
  std::vector<float> nats(batch.tokens.size());
  transformer.Loss(batch, nullptr, absl::MakeSpan(nats));
  KvCache cache(tiny.model()->config(), 1100, {KvType::kF32});
  const std::vector<float> logits = transformer.Decode(batch.tokens, nullptr, cache).value();
  EXPECT_EQ(cache.size(), 1100);
  EXPECT_NEAR(testing::NatsOf(logits, 7), nats.back(), 2e-4);
}

TEST_F(KvDecodeTest, GoesBackAsFarAsTheWindowsRemember) {
  const Tiny tiny(Windows(20));
  const std::vector<TokenId> tokens = RandomTokens(60);
  const absl::Span<const TokenId> all = tokens;
  KvCache fresh(tiny.model()->config(), 60, {KvType::kF32});
  const std::vector<float> expected = Decode(tiny, all.first(55), fresh);

  KvCache cache(tiny.model()->config(), 60, {KvType::kF32, 6});
  Decode(tiny, all, cache);
  EXPECT_EQ(cache.Truncate(53).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cache.size(), 60);
  ASSERT_TRUE(cache.Truncate(54).ok());
  EXPECT_EQ(Decode(tiny, all.subspan(54, 1), cache), expected);
  EXPECT_EQ(cache.Truncate(53).code(), absl::StatusCode::kFailedPrecondition) << "not forgotten";
  ASSERT_TRUE(cache.Truncate(54).ok());
  ASSERT_TRUE(cache.Truncate(0).ok());
  EXPECT_EQ(Decode(tiny, all.first(55), cache), expected);

  KvCache usual(tiny.model()->config(), 60, {KvType::kF32});
  Decode(tiny, all.first(15), usual);
  EXPECT_TRUE(usual.Truncate(3).ok()) << "the window is not full yet";
}

TEST_F(KvDecodeTest, KeysThatAreNotFiniteAreAnError) {
  const Tiny tiny{TinyModelOptions()};
  LoraAdapter adapter = tiny.Adapter({"all"});
  ThreadPool pool(1);
  Transformer transformer(tiny.model(), &pool);
  KvCache cache(tiny.model()->config(), 10);
  ASSERT_TRUE(transformer.Decode({1, 2, 3}, &adapter, cache).ok());
  std::fill(adapter.values().begin(), adapter.values().end(), 1e30f);
  EXPECT_EQ(transformer.Decode({4}, &adapter, cache).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(cache.size(), 0);
}

TEST_F(KvDecodeTest, PrecisionIsOfManyTokensOnly) {
  TinyModelOptions options;
  options.embedding_length = 64;
  const Tiny tiny(options);
  const std::vector<TokenId> tokens = RandomTokens(40);
  ThreadPool pool(1);
  Transformer transformer(tiny.model(), &pool);
  const auto logits = [&](int64_t count, Precision precision) {
    KvCache cache(tiny.model()->config(), 64, {KvType::kF32});
    return transformer
        .Decode(absl::MakeConstSpan(tokens).first(static_cast<size_t>(count)), nullptr, cache,
                precision)
        .value();
  };
  EXPECT_EQ(logits(kMaxVectorRows, Precision::kBFloat16),
            logits(kMaxVectorRows, Precision::kFloat32));
  const double difference =
      Difference(logits(40, Precision::kBFloat16), logits(40, Precision::kFloat32));
  if (!HasBFloat16Dot()) GTEST_SKIP() << "no bf16 dot product on this machine";
  EXPECT_GT(difference, 1e-5);
  EXPECT_LT(difference, 0.1);
}

}  // namespace
}  // namespace fedge
