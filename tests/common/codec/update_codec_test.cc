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
#include "common/codec/sparse_payload.h"
#include "common/codec/update_header.h"
#include "common/tensor/quantize.h"
#include "tests/testing/reference_update_decoder.h"
#include "tests/testing/update_samples.h"

namespace fedge {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using testing::RandomDelta;
using testing::ReferenceUpdateDecoder;
using testing::SampleHeader;

constexpr EncodeOptions kDense = {.encoding = UpdateEncoding::kDenseFp16};

EncodeOptions TopK(double density, int bits) {
  return {.encoding = UpdateEncoding::kTopK, .density = density, .value_bits = bits};
}

std::string Encode(const std::vector<float>& delta, const EncodeOptions& options,
                   absl::Span<float> residual = {}) {
  auto bytes = EncodeUpdate(delta, SampleHeader(delta.size()), options, residual);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.ok() ? *std::move(bytes) : std::string();
}

DecodedUpdate Decode(absl::string_view bytes, size_t size) {
  auto decoded = DecodeUpdate(bytes, Sha256Of("layout"), size);
  EXPECT_TRUE(decoded.ok()) << decoded.status();
  return decoded.ok() ? *std::move(decoded) : DecodedUpdate();
}

std::vector<EncodeOptions> AllOptions() {
  return {kDense,        TopK(0.001, 4), TopK(0.01, 2), TopK(0.05, 4),
          TopK(0.05, 8), TopK(0.3, 2),   TopK(1.0, 4),  TopK(1.0, 8)};
}

TEST(UpdateCodecTest, CarriesItsHeader) {
  const std::vector<float> delta = RandomDelta(1000, 1);
  const std::string bytes = Encode(delta, TopK(0.1, 4));
  const auto header = ReadUpdateHeader(bytes);
  ASSERT_TRUE(header.ok()) << header.status();
  for (const UpdateHeader& read : {*header, Decode(bytes, 1000).header}) {
    EXPECT_EQ(read.encoding, UpdateEncoding::kTopK);
    EXPECT_EQ(read.round, 7u);
    EXPECT_EQ(read.base_version, 6u);
    EXPECT_EQ(read.num_examples, 120u);
    EXPECT_EQ(read.layout_hash, Sha256Of("layout"));
    EXPECT_EQ(read.base_model, Sha256Of("base model"));
    EXPECT_EQ(read.num_parameters, 1000u);
    EXPECT_EQ(read.num_nonzero, 100u);
    EXPECT_EQ(read.value_bits, 4);
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

TEST(UpdateCodecTest, DecodesWhatTheReferenceDecoderDecodes) {
  Rng rng(3);
  for (int round = 0; round < 60; ++round) {
    const size_t size = 1 + static_cast<size_t>(rng.Below(round % 10 == 0 ? 300000 : 3000));
    const std::vector<float> delta = RandomDelta(size, rng.Next());
    for (const EncodeOptions& options : AllOptions()) {
      const std::string bytes = Encode(delta, options);
      const auto reference = ReferenceUpdateDecoder::Decode(bytes, Sha256Of("layout").Raw(), size);
      ASSERT_TRUE(reference.has_value());
      const DecodedUpdate decoded = Decode(bytes, size);
      ASSERT_EQ(decoded.values, reference->values);
      ASSERT_EQ(decoded.header.num_nonzero, reference->num_nonzero);
      if (size > 3000) break;  // the reference is slow
    }
  }
}

TEST(UpdateCodecTest, LeavesExactlyTheDifferenceAsResidual) {
  const std::vector<float> delta = RandomDelta(140000, 4);
  for (const EncodeOptions& options : AllOptions()) {
    std::vector<float> residual(delta.size(), 9.0f);
    const std::string bytes = Encode(delta, options, absl::MakeSpan(residual));
    const std::vector<float> decoded = Decode(bytes, delta.size()).values;
    for (size_t i = 0; i < delta.size(); ++i) ASSERT_EQ(residual[i], delta[i] - decoded[i]) << i;
    // In place gives the same.
    std::vector<float> both = delta;
    const auto in_place =
        EncodeUpdate(both, SampleHeader(both.size()), options, absl::MakeSpan(both));
    ASSERT_TRUE(in_place.ok());
    EXPECT_EQ(*in_place, bytes);
    EXPECT_EQ(both, residual);
  }
}

TEST(UpdateCodecTest, DenseIsWithinHalfAnUlpOfAHalf) {
  const std::vector<float> delta = RandomDelta(10000, 5);
  const std::string bytes = Encode(delta, kDense);
  EXPECT_EQ(bytes.size(), kUpdateHeaderBytes + 20000);
  const DecodedUpdate decoded = Decode(bytes, delta.size());
  EXPECT_EQ(decoded.header.value_bits, 16);
  double worst = 0;
  for (size_t i = 0; i < delta.size(); ++i) {
    const double error = std::abs(static_cast<double>(decoded.values[i]) - delta[i]);
    ASSERT_LE(error, std::max(std::abs(delta[i]) * 0x1p-11, 0x1p-25));
    if (std::abs(delta[i]) > 0x1p-14) worst = std::max(worst, error / std::abs(delta[i]));
  }
  EXPECT_GT(worst, 0x1p-12);
}

// Root mean square error of the values that were sent relative to their own, with both bounds: a
// bit more means half the error.
TEST(UpdateCodecTest, ErrsAsMuchAsItsBitsSay) {
  const std::vector<float> delta = RandomDelta(262144, 6);
  struct Case {
    int bits;
    double at_least;
    double at_most;
  };
  for (const Case& c : {Case{2, 0.085, 0.12}, Case{4, 0.021, 0.030}, Case{8, 0.0013, 0.0019}}) {
    const std::vector<float> decoded =
        Decode(Encode(delta, TopK(0.05, c.bits)), delta.size()).values;
    double error = 0;
    double energy = 0;
    for (const uint32_t i : SelectLargest(delta, 13107)) {
      error += std::pow(static_cast<double>(decoded[i]) - delta[i], 2);
      energy += std::pow(static_cast<double>(delta[i]), 2);
    }
    const double relative = std::sqrt(error / energy);
    EXPECT_GT(relative, c.at_least) << c.bits;
    EXPECT_LT(relative, c.at_most) << c.bits;
  }
}

TEST(UpdateCodecTest, SendsTheLargestMagnitudesOnly) {
  const std::vector<float> delta = RandomDelta(5000, 7);
  const std::vector<float> decoded = Decode(Encode(delta, TopK(0.02, 8)), delta.size()).values;
  const std::vector<uint32_t> largest = SelectLargest(delta, 100);
  const std::set<uint32_t> expected(largest.begin(), largest.end());
  for (uint32_t i = 0; i < delta.size(); ++i) {
    EXPECT_EQ(decoded[i] != 0, expected.contains(i)) << i;
    EXPECT_EQ(std::signbit(decoded[i]), decoded[i] != 0 && std::signbit(delta[i]));
  }
}

TEST(UpdateCodecTest, SendsAtLeastOneValueAndNoZeros) {
  const std::string one = Encode(RandomDelta(100, 8), TopK(1e-9, 2));
  EXPECT_EQ(Decode(one, 100).header.num_nonzero, 1u);
  const std::string none = Encode(std::vector<float>(100, 1e-9f), TopK(0.5, 2));
  EXPECT_EQ(none.size(), kUpdateHeaderBytes + 3);
  const DecodedUpdate decoded = Decode(none, 100);
  EXPECT_EQ(decoded.header.num_nonzero, 0u);
  EXPECT_THAT(decoded.values, Each(0.0f));
}

TEST(UpdateCodecTest, HoldsTheExtremesOfItsRange) {
  const std::vector<float> delta = {65504.0f, -65504.0f, 0x1p-24f, -0x1p-24f, 0.0f, -0.0f};
  EXPECT_EQ(Decode(Encode(delta, kDense), delta.size()).values, delta);
  for (const int bits : {2, 4, 8}) {
    const std::vector<float> decoded = Decode(Encode(delta, TopK(1, bits)), delta.size()).values;
    EXPECT_NEAR(decoded[0], 65504.0f, 65504.0 / (1 << bits) * 1.01);
    EXPECT_EQ(decoded[1], -decoded[0]);
    EXPECT_EQ(decoded[4], 0.0f);
  }
}

TEST(UpdateCodecTest, RefusesValuesItCannotHold) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity,
                          std::nextafter(65504.0f, infinity), -65505.0f}) {
    for (const EncodeOptions& options : {kDense, TopK(0.5, 4)}) {
      std::vector<float> delta = RandomDelta(50, 9);
      delta[17] = bad;
      std::vector<float> residual(50, 3.0f);
      const auto bytes = EncodeUpdate(delta, SampleHeader(50), options, absl::MakeSpan(residual));
      EXPECT_EQ(bytes.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(bytes.status().message()), HasSubstr("value 17 of the update is"));
      EXPECT_THAT(residual, Each(3.0f));
    }
  }
}

