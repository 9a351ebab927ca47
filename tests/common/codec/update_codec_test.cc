#include "common/codec/update_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "common/codec/magnitude_selection.h"
#include "common/codec/update_header.h"
#include "common/tensor/quantize.h"
#include "tests/testing/update_samples.h"

namespace fedge {
namespace {

using ::testing::Each;
using testing::Flat;
using testing::FlatLayout;
using ::testing::HasSubstr;
using testing::RandomDelta;
using testing::SampleHeader;

constexpr EncodeOptions kDense = {.support = UpdateSupport::kDense, .value_bits = 16};

EncodeOptions TopK(double density, int bits) {
  return {.support = UpdateSupport::kTopK, .density = density, .value_bits = bits};
}

EncodeOptions Trellis(double bits) {
  return {.support = UpdateSupport::kTrellis, .density = bits, .seed = 3};
}

std::string Encode(const std::vector<float>& delta, const SliceLayout& layout,
                   const EncodeOptions& options, absl::Span<float> residual = {}) {
  auto bytes = EncodeUpdate(delta, layout, SampleHeader(), options, residual);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.ok() ? *std::move(bytes) : std::string();
}

std::string Encode(const std::vector<float>& delta, const EncodeOptions& options,
                   absl::Span<float> residual = {}) {
  return Encode(delta, FlatLayout(delta.size()), options, residual);
}

DecodedUpdate Decode(absl::string_view bytes, const SliceLayout& layout) {
  auto decoded = DecodeUpdate(bytes, Sha256Of("layout"), layout);
  EXPECT_TRUE(decoded.ok()) << decoded.status();
  return decoded.ok() ? *std::move(decoded) : DecodedUpdate();
}

// What the receiver gets, as a flat adapter.
std::vector<float> Received(absl::string_view bytes, size_t size) {
  const SliceLayout layout = FlatLayout(size);
  return Flat(Decode(bytes, layout), layout);
}

std::vector<EncodeOptions> AllOptions() {
  std::vector<EncodeOptions> all;
  for (const int bits : {1, 2, 3, 4, 8, 16}) {
    all.push_back({.support = UpdateSupport::kDense, .value_bits = bits});
    all.push_back(
        {.support = UpdateSupport::kSeeded, .density = 0.02, .value_bits = bits, .seed = 5});
    all.push_back(TopK(0.02, bits));
  }
  all.push_back(TopK(0.001, 4));
  all.push_back(TopK(0.3, 2));
  all.push_back(TopK(1, 4));
  all.push_back({.support = UpdateSupport::kTopK, .density = 0.01, .per_run = true});
  for (const int bits : {1, 2, 8, 16}) {
    all.push_back({.support = UpdateSupport::kSeeded,
                   .density = 0.1,
                   .value_bits = bits,
                   .stochastic = true,
                   .rounding_seed = 8});
  }
  for (const double bits : {1.0, 0.25, 0.07}) all.push_back(Trellis(bits));
  all.push_back({.support = UpdateSupport::kTrellis, .density = 0.2, .relaxation = 1.4});
  return all;
}

// Three modules of rank 4 that differ in size.
LoraSpec SampleSpec() {
  std::vector<LoraModule> modules(3);
  for (size_t i = 0; i < modules.size(); ++i) {
    modules[i].tensor = absl::StrCat("blk.", i, ".attn_q.weight");
    modules[i].in_features = 40 + 30 * static_cast<int64_t>(i);
    modules[i].out_features = 25;
    modules[i].rank = 4;
  }
  return LoraSpec::Create("llama", 8, modules).value();
}

TEST(UpdateCodecTest, CarriesItsHeader) {
  const std::vector<float> delta = RandomDelta(1000, 1);
  const std::string bytes = Encode(delta, TopK(0.1, 4));
  const auto header = ReadUpdateHeader(bytes);
  ASSERT_TRUE(header.ok()) << header.status();
  for (const UpdateHeader& read : {*header, Decode(bytes, FlatLayout(1000)).header}) {
    EXPECT_EQ(read.support, UpdateSupport::kTopK);
    EXPECT_EQ(read.slice, AdapterSlice());
    EXPECT_EQ(read.round, 7u);
    EXPECT_EQ(read.base_version, 6u);
    EXPECT_EQ(read.num_examples, 120u);
    EXPECT_EQ(read.layout_hash, Sha256Of("layout"));
    EXPECT_EQ(read.base_model, Sha256Of("base model"));
    EXPECT_EQ(read.num_parameters, 1000u);
    EXPECT_EQ(read.num_nonzero, 100u);
    EXPECT_EQ(read.value_bits, 4);
    EXPECT_EQ(read.seed, 0u);
  }
  EXPECT_TRUE(ReadUpdateHeader(absl::string_view(bytes).substr(0, kUpdateHeaderBytes)).ok());
}

TEST(UpdateCodecTest, EncodesTheSameBytesEveryTime) {
  const std::vector<float> delta = RandomDelta(200000, 2);
  for (const EncodeOptions& options : AllOptions()) {
    std::vector<float> residual(delta.size());
    const std::string bytes = Encode(delta, options);
    EXPECT_EQ(bytes, Encode(delta, options));
    EXPECT_EQ(bytes, Encode(delta, options, absl::MakeSpan(residual)));
  }
}

TEST(UpdateCodecTest, LeavesExactlyTheDifferenceAsResidual) {
  const std::vector<float> delta = RandomDelta(140000, 4);
  const SliceLayout layout = FlatLayout(delta.size());
  for (const EncodeOptions& options : AllOptions()) {
    std::vector<float> residual(delta.size(), 9.0f);
    const std::string bytes = Encode(delta, options, absl::MakeSpan(residual));
    const std::vector<float> received = Received(bytes, delta.size());
    for (size_t i = 0; i < delta.size(); ++i) ASSERT_EQ(residual[i], delta[i] - received[i]) << i;
    // In place gives the same.
    std::vector<float> both = delta;
    const auto in_place = EncodeUpdate(both, layout, SampleHeader(), options, absl::MakeSpan(both));
    ASSERT_TRUE(in_place.ok());
    EXPECT_EQ(*in_place, bytes);
    EXPECT_EQ(both, residual);
  }
}

// Whatever the slice, what is outside it is neither read, sent nor touched.
TEST(UpdateCodecTest, SendsASliceAndLeavesTheRestAlone) {
  const LoraSpec spec = SampleSpec();
  const std::vector<float> clean = RandomDelta(static_cast<size_t>(spec.num_parameters()), 5);
  for (const AdapterSlice& slice :
       {AdapterSlice{SliceFactors::kA, 0, 4}, AdapterSlice{SliceFactors::kB, 0, kMaxLoraRank},
        AdapterSlice{SliceFactors::kBoth, 0, 2}, AdapterSlice{SliceFactors::kB, 1, 3}}) {
    const SliceLayout layout = SliceLayout::Create(spec, slice).value();
    std::vector<float> inside(clean.size(), 1.0f);
    layout.ClearOutside(absl::MakeSpan(inside));
    std::vector<float> delta = clean;
    for (size_t i = 0; i < delta.size(); ++i) {
      if (inside[i] == 0) delta[i] = std::numeric_limits<float>::infinity();
    }
    for (const EncodeOptions& options : AllOptions()) {
      std::vector<float> residual(delta.size(), 9.0f);
      const std::string bytes = Encode(delta, layout, options, absl::MakeSpan(residual));
      const DecodedUpdate decoded = Decode(bytes, layout);
      EXPECT_EQ(decoded.header.slice, slice);
      EXPECT_EQ(decoded.header.num_parameters, static_cast<uint64_t>(layout.size()));
      EXPECT_TRUE(std::is_sorted(decoded.coordinates.begin(), decoded.coordinates.end()));
      const bool all = decoded.header.num_nonzero == decoded.header.num_parameters;
      EXPECT_EQ(decoded.coordinates.size(), all ? 0 : decoded.values.size());
      const std::vector<float> received = Flat(decoded, layout);
      for (size_t i = 0; i < delta.size(); ++i) {
        ASSERT_EQ(residual[i], inside[i] == 0 ? 9.0f : delta[i] - received[i]) << i;
        ASSERT_EQ(inside[i] == 0 ? received[i] : 0.0f, 0.0f) << i;
      }
    }
  }
}

TEST(UpdateCodecTest, RefusesAnotherSliceThanTheExpectedOne) {
  const LoraSpec spec = SampleSpec();
  const SliceLayout a = SliceLayout::Create(spec, {SliceFactors::kA, 0, 4}).value();
  const SliceLayout b = SliceLayout::Create(spec, {SliceFactors::kB, 0, 4}).value();
  const std::vector<float> delta = RandomDelta(static_cast<size_t>(spec.num_parameters()), 6);
  const std::string bytes = Encode(delta, a, TopK(0.1, 2));
  const auto refused = DecodeUpdate(bytes, Sha256Of("layout"), b);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(refused.status().message(),
            "update: of A, components 0-3, the task's slice is B, components 0-3");
  const auto layout = DecodeUpdate(bytes, Sha256Of("another"), a);
  EXPECT_EQ(layout.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(layout.status().message()), HasSubstr(Sha256Of("layout").Hex()));
  EXPECT_THAT(std::string(layout.status().message()), HasSubstr(Sha256Of("another").Hex()));
  const auto size =
      DecodeUpdate(Encode(RandomDelta(64, 1), TopK(0.5, 4)), Sha256Of("layout"), FlatLayout(65));
  EXPECT_EQ(size.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(size.status().message(), "update: 64 parameters, the run's slice has 65");
}

TEST(UpdateCodecTest, AddsAnUpdateTimesAFactor) {
  const LoraSpec spec = SampleSpec();
  const SliceLayout layout = SliceLayout::Create(spec, {SliceFactors::kBoth, 0, 3}).value();
  const std::vector<float> delta = RandomDelta(static_cast<size_t>(spec.num_parameters()), 6);
  for (const EncodeOptions& options : {kDense, TopK(0.1, 2), Trellis(0.5)}) {
    const DecodedUpdate decoded = Decode(Encode(delta, layout, options), layout);
    const std::vector<float> received = Flat(decoded, layout);
    std::vector<float> sum(delta.size(), 2.0f);
    AddUpdate(decoded, layout, 0.5f, absl::MakeSpan(sum));
    for (size_t i = 0; i < sum.size(); ++i) ASSERT_EQ(sum[i], 2.0f + 0.5f * received[i]);
  }
}

TEST(UpdateCodecTest, DenseIsWithinHalfAnUlpOfAHalf) {
  const std::vector<float> delta = RandomDelta(10000, 5);
  const std::vector<float> received = Received(Encode(delta, kDense), delta.size());
  double worst = 0;
  for (size_t i = 0; i < delta.size(); ++i) {
    const double error = std::abs(static_cast<double>(received[i]) - delta[i]);
    ASSERT_LE(error, std::max(std::abs(delta[i]) * 0x1p-11, 0x1p-25));
    if (std::abs(delta[i]) > 0x1p-14) worst = std::max(worst, error / std::abs(delta[i]));
  }
  EXPECT_GT(worst, 0x1p-12);
}

TEST(UpdateCodecTest, SendsTheLargestMagnitudesOnly) {
  const std::vector<float> delta = RandomDelta(5000, 7);
  const std::vector<float> received = Received(Encode(delta, TopK(0.02, 8)), delta.size());
  SelectedValues largest;
  ASSERT_TRUE(SelectLargest(delta, FlatLayout(delta.size()), 100, &largest).ok());
  const std::set<uint32_t> expected(largest.positions.begin(), largest.positions.end());
  for (uint32_t i = 0; i < delta.size(); ++i) {
    EXPECT_EQ(received[i] != 0, expected.contains(i)) << i;
    EXPECT_EQ(std::signbit(received[i]), received[i] != 0 && std::signbit(delta[i]));
  }
}

TEST(UpdateCodecTest, SendsAtLeastOneValueAndNoZeros) {
  const std::string one = Encode(RandomDelta(100, 8), TopK(1e-9, 2));
  EXPECT_EQ(Decode(one, FlatLayout(100)).header.num_nonzero, 1u);
  const std::string none = Encode(std::vector<float>(100, 1e-9f), TopK(0.5, 2));
  EXPECT_LE(none.size(), kUpdateHeaderBytes + 8);
  EXPECT_EQ(Decode(none, FlatLayout(100)).header.num_nonzero, 0u);
  EXPECT_THAT(Received(none, 100), Each(0.0f));
}

TEST(UpdateCodecTest, RefusesValuesItCannotHold) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity,
                          std::nextafter(65504.0f, infinity), -65505.0f}) {
    for (const EncodeOptions& options : {kDense, TopK(0.5, 4), Trellis(0.5)}) {
      std::vector<float> delta = RandomDelta(50, 9);
      delta[17] = bad;
      std::vector<float> residual(50, 3.0f);
      const auto bytes =
          EncodeUpdate(delta, FlatLayout(50), SampleHeader(), options, absl::MakeSpan(residual));
      EXPECT_EQ(bytes.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(bytes.status().message()), HasSubstr("value 17 of the update is"));
      EXPECT_THAT(residual, Each(3.0f));
    }
  }
}

