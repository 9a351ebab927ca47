#include "common/codec/update_anatomy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "common/adapter/lora_adapter.h"
#include "common/codec/update_codec.h"
#include "common/codec/update_header.h"
#include "tests/testing/update_samples.h"

namespace fedge {
namespace {

using testing::RandomDelta;
using testing::SampleHeader;

// Rank 4, two modules of 4 * (64 + 192) values.
LoraSpec TwoModules() {
  std::vector<LoraModule> modules;
  for (const char* name : {"blk.0.attn_q.weight", "blk.0.ffn_up.weight"}) {
    modules.push_back({.tensor = name, .in_features = 64, .out_features = 192, .rank = 4});
  }
  return LoraSpec::Create("llama", 8, modules).value();
}

struct Sample {
  std::string bytes;
  UpdateAnatomy anatomy;
};

Sample Make(const std::vector<float>& delta, const EncodeOptions& options) {
  const SliceLayout layout = SliceLayout::Whole(TwoModules());
  auto bytes = EncodeUpdate(delta, layout, SampleHeader(), options, {});
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  auto anatomy = AnatomyOf(*bytes, Sha256Of("layout"), layout);
  EXPECT_TRUE(anatomy.ok()) << anatomy.status();
  EXPECT_DOUBLE_EQ(anatomy->total_bits(), 8.0 * static_cast<double>(bytes->size()));
  return {*bytes, *anatomy};
}

TEST(UpdateAnatomyTest, TellsPositionsFromValues) {
  const std::vector<float> delta = RandomDelta(2048, 1);
  const Sample sample = Make(delta, {.density = 0.125, .value_bits = 2});
  EXPECT_EQ(sample.anatomy.parameters, 2048u);
  EXPECT_GE(sample.anatomy.header_bits, 8.0 * kUpdateHeaderBytes);
  // 256 of 2048: H(1/8) = 0.5436 bits for each of 2048 places, and 2 bits a value at most.
  EXPECT_NEAR(sample.anatomy.position_bits, 0.5436 * 2048, 0.08 * 0.5436 * 2048);
  EXPECT_LE(sample.anatomy.value_bits, 2 * 256 + 16);
  EXPECT_GT(sample.anatomy.value_bits, 1.5 * 256);
  EXPECT_NEAR(sample.anatomy.floor_bits, 0.5436 * 2048 + 512, 1);
  EXPECT_GT(sample.anatomy.scale_bits, 0);
}

TEST(UpdateAnatomyTest, SaysWhoseTheValuesAre) {
  // Only B of the second module moves; a module is A [4, 64] and B [4, 192].
  std::vector<float> delta(2048);
  for (size_t i = 1024 + 256; i < 2048; i += 8) delta[i] = 1;
  const Sample sample = Make(delta, {.density = 0.04, .value_bits = 1});
  ASSERT_EQ(sample.anatomy.modules.size(), 2u);
  EXPECT_EQ(sample.anatomy.modules[0].a + sample.anatomy.modules[0].b, 0u);
  EXPECT_EQ(sample.anatomy.modules[1].a, 0u);
  EXPECT_EQ(sample.anatomy.modules[1].b, 82u);  // of 96 that moved, 4 % of 2048
}

TEST(UpdateAnatomyTest, DenseAndTrellisHaveNoPositions) {
  const std::vector<float> delta = RandomDelta(2048, 1);
  const Sample dense = Make(delta, {.support = UpdateSupport::kDense, .value_bits = 16});
  EXPECT_EQ(dense.anatomy.position_bits, 0);
  EXPECT_EQ(dense.anatomy.floor_bits, 2048 * 16);
  EXPECT_EQ(dense.anatomy.modules[0].a, 256u);
  EXPECT_EQ(dense.anatomy.modules[0].b, 768u);
  const Sample trellis =
      Make(delta, {.support = UpdateSupport::kTrellis, .density = 0.125, .seed = 3});
  EXPECT_EQ(trellis.anatomy.position_bits, 0);
  EXPECT_GE(trellis.anatomy.value_bits, 0.9 * 2048 / 8);
  EXPECT_LE(trellis.anatomy.value_bits, 2048 / 8 + 8);
}

TEST(UpdateAnatomyTest, ATrellisShowsWhereItsBitsWent) {
  std::vector<float> delta = RandomDelta(2048, 1);
  for (size_t i = 0; i < 1024; ++i) delta[i] *= 20;  // the first module, a group
  const Sample sample =
      Make(delta, {.support = UpdateSupport::kTrellis, .density = 0.25, .seed = 3});
  ASSERT_EQ(sample.anatomy.modules.size(), 2u);
  const UpdateAnatomy::Module& loud = sample.anatomy.modules[0];
  const UpdateAnatomy::Module& quiet = sample.anatomy.modules[1];
  EXPECT_EQ(loud.a, 86u);  // a third of a bit each
  EXPECT_EQ(loud.b, 256u);
  EXPECT_EQ(quiet.a, 43u);  // a sixth
  EXPECT_EQ(quiet.b, 128u);
}

TEST(UpdateAnatomyTest, AddsUp) {
  const Sample one = Make(RandomDelta(2048, 1), {.density = 0.125});
  UpdateAnatomy sum;
  sum.Add(one.anatomy);
  sum.Add(one.anatomy);
  EXPECT_EQ(sum.parameters, 4096u);
  EXPECT_DOUBLE_EQ(sum.total_bits(), 2 * one.anatomy.total_bits());
  EXPECT_EQ(sum.modules[1].b, 2 * one.anatomy.modules[1].b);
}

TEST(UpdateAnatomyTest, RefusesWhatTheDecoderRefuses) {
  Sample sample = Make(RandomDelta(2048, 1), {.density = 0.125});
  sample.bytes.back() = static_cast<char>(sample.bytes.back() ^ 1);
  EXPECT_FALSE(AnatomyOf(sample.bytes, Sha256Of("layout"), SliceLayout::Whole(TwoModules())).ok());
}

}  // namespace
}  // namespace fedge