TEST(UpdateCodecTest, RefusesBadOptionsAndSizes) {
  const std::vector<float> delta(10, 1.0f);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const EncodeOptions& options :
       {TopK(0, 4), TopK(-0.1, 4), TopK(1.01, 4), TopK(nan, 4), TopK(0.5, 3), TopK(0.5, 16),
        EncodeOptions{.encoding = static_cast<UpdateEncoding>(9)}}) {
    EXPECT_EQ(CheckEncodeOptions(options).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(EncodeUpdate(delta, SampleHeader(10), options, {}).status().code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_GE(EncodedSizeBound(10, options), EncodedSizeBound(10, TopK(1, 8)));
  }
  EXPECT_EQ(EncodeUpdate(delta, SampleHeader(11), kDense, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(EncodeUpdate({}, SampleHeader(0), kDense, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  std::vector<float> residual(9);
  EXPECT_EQ(EncodeUpdate(delta, SampleHeader(10), kDense, absl::MakeSpan(residual)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// Deltas whose positions are the worst for Rice codes and blocks, each with `count` candidates.
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
  deltas.push_back(put([&](size_t i) {  // clusters of one to nine, far apart
    return (i / 5) * (5 * size / count) + i % 5 * (1 + i % 2);
  }));
  deltas.push_back(put([&](size_t) { return static_cast<size_t>(rng.Below(size)); }));
  return deltas;
}

TEST(UpdateCodecTest, NeverPassesItsSizeBound) {
  double tightest = 0;
  for (const size_t size :
       {1u, 2u, 63u, 64u, 65u, 128u, 129u, 1000u, 131071u, 131072u, 131073u, 131137u, 300000u}) {
    for (const double density : {1e-5, 0.001, 0.01, 0.05, 0.2, 0.5, 0.9, 1.0}) {
      const size_t count =
          std::max<size_t>(1, static_cast<size_t>(std::round(density * static_cast<double>(size))));
      for (const std::vector<float>& delta : AdversarialDeltas(size, count)) {
        for (const int bits : {2, 4, 8}) {
          const EncodeOptions options = TopK(density, bits);
          const uint64_t bound = EncodedSizeBound(size, options);
          const uint64_t encoded = Encode(delta, options).size();
          ASSERT_LE(encoded, bound) << size << " " << density << " " << bits;
          tightest = std::max(tightest, static_cast<double>(encoded) / static_cast<double>(bound));
        }
      }
      ASSERT_EQ(Encode(std::vector<float>(size, 1.0f), kDense).size(),
                EncodedSizeBound(size, kDense));
    }
  }
  EXPECT_GT(tightest, 0.995);  // an upper bound, not a guess far above
  EXPECT_EQ(EncodedSizeBound(0, kDense), kUpdateHeaderBytes);
}

TEST(UpdateCodecTest, BoundsTheLargestAdapterWithoutOverflow) {
  const uint64_t n = uint64_t{1} << 31;
  EXPECT_EQ(EncodedSizeBound(n, kDense), 2 * n + kUpdateHeaderBytes);
  EXPECT_GT(EncodedSizeBound(n, TopK(1, 8)), n + n / 8);
  EXPECT_LT(EncodedSizeBound(n, TopK(1, 8)), n + n / 8 + n / 16);
}

TEST(UpdateCodecTest, CostsAboutTheEntropyOfPositionsAndTheBitsOfValues) {
  const size_t size = 1 << 20;
  const std::vector<float> delta = RandomDelta(size, 10);
  for (const double d : {0.001, 0.01, 0.05}) {
    for (const int bits : {2, 4}) {
      const double floor = -d * std::log2(d) - (1 - d) * std::log2(1 - d) + d * bits;
      const double cost =
          8.0 * static_cast<double>(Encode(delta, TopK(d, bits)).size() - kUpdateHeaderBytes) /
          size;
      // Below 1 because runs differ in scale and blocks adapt; above it because of the steps (a
      // quarter bit a value) and what Rice codes lose.
      EXPECT_GT(cost / floor, 0.95) << d << " " << bits;
      EXPECT_LT(cost / floor, 1.09) << d << " " << bits;
    }
  }
}

}  // namespace
}  // namespace fedge
