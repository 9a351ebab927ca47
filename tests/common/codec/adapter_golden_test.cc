// What must not change without a new format version: committed adapter contents, what they decode
// to, the errors of broken ones and the sizes of typical deltas (proto/ADAPTER_FORMAT.md).
// FEDGE_WRITE_GOLDEN=1 rewrites the files; a change there is explained in its commit.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/env.h"
#include "common/codec/adapter_delta.h"
#include "tests/testing/adapter_samples.h"
#include "tests/testing/reference_adapter_decoder.h"

namespace fedge {
namespace {

using testing::RandomUnits;
using testing::ReferenceAdapterDecoder;
using testing::ResealAdapter;
using testing::SampleSpec;

const char kFolder[] = FEDGE_SOURCE_DIR "/tests/golden/adapter";
const Digest kBase = Sha256Of("base model");

bool Rewriting() { return std::getenv("FEDGE_WRITE_GOLDEN") != nullptr; }

// The committed file, after it was written anew if that is asked for.
std::string Golden(absl::string_view name, absl::string_view now) {
  const std::string path = JoinPath(kFolder, name);
  if (Rewriting()) {
    EXPECT_TRUE(Env::Posix()->CreateDirs(DirName(path)).ok());
    EXPECT_TRUE(Env::Posix()->WriteFileAtomic(path, now).ok());
  }
  auto bytes = Env::Posix()->ReadFile(path);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.value_or("");
}

std::string Delta(const LoraSpec& spec, const std::vector<int32_t>& units) {
  AdapterHeader header;
  header.from_version = 3;
  header.to_version = 7;
  header.base_model = kBase;
  header.values_crc = 0x12345678;
  return EncodeAdapterDelta(spec, header, units);
}

std::string Values(AdapterEncoding encoding) {
  LoraAdapter adapter(SampleSpec(8, 2));
  adapter.InitializeForTraining(1);
  AdapterHeader header;
  header.encoding = encoding;
  header.to_version = 2;
  header.base_model = kBase;
  return EncodeAdapterValues(adapter.spec(), header, adapter.values()).value();
}

struct Sample {
  std::string name;
  double density;
  double deviation;
  int exponent;
};
const Sample kDeltas[] = {{"sparse", 0.03, 1, 12}, {"dense", 1, 5, 9}, {"wide", 0.3, 1e6, 0}};

TEST(AdapterGoldenTest, EncodesAndDecodesTheCommittedDeltas) {
  const LoraSpec spec = SampleSpec(64, 4);
  for (const Sample& sample : kDeltas) {
    const std::vector<int32_t> units =
        RandomUnits(spec, sample.density, sample.deviation, sample.exponent, 2);
    const std::string bytes = Delta(spec, units);
    const std::string committed = Golden(absl::StrCat("accept/", sample.name, ".fdga"), bytes);
    EXPECT_EQ(absl::BytesToHexString(committed), absl::BytesToHexString(bytes)) << sample.name;
    std::vector<int32_t> decoded(units.size());
    ASSERT_TRUE(AddAdapterDelta(spec, kBase, committed, absl::MakeSpan(decoded)).ok());
    EXPECT_EQ(decoded, units);
    const auto reference =
        ReferenceAdapterDecoder::Decode(spec, committed.substr(kAdapterHeaderBytes));
    ASSERT_TRUE(reference.has_value());
    EXPECT_EQ(*reference, std::vector<int64_t>(units.begin(), units.end()));
  }
}

TEST(AdapterGoldenTest, EncodesTheCommittedValues) {
  const std::map<std::string, AdapterEncoding> encodings = {
      {"accept/fp16.fdga", AdapterEncoding::kFp16}, {"accept/fp32.fdga", AdapterEncoding::kFp32}};
  for (const auto& [name, encoding] : encodings) {
    const std::string bytes = Values(encoding);
    EXPECT_EQ(absl::BytesToHexString(Golden(name, bytes)), absl::BytesToHexString(bytes)) << name;
  }
}

// The reference decoder agrees on whatever decodes, and refuses what does not.
TEST(AdapterGoldenTest, AgreesWithTheReferenceOnAnyPayload) {
  const LoraSpec spec = SampleSpec(8, 2);
  int accepted = 0;
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    Rng rng(seed);
    std::string payload(rng.Below(24), '\0');
    for (char& c : payload) c = static_cast<char>(rng.Below(256));
    const auto reference = ReferenceAdapterDecoder::Decode(spec, payload);
    std::string bytes =
        Delta(spec, std::vector<int32_t>(static_cast<size_t>(spec.num_parameters())));
    uint64_t count = 0;
    if (reference) {
      for (const int64_t unit : *reference) count += unit != 0 ? 1 : 0;
    }
    bytes.resize(kAdapterHeaderBytes);
    bytes[96] = static_cast<char>(count);
    bytes += payload;
    ResealAdapter(&bytes);
    std::vector<int32_t> units(static_cast<size_t>(spec.num_parameters()));
    const auto decoded = AddAdapterDelta(spec, kBase, bytes, absl::MakeSpan(units));
    ASSERT_EQ(decoded.ok(), reference.has_value()) << seed << ": " << decoded.status();
    if (!reference) continue;
    ++accepted;
    EXPECT_EQ(std::vector<int64_t>(units.begin(), units.end()), *reference);
  }
  EXPECT_GT(accepted, 10);
  EXPECT_LT(accepted, 1900);
}

TEST(AdapterGoldenTest, RejectsTheCommittedBrokenContents) {
  const LoraSpec spec = SampleSpec(64, 4);
  const std::string good = Delta(spec, RandomUnits(spec, 0.03, 1, 12, 2));
  const auto with = [&](size_t offset, absl::string_view bytes) {
    std::string broken = good;
    broken.replace(offset, bytes.size(), bytes.data(), bytes.size());
    ResealAdapter(&broken);
    return broken;
  };
  std::string unsealed = good;
  unsealed.back() = static_cast<char>(unsealed.back() ^ 1);
  std::string longer = good + std::string(8, '\x01');  // beyond what the decoder looks ahead
  ResealAdapter(&longer);
  const std::map<std::string, std::pair<std::string, absl::StatusCode>> broken = {
      {"magic", {with(0, "FDGB"), absl::StatusCode::kInvalidArgument}},
      {"version", {with(4, "\x02"), absl::StatusCode::kUnimplemented}},
      {"encoding", {with(5, "\x09"), absl::StatusCode::kUnimplemented}},
      {"reserved", {with(6, "\x01"), absl::StatusCode::kInvalidArgument}},
      {"backwards", {with(8, "\x09"), absl::StatusCode::kInvalidArgument}},
      {"layout", {with(24, "LAYOUT"), absl::StatusCode::kFailedPrecondition}},
      {"base_model", {with(56, "BASE"), absl::StatusCode::kFailedPrecondition}},
      {"too_many", {with(88, "\xFF\xFF\xFF\xFF\x01"), absl::StatusCode::kInvalidArgument}},
      {"count", {with(96, "\x01"), absl::StatusCode::kInvalidArgument}},
      {"left_over", {longer, absl::StatusCode::kInvalidArgument}},
      {"cut_off", {good.substr(0, 130), absl::StatusCode::kInvalidArgument}},
      {"checksum", {unsealed, absl::StatusCode::kDataLoss}},
  };
  for (const auto& [name, expected] : broken) {
    const std::string bytes = Golden(absl::StrCat("reject/", name, ".fdga"), expected.first);
    std::vector<int32_t> units(static_cast<size_t>(spec.num_parameters()));
    const auto status = AddAdapterDelta(spec, kBase, bytes, absl::MakeSpan(units)).status();
    EXPECT_EQ(status.code(), expected.second) << name << ": " << status;
  }
}

TEST(AdapterGoldenTest, SizesAreThoseOfTheTable) {
  std::string table = "density,deviation,parameters,bytes,bits_per_parameter\n";
  const LoraSpec spec = SampleSpec(1024, 16);
  for (const double density : {0.005, 0.01, 0.03, 0.1, 0.3, 1.0}) {
    for (const double deviation : {1.0, 8.0}) {
      const size_t bytes = Delta(spec, RandomUnits(spec, density, deviation, 12, 3)).size();
      absl::StrAppendFormat(
          &table, "%g,%g,%d,%d,%.4f\n", density, deviation, spec.num_parameters(), bytes,
          8.0 * static_cast<double>(bytes) / static_cast<double>(spec.num_parameters()));
    }
  }
  EXPECT_EQ(Golden("sizes.csv", table), table);
}

}  // namespace
}  // namespace fedge
