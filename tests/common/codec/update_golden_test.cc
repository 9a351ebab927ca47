// What must not change without a new format version: committed updates, their decoded values, the
// errors of broken ones, sizes, and the example in proto/UPDATE_FORMAT.md.
// FEDGE_WRITE_GOLDEN=1 rewrites the files; a change there is explained in its commit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/env.h"
#include "common/codec/update_codec.h"
#include "common/codec/update_header.h"
#include "tests/testing/reference_update_decoder.h"
#include "tests/testing/update_samples.h"

namespace fedge {
namespace {

using testing::RandomDelta;
using testing::Reseal;
using testing::SampleHeader;

const char kFolder[] = FEDGE_SOURCE_DIR "/tests/golden/update";

bool Rewriting() { return std::getenv("FEDGE_WRITE_GOLDEN") != nullptr; }

std::string ReadGolden(absl::string_view name) {
  auto bytes = Env::Posix()->ReadFile(JoinPath(kFolder, name));
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.ok() ? *std::move(bytes) : std::string();
}

void WriteGolden(absl::string_view name, absl::string_view bytes) {
  const std::string path = JoinPath(kFolder, name);
  ASSERT_TRUE(Env::Posix()->CreateDirs(DirName(path)).ok());
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(path, bytes).ok());
}

std::string Encode(const std::vector<float>& delta, const EncodeOptions& options) {
  auto bytes = EncodeUpdate(delta, SampleHeader(delta.size()), options, {});
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.ok() ? *std::move(bytes) : std::string();
}

EncodeOptions TopK(double density, int bits) {
  return {.encoding = UpdateEncoding::kTopK, .density = density, .value_bits = bits};
}

// The update of the worked example.
std::string Example() {
  std::vector<float> delta(16, 0.0625f);
  delta[2] = 0.5f;
  delta[3] = -0.25f;
  delta[9] = 1.0f;
  delta[15] = -0.375f;
  return Encode(delta, TopK(0.25, 4));
}

std::map<std::string, std::string> AcceptedUpdates() {
  std::vector<float> two_blocks(131080);
  two_blocks[5] = 0.5f;
  two_blocks[131071] = -0.25f;
  two_blocks[131072] = 1.0f;
  const EncodeOptions dense = {.encoding = UpdateEncoding::kDenseFp16};
  return {
      {"accept/dense.fdgu", Encode(RandomDelta(40, 1), dense)},
      {"accept/top_k_2_bits.fdgu", Encode(RandomDelta(600, 2), TopK(0.2, 2))},
      {"accept/top_k_4_bits.fdgu", Encode(RandomDelta(600, 3), TopK(0.2, 4))},
      {"accept/top_k_8_bits.fdgu", Encode(RandomDelta(600, 4), TopK(0.2, 8))},
      {"accept/all_sent.fdgu", Encode(RandomDelta(70, 5), TopK(1, 4))},
      {"accept/nothing_sent.fdgu", Encode(std::vector<float>(33), TopK(0.5, 4))},
      {"accept/two_blocks.fdgu", Encode(two_blocks, TopK(1, 2))},
      {"accept/example.fdgu", Example()},
  };
}

TEST(UpdateGoldenTest, EncodesAndDecodesTheCommittedUpdates) {
  std::string table = "file,parameters,sha256_of_values\n";
  for (const auto& [name, bytes] : AcceptedUpdates()) {
    if (Rewriting()) WriteGolden(name, bytes);
    const std::string committed = ReadGolden(name);
    EXPECT_EQ(absl::BytesToHexString(committed), absl::BytesToHexString(bytes)) << name;
    const auto header = ReadUpdateHeader(committed);
    ASSERT_TRUE(header.ok()) << name << ": " << header.status();
    const auto decoded = DecodeUpdate(committed, header->layout_hash, header->num_parameters);
    ASSERT_TRUE(decoded.ok()) << name << ": " << decoded.status();
    const absl::string_view raw(reinterpret_cast<const char*>(decoded->values.data()),
                                decoded->values.size() * sizeof(float));
    absl::StrAppend(&table, name, ",", header->num_parameters, ",", Sha256Of(raw).Hex(), "\n");
  }
  if (Rewriting()) WriteGolden("accept.csv", table);
  EXPECT_EQ(ReadGolden("accept.csv"), table);
}

struct Rejected {
  std::string bytes;
  absl::StatusCode code;
};

std::string With(std::string bytes, size_t offset, absl::string_view replacement) {
  bytes.replace(offset, replacement.size(), replacement.data(), replacement.size());
  Reseal(&bytes);
  return bytes;
}

// Offsets of the example's payload, see the page: 128 head, 131 gaps, 133 base, 135 step, 137
// words.
std::map<std::string, Rejected> RejectedUpdates() {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  const std::string good = Example();
  const std::string dense =
      Encode(RandomDelta(8, 1), {.encoding = UpdateEncoding::kDenseFp16, .density = 1});
  const std::string count_5("\x05\x00\x04", 3);
  std::string wrong_header_crc = good;
  wrong_header_crc[8] = static_cast<char>(wrong_header_crc[8] ^ 1);
  std::string wrong_payload_crc = good;
  wrong_payload_crc.back() = static_cast<char>(wrong_payload_crc.back() ^ 1);
  std::string trailing = good + std::string(1, '\0');
  Reseal(&trailing);
  std::string cut = good.substr(0, good.size() - 1);
  Reseal(&cut);
  return {
      {"reject/short_header.fdgu", {good.substr(0, 127), kInvalid}},
      {"reject/magic.fdgu", {With(good, 0, "GGUF"), kInvalid}},
      {"reject/version.fdgu", {With(good, 4, "\x02"), absl::StatusCode::kUnimplemented}},
      {"reject/encoding.fdgu", {With(good, 5, "\x03"), absl::StatusCode::kUnimplemented}},
      {"reject/value_bits.fdgu", {With(good, 6, "\x03"), kInvalid}},
      {"reject/reserved.fdgu", {With(good, 7, "\x01"), kInvalid}},
      {"reject/header_checksum.fdgu", {wrong_header_crc, absl::StatusCode::kDataLoss}},
      {"reject/payload_checksum.fdgu", {wrong_payload_crc, absl::StatusCode::kDataLoss}},
      {"reject/other_layout.fdgu",
       {With(good, 32, "other"), absl::StatusCode::kFailedPrecondition}},
      {"reject/other_size.fdgu", {With(good, 96, "\x11"), absl::StatusCode::kFailedPrecondition}},
      {"reject/no_parameters.fdgu", {With(good, 96, std::string(1, '\0')), kInvalid}},
      {"reject/too_many_values.fdgu", {With(good, 104, "\x11"), kInvalid}},
      {"reject/fewer_values_than_said.fdgu", {With(good, 104, "\x05"), kInvalid}},
      {"reject/payload_cut.fdgu", {cut, kInvalid}},
      {"reject/payload_too_long.fdgu", {trailing, kInvalid}},
      {"reject/block_count.fdgu", {With(good, 128, "\x11"), kInvalid}},
      {"reject/block_count_beyond_gaps.fdgu", {With(good, 128, count_5), kInvalid}},
      {"reject/rice_parameter.fdgu", {With(good, 130, "\x48"), kInvalid}},
      {"reject/gap_leaves_block.fdgu", {With(good, 131, "\xFF"), kInvalid}},
      {"reject/gap_padding.fdgu", {With(good, 132, "\x97"), kInvalid}},
      {"reject/base_zero.fdgu", {With(good, 133, std::string(2, '\0')), kInvalid}},
      {"reject/base_nan.fdgu", {With(good, 134, "\x7E"), kInvalid}},
      {"reject/step_infinite.fdgu", {With(good, 135, std::string("\x00\x7C", 2)), kInvalid}},
      {"reject/step_negative.fdgu", {With(good, 136, "\xAA"), kInvalid}},
      {"reject/dense_nan.fdgu", {With(dense, 130, std::string("\x01\x7E", 2)), kInvalid}},
      {"reject/dense_values.fdgu", {With(dense, 104, "\x07"), kInvalid}},
  };
}

TEST(UpdateGoldenTest, RejectsTheCommittedBrokenUpdates) {
  const Digest layout = Sha256Of("layout");
  for (const auto& [name, rejected] : RejectedUpdates()) {
    if (Rewriting()) WriteGolden(name, rejected.bytes);
    const std::string committed = ReadGolden(name);
    EXPECT_EQ(absl::BytesToHexString(committed), absl::BytesToHexString(rejected.bytes)) << name;
    const uint64_t parameters = absl::StrContains(name, "dense") ? 8 : 16;
    const auto decoded = DecodeUpdate(committed, layout, parameters);
    EXPECT_EQ(decoded.status().code(), rejected.code) << name << ": " << decoded.status();
    EXPECT_FALSE(
        testing::ReferenceUpdateDecoder::Decode(committed, layout.Raw(), parameters).has_value())
        << name;
  }
}

// Bytes of the fenced block "hex" in `page`; what follows a # in a line is comment.
std::string HexBlock(absl::string_view page) {
  const size_t begin = page.find("```hex\n");
  EXPECT_NE(begin, absl::string_view::npos);
  const absl::string_view rest = page.substr(begin + 7);
  std::string digits;
  for (const absl::string_view line : absl::StrSplit(rest.substr(0, rest.find("```")), '\n')) {
    for (const char c : line.substr(0, line.find('#'))) {
      if (c != ' ') digits += c;
    }
  }
  return absl::HexStringToBytes(digits);
}

TEST(UpdateGoldenTest, PrintsTheExampleOfTheFormatPage) {
  const auto page = Env::Posix()->ReadFile(FEDGE_SOURCE_DIR "/proto/UPDATE_FORMAT.md");
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_EQ(absl::BytesToHexString(HexBlock(*page)), absl::BytesToHexString(Example()));
  const auto decoded = DecodeUpdate(Example(), Sha256Of("layout"), 16);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  std::vector<std::string> lines;
  for (size_t i = 0; i < 16; ++i) {
    if (decoded->values[i] != 0) lines.push_back(absl::StrCat(i, ": ", decoded->values[i]));
  }
  EXPECT_THAT(*page, ::testing::HasSubstr(absl::StrJoin(lines, ", ")));
}

struct SizeCase {
  size_t parameters;
  double density;  // 0: dense
  int bits;
  uint64_t seed;
};

std::vector<SizeCase> SizeCases() {
  std::vector<SizeCase> cases;
  for (const size_t parameters : {20480u, 300000u, 2000000u}) {
    cases.push_back({parameters, 0, 16, 1});
    for (const double density : {0.001, 0.01, 0.05, 0.2}) {
      for (const int bits : {2, 4, 8}) cases.push_back({parameters, density, bits, 1});
    }
  }
  cases.push_back({300000, 0.05, 4, 2});
  cases.push_back({300000, 0.05, 4, 3});
  return cases;
}

TEST(UpdateGoldenTest, EncodesToTheCommittedSizes) {
  std::string table = "parameters,density,bits,seed,bytes\n";
  absl::PrintF("%10s %8s %5s %10s %11s %11s %7s\n", "parameters", "density", "bits", "bytes",
               "bits/param", "H(d)+d*b", "ratio");
  std::vector<float> delta;
  uint64_t delta_seed = 0;
  for (const SizeCase& c : SizeCases()) {
    if (delta.size() != c.parameters || delta_seed != c.seed) {
      delta = RandomDelta(c.parameters, c.seed);
      delta_seed = c.seed;
    }
    const EncodeOptions options = c.density == 0
                                      ? EncodeOptions{.encoding = UpdateEncoding::kDenseFp16}
                                      : TopK(c.density, c.bits);
    const size_t bytes = Encode(delta, options).size();
    absl::StrAppendFormat(&table, "%d,%g,%d,%d,%d\n", c.parameters, c.density, c.bits, c.seed,
                          bytes);
    if (c.density == 0) continue;
    const double d = c.density;
    const double floor = -d * std::log2(d) - (1 - d) * std::log2(1 - d) + d * c.bits;
    const double per_parameter =
        8.0 * static_cast<double>(bytes) / static_cast<double>(c.parameters);
    absl::PrintF("%10d %8g %5d %10d %11.5f %11.5f %7.3f\n", c.parameters, d, c.bits, bytes,
                 per_parameter, floor, per_parameter / floor);
  }
  if (Rewriting()) WriteGolden("sizes.csv", table);
  EXPECT_EQ(ReadGolden("sizes.csv"), table);
}

}  // namespace
}  // namespace fedge
