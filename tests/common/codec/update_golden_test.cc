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
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/base/env.h"
#include "common/codec/update_codec.h"
#include "common/codec/update_header.h"
#include "tests/testing/update_samples.h"

namespace fedge {
namespace {

using testing::FlatLayout;
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

std::string Encode(const std::vector<float>& delta, const SliceLayout& layout,
                   const EncodeOptions& options) {
  auto bytes = EncodeUpdate(delta, layout, SampleHeader(), options, {});
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.ok() ? *std::move(bytes) : std::string();
}

EncodeOptions Options(UpdateSupport support, double density, int bits) {
  return {.support = support, .density = density, .value_bits = bits, .seed = 77};
}

// The update of the worked example: a module of 9 inputs, 7 outputs and rank 1.
SliceLayout ExampleLayout() {
  const LoraModule module = {"blk.0.attn_q.weight", 9, 7, 1, 0};
  return SliceLayout::Whole(LoraSpec::Create("llama", 1, {module}).value());
}

std::vector<float> ExampleDelta() {
  std::vector<float> delta(16, 0.0625f);
  delta[2] = 0.5f;
  delta[3] = -0.25f;
  delta[9] = 1.0f;
  delta[15] = -0.375f;
  return delta;
}

std::string Example() {
  return Encode(ExampleDelta(), ExampleLayout(), Options(UpdateSupport::kTopK, 0.25, 2));
}

std::string TrellisExample() {
  return Encode(ExampleDelta(), ExampleLayout(), Options(UpdateSupport::kTrellis, 0.25, 1));
}

std::map<std::string, std::string> AcceptedUpdates() {
  std::map<std::string, std::string> updates = {{"accept/example.fdgu", Example()},
                                                {"accept/trellis_example.fdgu", TrellisExample()}};
  uint64_t seed = 0;
  for (const auto support : {UpdateSupport::kDense, UpdateSupport::kTopK, UpdateSupport::kSeeded}) {
    for (const int bits : {1, 2, 3, 4, 8, 16}) {
      const size_t size = support == UpdateSupport::kDense ? 40 : 3000;
      updates[absl::StrCat("accept/", UpdateSupportName(support), "_", bits, ".fdgu")] =
          Encode(RandomDelta(size, ++seed), FlatLayout(size), Options(support, 0.05, bits));
    }
  }
  for (const int period : {1, 3, 8, 64}) {
    updates[absl::StrCat("accept/trellis_", period, ".fdgu")] =
        Encode(RandomDelta(3000, ++seed), FlatLayout(3000),
               Options(UpdateSupport::kTrellis, 1.0 / period, 1));
  }
  updates["accept/all_sent.fdgu"] =
      Encode(RandomDelta(70, 5), FlatLayout(70), Options(UpdateSupport::kTopK, 1, 4));
  updates["accept/nothing_sent.fdgu"] =
      Encode(std::vector<float>(33), FlatLayout(33), Options(UpdateSupport::kTopK, 0.5, 4));
  return updates;
}

SliceLayout LayoutOf(uint64_t parameters) {
  return parameters == 16 ? ExampleLayout() : FlatLayout(parameters);
}

TEST(UpdateGoldenTest, EncodesAndDecodesTheCommittedUpdates) {
  std::string table = "file,parameters,sha256_of_values\n";
  for (const auto& [name, bytes] : AcceptedUpdates()) {
    if (Rewriting()) WriteGolden(name, bytes);
    const std::string committed = ReadGolden(name);
    EXPECT_EQ(absl::BytesToHexString(committed), absl::BytesToHexString(bytes)) << name;
    const auto header = ReadUpdateHeader(committed);
    ASSERT_TRUE(header.ok()) << name << ": " << header.status();
    const SliceLayout layout = LayoutOf(header->num_parameters);
    const auto decoded = DecodeUpdate(committed, header->layout_hash, layout);
    ASSERT_TRUE(decoded.ok()) << name << ": " << decoded.status();
    const std::vector<float> flat = testing::Flat(*decoded, layout);
    EXPECT_EQ(testing::ReferenceFlat(committed, header->layout_hash, layout), flat) << name;
    const absl::string_view raw(reinterpret_cast<const char*>(flat.data()),
                                flat.size() * sizeof(float));
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

std::string WithPayload(absl::string_view payload, const std::string& example = Example()) {
  std::string bytes = example.substr(0, kUpdateHeaderBytes);
  bytes.append(payload.data(), payload.size());
  Reseal(&bytes);
  return bytes;
}

// All in the example's header: top-k, 4 values of 2 bits in 16 coordinates.
std::map<std::string, Rejected> RejectedUpdates() {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  using std::string;
  const string good = Example();
  string wrong_header_crc = good;
  wrong_header_crc[16] = static_cast<char>(wrong_header_crc[16] ^ 1);
  string wrong_payload_crc = good;
  wrong_payload_crc.back() = static_cast<char>(wrong_payload_crc.back() ^ 1);
  string cut = good.substr(0, good.size() - 1);
  Reseal(&cut);
  string trailing = good + string(1, '\0');
  Reseal(&trailing);
  return {
      {"reject/short_header.fdgu", {good.substr(0, 131), kInvalid}},
      {"reject/magic.fdgu", {With(good, 0, "GGUF"), kInvalid}},
      {"reject/version.fdgu", {With(good, 4, "\x03"), absl::StatusCode::kUnimplemented}},
      {"reject/support.fdgu", {With(good, 5, "\x05"), absl::StatusCode::kUnimplemented}},
      {"reject/support_retired.fdgu", {With(good, 5, "\x03"), absl::StatusCode::kUnimplemented}},
      {"reject/value_bits.fdgu", {With(good, 6, "\x05"), kInvalid}},
      {"reject/factors.fdgu", {With(good, 7, "\x03"), kInvalid}},
      {"reject/no_components.fdgu", {With(good, 10, string(2, '\0')), kInvalid}},
      {"reject/other_slice.fdgu", {With(good, 7, "\x01"), absl::StatusCode::kFailedPrecondition}},
      {"reject/other_layout.fdgu", {With(good, 48, "x"), absl::StatusCode::kFailedPrecondition}},
      {"reject/other_size.fdgu", {With(good, 12, "\x11"), absl::StatusCode::kFailedPrecondition}},
      {"reject/no_parameters.fdgu", {With(good, 12, string(1, '\0')), kInvalid}},
      {"reject/seed.fdgu", {With(good, 40, "\x01"), kInvalid}},
      {"reject/too_many_values.fdgu", {With(good, 112, "\x11"), kInvalid}},
      {"reject/values_that_cannot_be.fdgu", {With(good, 112, "\x0F"), kInvalid}},
      {"reject/header_checksum.fdgu", {wrong_header_crc, absl::StatusCode::kDataLoss}},
      {"reject/payload_checksum.fdgu", {wrong_payload_crc, absl::StatusCode::kDataLoss}},
      {"reject/payload_length.fdgu", {good + "x", kInvalid}},
      {"reject/payload_cut.fdgu", {cut, kInvalid}},
      {"reject/payload_too_long.fdgu", {trailing, kInvalid}},
      {"reject/no_head.fdgu", {WithPayload("\x01\x1f"), kInvalid}},
      {"reject/no_position_mode.fdgu", {WithPayload(string("\0\x1f\0zzzzzzzz", 11)), kInvalid}},
      {"reject/modes.fdgu", {WithPayload(string("\x09\x1f\0zzzzzzzz", 11)), kInvalid}},
      {"reject/scale_groups.fdgu", {WithPayload(string("\x01\x20\0zzzzzzzz", 11)), kInvalid}},
      {"reject/coded_length.fdgu", {WithPayload(string("\x01\x1f\x09zzzzzzzz", 11)), kInvalid}},
      {"reject/coded_length_overlong.fdgu",
       {WithPayload(string("\x01\x1f\x80\0zzzzzzzz", 12)), kInvalid}},
      {"reject/coded_unused.fdgu",  // positions 0 to 3, centroids 1 and 2, more than is looked
                                    // ahead
       {WithPayload(string("\x01\x1f\x08zzzzzzzz\0\0\0\x3c\0\x40\0", 18)), kInvalid}},
      {"reject/rice_parameter.fdgu", {WithPayload(string("\x01\x1f\0\x1fzzzzzzz", 11)), kInvalid}},
      {"reject/gap_leaves_slice.fdgu",
       {WithPayload(string("\x01\x1f\0\xe0\xff\xff\xff\x00\0\0\0", 11)), kInvalid}},
      {"reject/gap_padding.fdgu",
       {WithPayload(string("\x01\x1f\0\0\x80\0\x3c\0\x40\0", 10)), kInvalid}},
      {"reject/scale_negative.fdgu",
       {WithPayload(string("\x01\x1f\0\0\0\0\xbc\0\x40\0", 10)), kInvalid}},
      {"reject/scale_infinite.fdgu",
       {WithPayload(string("\x01\x1f\0\0\0\0\x3c\0\x7c\0", 10)), kInvalid}},
      {"reject/scale_nan.fdgu",
       {WithPayload(string("\x01\x1f\0\0\0\0\x7e\0\x7e\0", 10)), kInvalid}},
      {"reject/scales_out_of_order.fdgu",
       {WithPayload(string("\x01\x1f\0\0\0\0\x40\0\x3c\0", 10)), kInvalid}},
  };
}

// All in the trellis example's header: 16 values.
std::map<std::string, Rejected> RejectedTrellises() {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  using std::string;
  const string good = TrellisExample();
  std::map<std::string, Rejected> rejected = {
      {"reject/trellis_value_bits.fdgu", {With(good, 6, "\x02"), kInvalid}},
      {"reject/trellis_count.fdgu", {With(good, 112, "\x0F"), kInvalid}}};
  // Rate 9 (period 4) of one group, scale 1, 4 steps.
  const std::pair<absl::string_view, string> kPayloads[] = {
      {"no_head", ""},
      {"no_rates", "\x0b"},
      {"rate", "\x0b\x0d\xfb"},
      {"scale_groups", "\x20\x09\xfb"},
      {"cut", "\x0b\x09"},
      {"too_long", string("\x0b\x09\xfb\0", 4)},
      {"longer_path", "\x0b\x0c\xfb"},
      {"padding", "\x0b\x08\xfb"},
  };
  for (const auto& [name, payload] : kPayloads) {
    rejected[absl::StrCat("reject/trellis_", name, ".fdgu")] = {WithPayload(payload, good),
                                                                kInvalid};
  }
  return rejected;
}

TEST(UpdateGoldenTest, RejectsTheCommittedBrokenUpdates) {
  const Digest hash = Sha256Of("layout");
  // The pattern of the hand-made payloads is right as such.
  EXPECT_TRUE(DecodeUpdate(WithPayload(std::string("\x01\x1f\0\0\0\0\x3c\0\x40\0", 10)), hash,
                           ExampleLayout())
                  .ok());
  EXPECT_TRUE(
      DecodeUpdate(WithPayload("\x0b\x09\xfb", TrellisExample()), hash, ExampleLayout()).ok());
  std::map<std::string, Rejected> all = RejectedUpdates();
  all.merge(RejectedTrellises());
  for (const auto& [name, rejected] : all) {
    if (Rewriting()) WriteGolden(name, rejected.bytes);
    const std::string committed = ReadGolden(name);
    EXPECT_EQ(absl::BytesToHexString(committed), absl::BytesToHexString(rejected.bytes)) << name;
    const auto decoded = DecodeUpdate(committed, hash, ExampleLayout());
    EXPECT_EQ(decoded.status().code(), rejected.code) << name << ": " << decoded.status();
    EXPECT_FALSE(testing::ReferenceFlat(committed, hash, ExampleLayout()).has_value()) << name;
  }
}

// Bytes of a fenced block "hex" in `page`; what follows a # in a line is comment.
std::string HexBlock(absl::string_view page, int number) {
  const std::vector<absl::string_view> blocks = absl::StrSplit(page, "```hex\n");
  EXPECT_GT(static_cast<int>(blocks.size()), number);
  const absl::string_view rest = blocks[static_cast<size_t>(number)];
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
  EXPECT_EQ(absl::BytesToHexString(HexBlock(*page, 1)), absl::BytesToHexString(Example()));
  const auto decoded = DecodeUpdate(Example(), Sha256Of("layout"), ExampleLayout());
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  std::vector<std::string> values;
  for (size_t i = 0; i < decoded->values.size(); ++i) {
    values.push_back(absl::StrCat(decoded->coordinates[i], ": ", decoded->values[i]));
  }
  EXPECT_THAT(*page, ::testing::HasSubstr(absl::StrJoin(values, ", ")));

  // The trellis' block shows what differs in the header only, and the payload.
  const std::string trellis = TrellisExample();
  EXPECT_EQ(absl::BytesToHexString(HexBlock(*page, 2)),
            absl::BytesToHexString(trellis.substr(kUpdateHeaderBytes)));
  const auto signs = DecodeUpdate(trellis, Sha256Of("layout"), ExampleLayout());
  ASSERT_TRUE(signs.ok()) << signs.status();
  EXPECT_THAT(*page, ::testing::HasSubstr(absl::StrJoin(signs->values, ", ")));
}

// H(d) + d b: independent positions and values of b bits.
double Floor(double d, int bits) {
  const double positions = d >= 1 ? 0 : -d * std::log2(d) - (1 - d) * std::log2(1 - d);
  return positions + d * bits;
}

constexpr double kTrellisBits[] = {1, 0.5, 0.25, 0.125, 0.0625};

class SizesTable {
 public:
  // Returns bytes / floor.
  double Add(absl::string_view source, const std::vector<float>& delta, const SliceLayout& layout,
             const EncodeOptions& options) {
    const size_t bytes = Encode(delta, layout, options).size();
    const double d = options.support == UpdateSupport::kDense ? 1 : options.density;
    const bool free = options.support == UpdateSupport::kSeeded ||  // positions
                      options.support == UpdateSupport::kTrellis;
    const double floor = free ? d * options.value_bits : Floor(d, options.value_bits);
    const auto size = static_cast<double>(layout.size());
    const double ratio = 8.0 * static_cast<double>(bytes) / size / floor;
    absl::StrAppendFormat(&rows_, "%s,%s,%d,%g,%d,%d,%.5f,%.4f,%.0f\n", source,
                          UpdateSupportName(options.support), layout.size(), d, options.value_bits,
                          bytes, 8.0 * static_cast<double>(bytes) / size, ratio,
                          4 * size / static_cast<double>(bytes));
    return ratio;
  }
  const std::string& rows() const { return rows_; }

 private:
  std::string rows_ =
      "source,support,parameters,density,bits,bytes,bits_per_parameter,ratio_to_floor,times_"
      "smaller_than_fp32\n";
};

TEST(UpdateGoldenTest, EncodesToTheCommittedSizes) {
  SizesTable table;
  const size_t size = 2'200'000;
  const std::vector<float> iid = testing::IidDelta(size, 1);
  const SliceLayout flat = FlatLayout(size);
  for (const double density : {0.001, 0.005, 0.01, 0.02, 0.05, 0.1}) {
    for (const int bits : {1, 2, 3, 4, 8}) {
      const double ratio =
          table.Add("iid", iid, flat, Options(UpdateSupport::kTopK, density, bits));
      EXPECT_LT(ratio, 1.05) << density << " " << bits;
      EXPECT_GT(ratio, bits < 3 ? 0.95 : 0.6) << density << " " << bits;  // cells are coded too
    }
  }
  for (const int bits : {1, 2, 4, 16}) {
    table.Add("iid", iid, flat, Options(UpdateSupport::kDense, 1, bits));
    table.Add("iid", iid, flat, Options(UpdateSupport::kSeeded, 0.05, bits));
  }
  const SliceLayout small = FlatLayout(20480);
  for (const int bits : {1, 2, 4}) {
    table.Add("iid", testing::IidDelta(20480, 2), small, Options(UpdateSupport::kTopK, 0.03, bits));
  }
  for (const int64_t rank : {4, 16}) {
    const SliceLayout layout = SliceLayout::Whole(testing::QwenHalfBillionSpec(rank));
    const std::vector<float> structured = testing::StructuredDelta(layout, 3);
    const std::vector<float> plain =
        testing::IidDelta(static_cast<size_t>(layout.adapter_size()), 4);
    for (const double density : {0.005, 0.01, 0.03}) {
      for (const int bits : {1, 2}) {
        const EncodeOptions options = Options(UpdateSupport::kTopK, density, bits);
        EXPECT_LT(table.Add("0.5b-structured", structured, layout, options), 0.95);
        EXPECT_LT(table.Add("0.5b-iid", plain, layout, options), 1.05);
      }
    }
  }
  const SliceLayout qwen = SliceLayout::Whole(testing::QwenHalfBillionSpec(4));
  const std::vector<float> structured = testing::StructuredDelta(qwen, 3);
  for (const double bits : kTrellisBits) {
    const EncodeOptions options = Options(UpdateSupport::kTrellis, bits, 1);
    EXPECT_LT(table.Add("iid", iid, flat, options), 1.01) << bits;
    EXPECT_LT(table.Add("0.5b-structured", structured, qwen, options), 1.04) << bits;
  }
  if (Rewriting()) WriteGolden("sizes.csv", table.rows());
  EXPECT_EQ(ReadGolden("sizes.csv"), table.rows());
}

// The share of the values' energy that an update takes away, and its size.
std::pair<double, size_t> Captured(const std::vector<float>& delta, const SliceLayout& layout,
                                   const EncodeOptions& options) {
  std::vector<float> residual(delta.size());
  const auto bytes = EncodeUpdate(delta, layout, SampleHeader(), options, absl::MakeSpan(residual));
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  double energy = 0;
  double left = 0;
  for (size_t i = 0; i < delta.size(); ++i) {
    energy += static_cast<double>(delta[i]) * delta[i];
    left += static_cast<double>(residual[i]) * residual[i];
  }
  return {1 - left / energy, bytes.ok() ? bytes->size() : 0};
}

// What a trellis carries beside the best width of top-k in the same bytes.
TEST(UpdateGoldenTest, CarriesTheCommittedShareOfTheEnergy) {
  std::string rows = "source,parameters,trellis_bits,bytes,trellis,top_k,top_k_bits\n";
  const auto add = [&](absl::string_view source, const std::vector<float>& delta,
                       const SliceLayout& layout, double bits) {
    const auto [trellis, bytes] =
        Captured(delta, layout, Options(UpdateSupport::kTrellis, bits, 1));
    std::pair<double, int> best = {0, 0};
    for (const int width : {1, 2}) {
      EncodeOptions options = Options(UpdateSupport::kTopK, 1, width);
      options.budget_bytes = bytes;
      best = std::max(best, {Captured(delta, layout, options).first, width});
    }
    absl::StrAppendFormat(&rows, "%s,%d,%g,%d,%.3f,%.3f,%d\n", source, layout.size(), bits, bytes,
                          trellis, best.first, best.second);
  };
  const size_t size = 550'000;
  const std::vector<float> iid = testing::IidDelta(size, 1);
  const SliceLayout qwen = SliceLayout::Whole(testing::QwenHalfBillionSpec(1));
  const std::vector<float> structured = testing::StructuredDelta(qwen, 3);
  for (const double bits : kTrellisBits) {
    add("iid", iid, FlatLayout(size), bits);
    add("0.5b-structured", structured, qwen, bits);
  }
  if (Rewriting()) WriteGolden("energy.csv", rows);
  EXPECT_EQ(ReadGolden("energy.csv"), rows);
}

}  // namespace
}  // namespace fedge