EncodeOptions Relaxed(double relaxation) {
  EncodeOptions options = Trellis(0.5);
  options.relaxation = relaxation;
  return options;
}

TEST(UpdateCodecTest, RefusesBadOptionsAndSizes) {
  const std::vector<float> delta(10, 1.0f);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const EncodeOptions& options :
       {TopK(0, 4), TopK(-0.1, 4), TopK(1.01, 4), TopK(nan, 4), TopK(0.5, 5), TopK(0.5, 0),
        EncodeOptions{.support = static_cast<UpdateSupport>(9)}, Trellis(0), Trellis(1.01),
        Trellis(nan), Relaxed(0), Relaxed(-0.5), Relaxed(2), Relaxed(nan)}) {
    EXPECT_EQ(CheckEncodeOptions(options).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(EncodeUpdate(delta, FlatLayout(10), SampleHeader(), options, {}).status().code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_GE(EncodedSizeBound(10, options), EncodedSizeBound(10, kDense));
  }
  EXPECT_EQ(EncodeUpdate(delta, FlatLayout(11), SampleHeader(), kDense, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  std::vector<float> residual(9);
  EXPECT_EQ(EncodeUpdate(delta, FlatLayout(10), SampleHeader(), kDense, absl::MakeSpan(residual))
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
}

// Deltas whose positions are the worst for gap codes, each with `count` candidates.
std::vector<std::vector<float>> AdversarialDeltas(size_t size, size_t count) {
  Rng rng(size * 31 + count);
  const auto put = [&](const auto& position_of) {
    std::vector<float> delta(size);
    for (size_t i = 0; i < count; ++i) {
      delta[position_of(i) % size] = static_cast<float>(1e-3 + rng.Uniform());
    }
    return delta;
  };
  std::vector<std::vector<float>> deltas;
  deltas.push_back(RandomDelta(size, rng.Next()));
  deltas.push_back(put([](size_t i) { return i; }));                           // all at the start
  deltas.push_back(put([&](size_t i) { return size - 1 - i; }));               // all at the end
  deltas.push_back(put([&](size_t i) { return i * (size / count); }));         // evenly spread
  deltas.push_back(put([&](size_t i) { return i % 2 == 0 ? i : size - i; }));  // both ends
  deltas.push_back(put([&](size_t i) {                                         // clusters far apart
    return (i / 5) * (5 * size / count) + i % 5 * (1 + i % 2);
  }));
  return deltas;
}

TEST(UpdateCodecTest, NeverPassesItsSizeBound) {
  double tightest = 0;
  for (const size_t size : {2u, 63u, 1000u, 131073u, 300000u}) {
    for (const double density : {1e-5, 0.001, 0.01, 0.05, 0.2, 0.5, 0.9, 1.0}) {
      const auto count =
          std::max<size_t>(1, static_cast<size_t>(std::round(density * static_cast<double>(size))));
      for (const std::vector<float>& delta : AdversarialDeltas(size, count)) {
        for (const int bits : {1, 2, 4, 8, 16}) {
          const EncodeOptions options = TopK(density, bits);
          const uint64_t bound = EncodedSizeBound(size, options);
          const uint64_t encoded = Encode(delta, options).size();
          ASSERT_LE(encoded, bound) << size << " " << density << " " << bits;
          tightest = std::max(tightest, static_cast<double>(encoded) / static_cast<double>(bound));
        }
      }
    }
    for (const int bits : {1, 2, 4, 8, 16}) {
      const EncodeOptions dense = {.support = UpdateSupport::kDense, .value_bits = bits};
      ASSERT_LE(Encode(RandomDelta(size, 1), dense).size(), EncodedSizeBound(size, dense));
    }
  }
  EXPECT_GT(tightest, 0.98);  // an upper bound, not a guess far above
}

TEST(UpdateCodecTest, BoundsTheLargestAdapterWithoutOverflow) {
  const uint64_t n = uint64_t{1} << 31;
  EXPECT_GE(EncodedSizeBound(n, kDense), 2 * n + kUpdateHeaderBytes);
  EXPECT_LE(EncodedSizeBound(n, kDense), 2 * n + kUpdateHeaderBytes + 16);
  EXPECT_GT(EncodedSizeBound(n, TopK(1, 8)), n + n / 8);
  EXPECT_LT(EncodedSizeBound(n, TopK(1, 8)), n + n / 8 + n / 16);
}

TEST(UpdateCodecTest, FillsItsBudget) {
  const std::vector<float> delta = RandomDelta(100000, 3);
  const SliceLayout layout = FlatLayout(delta.size());
  for (const auto support : {UpdateSupport::kTopK, UpdateSupport::kSeeded}) {
    for (const int bits : {1, 2, 8}) {
      for (const uint64_t budget : {400u, 2000u, 10000u}) {
        const EncodeOptions options = {
            .support = support, .value_bits = bits, .seed = 3, .budget_bytes = budget};
        std::vector<float> residual(delta.size());
        const std::string bytes = Encode(delta, layout, options, absl::MakeSpan(residual));
        EXPECT_LE(bytes.size(), budget);
        EXPECT_GE(static_cast<double>(bytes.size()), 0.95 * static_cast<double>(budget));
        EXPECT_EQ(bytes, Encode(delta, layout, options));
        const std::vector<float> received = Received(bytes, delta.size());
        for (size_t i = 0; i < delta.size(); ++i) ASSERT_EQ(residual[i], delta[i] - received[i]);
      }
    }
  }
  // More than everything needs; less than one value does.
  const EncodeOptions ample = {.value_bits = 2, .budget_bytes = 1'000'000};
  const uint64_t sent = Decode(Encode(delta, ample), layout).header.num_nonzero;
  EXPECT_GT(sent, 99900u);  // all but those below 2^-24
  const EncodeOptions none = {.value_bits = 2, .budget_bytes = 133};
  EXPECT_EQ(EncodeUpdate(delta, layout, SampleHeader(), none, {}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(UpdateCodecTest, SendsTheFinestTrellisThatFitsItsBudget) {
  const SliceLayout layout = SliceLayout::Whole(testing::QwenHalfBillionSpec(1));
  const auto size = static_cast<size_t>(layout.size());
  const std::vector<float> delta = RandomDelta(size, 3);
  for (const uint64_t budget : {1300u, 2000u, 10000u, 60000u, 100000u}) {
    EncodeOptions options = Trellis(1);
    options.budget_bytes = budget;
    EXPECT_EQ(EncodedSizeBound(size, options), budget);
    std::vector<float> residual(size);
    const std::string bytes = Encode(delta, layout, options, absl::MakeSpan(residual));
    EXPECT_LE(bytes.size(), budget);
    if (budget < size / 8) {
      EXPECT_GE(bytes.size(), budget * 9 / 10);
    }
    const auto decoded = DecodeUpdate(bytes, Sha256Of("layout"), layout);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    for (size_t i = 0; i < size; ++i) ASSERT_EQ(residual[i], delta[i] - decoded->values[i]);
  }
  EncodeOptions none = Trellis(1);
  none.budget_bytes = 1000;
  std::vector<float> residual(size, 3.0f);
  const auto refused = EncodeUpdate(delta, layout, SampleHeader(), none, absl::MakeSpan(residual));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  const uint64_t least = EncodedSizeBound(size, Trellis(1.0 / 64));
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr(absl::StrCat("raise it to ", least)));
  EXPECT_THAT(residual, Each(3.0f));
  none.budget_bytes = least;
  EXPECT_LE(Encode(delta, layout, none).size(), least);
}

// One threshold for all tensors is the water level: it keeps more energy than the same share of
// each, at about the same bytes.
TEST(UpdateCodecTest, OneThresholdKeepsMoreThanEqualShares) {
  const SliceLayout layout = SliceLayout::Whole(testing::QwenHalfBillionSpec(1));
  const std::vector<float> delta = testing::StructuredDelta(layout, 1);
  double kept[2] = {0, 0};
  size_t sizes[2] = {0, 0};
  for (const bool per_run : {false, true}) {
    const EncodeOptions options = {.density = 0.01, .per_run = per_run, .value_bits = 2};
    const std::string bytes = Encode(delta, layout, options);
    sizes[per_run ? 1 : 0] = bytes.size();
    const std::vector<float> received = Flat(Decode(bytes, layout), layout);
    for (size_t i = 0; i < delta.size(); ++i) {
      if (received[i] != 0) kept[per_run ? 1 : 0] += static_cast<double>(delta[i]) * delta[i];
    }
  }
  EXPECT_GT(kept[0], 1.1 * kept[1]);
  EXPECT_LT(sizes[0], sizes[1]);
}

}  // namespace
}  // namespace fedge
