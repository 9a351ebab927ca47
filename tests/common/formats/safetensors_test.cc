#include "common/formats/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/byte_io.h"
#include "common/base/rng.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

std::string File(absl::string_view header, size_t data_bytes = 0) {
  ByteWriter out;
  out.Write(static_cast<uint64_t>(header.size()));
  out.WriteBytes(header);
  out.WriteBytes(std::string(data_bytes, '\0'));
  return std::move(out).Take();
}

std::string Entry(absl::string_view name, absl::string_view dtype, absl::string_view shape,
                  absl::string_view offsets) {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape,
                      ",\"data_offsets\":", offsets, "}");
}

// Parses a heap copy of exactly the file's size, so that a sanitizer sees one byte too many.
absl::Status ParseStatus(absl::string_view bytes) {
  const std::unique_ptr<char[]> copy(new char[bytes.size()]);
  std::copy(bytes.begin(), bytes.end(), copy.get());
  const auto file = SafetensorsFile::Parse(absl::string_view(copy.get(), bytes.size()), "bad.st");
  if (file.ok()) {
    for (const SafetensorsTensor& tensor : (*file)->tensors()) tensor.ToFloats();
  }
  return file.status();
}

void ExpectRejected(absl::string_view bytes, absl::StatusCode code, absl::string_view message) {
  const absl::Status status = ParseStatus(bytes);
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(message)));
  EXPECT_THAT(std::string(status.message()), ::testing::StartsWith("bad.st: "));
}

void ExpectHeaderRejected(absl::string_view entries, size_t data_bytes, absl::StatusCode code,
                          absl::string_view message) {
  ExpectRejected(File(absl::StrCat("{", entries, "}"), data_bytes), code, message);
}

TEST(SafetensorsTest, WhatIsWrittenIsRead) {
  const std::vector<SafetensorsEntry> entries = {
      {"b.weight", {2, 3}, {1, 2, 3, 4, 5, 6}}, {"a\"quoted\"", {1}, {-0.5f}}, {"scalar", {}, {7}}};
  const std::string bytes = SerializeSafetensors(entries, {{"format", "pt"}, {"who", "Jürgen"}});
  EXPECT_EQ(bytes.size() % 4, 0u);
  const auto file = SafetensorsFile::Parse(bytes, "x");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->tensors().size(), 3u);
  EXPECT_EQ((*file)->tensors()[0].name, "b.weight");
  EXPECT_THAT((*file)->tensors()[0].shape, ElementsAre(2, 3));
  EXPECT_THAT((*file)->tensors()[0].ToFloats(), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT((*file)->Find("a\"quoted\"")->ToFloats(), ElementsAre(-0.5f));
  EXPECT_THAT((*file)->Find("scalar")->ToFloats(), ElementsAre(7));
  EXPECT_EQ((*file)->Find("none"), nullptr);
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
  EXPECT_EQ((*file)->metadata().at("who"), "Jürgen");
}

TEST(SafetensorsTest, HeaderIsPaddedToEightBytes) {
  const std::string bytes = SerializeSafetensors({{"w", {1}, {1.0f}}}, {});
  EXPECT_EQ(ByteReader(bytes).Read<uint64_t>() % 8, 0u);
  EXPECT_EQ(bytes.substr(8, 2), "{\"");
}

TEST(SafetensorsTest, ReadsHalfTypesInTheOrderOfTheData) {
  std::string bytes = File(absl::StrCat("{", Entry("late", "BF16", "[2]", "[4,8]"), ",",
                                        Entry("early", "F16", "[1,2]", "[0,4]"), "}  "));
  bytes += std::string("\x00\x3c\x00\xc0\x80\x3f\x00\xc0", 8);
  const auto file = SafetensorsFile::Parse(bytes, "x");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors()[0].name, "early");
  EXPECT_THAT((*file)->Find("early")->ToFloats(), ElementsAre(1.0f, -2.0f));
  EXPECT_THAT((*file)->Find("late")->ToFloats(), ElementsAre(1.0f, -2.0f));
}

TEST(SafetensorsTest, AcceptsEmptyTensorsAndFiles) {
  EXPECT_TRUE(ParseStatus(File("{}")).ok());
  const std::string entries =
      absl::StrCat(Entry("w", "F32", "[1]", "[0,4]"), ",", Entry("empty", "F32", "[3,0]", "[0,0]"));
  EXPECT_TRUE(ParseStatus(File(absl::StrCat("{", entries, "}"), 4)).ok());
}

TEST(SafetensorsTest, OpenNamesTheMissingFile) {
  const absl::Status status = SafetensorsFile::Open("/no/such.st", *Env::Posix()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/no/such.st"));
}

TEST(SafetensorsHostileTest, TooShort) {
  ExpectRejected("1234567", kInvalid, "7 bytes are too few");
}

TEST(SafetensorsHostileTest, HeaderLengthWrapsWithItsField) {  // 8 + length == 0
  std::string bytes = File("{}");
  for (const uint64_t size : {~uint64_t{0}, ~uint64_t{0} - 7, uint64_t{3}}) {
    std::copy_n(reinterpret_cast<const char*>(&size), 8, bytes.begin());
    ExpectRejected(bytes, kInvalid, absl::StrCat("a header of ", size, " bytes"));
  }
}

TEST(SafetensorsHostileTest, HeaderOverLimit) {
  std::string bytes = File(std::string(100'000'001, ' '));
  bytes[8] = '{';
  ExpectRejected(bytes, kInvalid, "limit of 100000000");
}

TEST(SafetensorsHostileTest, HeaderStartsWithSomethingElse) {
  ExpectRejected(File(" {}"), kInvalid, "does not start with '{'");
  ExpectRejected(File("[]"), kInvalid, "does not start with '{'");
  ExpectRejected(File(""), kInvalid, "does not start with '{'");
  ExpectRejected(File("\xef\xbb\xbf{}"), kInvalid, "does not start with '{'");
}

TEST(SafetensorsHostileTest, BrokenJson) {
  ExpectRejected(File("{"), kInvalid, "no valid JSON at its byte 2");
  ExpectRejected(File("{\"a\":}"), kInvalid, "no valid JSON");
  ExpectRejected(File("{} {}"), kInvalid, "no valid JSON");
  ExpectRejected(File("{\"\xff\":{}}"), kInvalid, "no valid JSON");
}

TEST(SafetensorsHostileTest, ZeroByteThatHidesTheRest) {
  ExpectRejected(File(std::string("{}\0{}", 5)), kInvalid, "a zero byte in the header");
}

TEST(SafetensorsHostileTest, DeepNesting) {
  ExpectRejected(File("{\"a\":" + std::string(1'000'000, '[')), kInvalid, "an array where none");
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  ExpectRejected(File(objects), kInvalid, "unknown field 'a'");
}

TEST(SafetensorsHostileTest, DuplicateTensor) {
  ExpectHeaderRejected(
      absl::StrCat(Entry("w", "F32", "[1]", "[0,4]"), ",", Entry("w", "F32", "[1]", "[4,8]")), 8,
      kInvalid, "tensor 'w' appears twice");
}

TEST(SafetensorsHostileTest, DuplicateField) {
  ExpectHeaderRejected("\"w\":{\"dtype\":\"F32\",\"dtype\":\"F16\"}", 0, kInvalid,
                       "tensor 'w': dtype appears twice");
}

TEST(SafetensorsHostileTest, DuplicateMetadata) {
  ExpectHeaderRejected("\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}", 0, kInvalid,
                       "metadata key 'a' appears twice");
  ExpectHeaderRejected("\"__metadata__\":{},\"__metadata__\":{}", 0, kInvalid,
                       "__metadata__ appears twice");
}

TEST(SafetensorsHostileTest, MetadataThatIsNoString) {
  ExpectHeaderRejected("\"__metadata__\":{\"a\":1}", 0, kInvalid, "a number outside");
  ExpectHeaderRejected("\"__metadata__\":{\"a\":{}}", 0, kInvalid, "an object where none");
  ExpectHeaderRejected("\"__metadata__\":null", 0, kInvalid, "null where");
}

TEST(SafetensorsHostileTest, MissingAndUnknownFields) {
  ExpectHeaderRejected("\"w\":{}", 0, kInvalid, "tensor 'w': dtype, shape or data_offsets is");
  ExpectHeaderRejected("\"w\":{\"type\":\"F32\"}", 0, kInvalid, "unknown field 'type'");
  ExpectHeaderRejected("\"w\":7", 0, kInvalid, "a number outside");
}

TEST(SafetensorsHostileTest, NumbersThatAreNone) {
  ExpectHeaderRejected(Entry("w", "F32", "[-1]", "[0,4]"), 4, kInvalid, "a negative number");
  ExpectHeaderRejected(Entry("w", "F32", "[1.0]", "[0,4]"), 4, kInvalid, "a fraction");
  ExpectHeaderRejected(Entry("w", "F32", "[99999999999999999999]", "[0,4]"), 4, kInvalid,
                       "a fraction");
  ExpectHeaderRejected(Entry("w", "F32", "[true]", "[0,4]"), 4, kInvalid, "a bool");
  ExpectHeaderRejected(Entry("w", "F32", "[[1]]", "[0,4]"), 4, kInvalid, "an array where none");
  ExpectHeaderRejected(Entry("w", "F32", "\"1\"", "[0,4]"), 4, kInvalid, "a string where none");
  ExpectHeaderRejected(Entry("w", "F32", "[1]", "[0]"), 4, kInvalid, "are not two numbers");
  ExpectHeaderRejected(Entry("w", "F32", "[1]", "[0,4,8]"), 4, kInvalid, "are not two numbers");
  ExpectHeaderRejected(Entry("w", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, kInvalid,
                       "shape has more than 8 numbers");
}

TEST(SafetensorsHostileTest, UnknownDtype) {  // must not skip the checks of its size
  for (const char* const dtype : {"I64", "F64", "BOOL", "F8_E4M3", "X", ""}) {
    ExpectHeaderRejected(Entry("w", dtype, "[1000]", "[0,4]"), 4, absl::StatusCode::kUnimplemented,
                         absl::StrCat("tensor w: dtype '", dtype, "' is not supported"));
  }
}

TEST(SafetensorsHostileTest, ShapeProductWrapsToZero) {
  ExpectHeaderRejected(Entry("w", "F32", "[4294967296,4294967296]", "[0,0]"), 0, kInvalid,
                       "too many elements");
  ExpectHeaderRejected(Entry("w", "F32", "[4294967296,4294967296,0]", "[0,0]"), 0, kInvalid,
                       "too many elements");
  ExpectHeaderRejected(Entry("w", "F32", "[0,18446744073709551615]", "[0,0]"), 0, kInvalid,
                       "too many elements");
}

TEST(SafetensorsHostileTest, ShapeBytesWrapToZero) {
  ExpectHeaderRejected(Entry("w", "F32", "[4611686018427387904]", "[0,0]"), 0, kInvalid,
                       "too many elements");
}

TEST(SafetensorsHostileTest, LengthAndShapeDisagree) {
  ExpectHeaderRejected(Entry("w", "F32", "[3]", "[0,8]"), 8, kInvalid,
                       "8 bytes, but its shape needs 12");
  ExpectHeaderRejected(Entry("w", "F16", "[3]", "[0,12]"), 12, kInvalid, "needs 6");
}

TEST(SafetensorsHostileTest, OffsetsBeyondFile) {
  ExpectHeaderRejected(Entry("w", "F32", "[2]", "[0,8]"), 7, kInvalid, "bytes 0 to 8 of 7");
  ExpectHeaderRejected(Entry("w", "F32", "[2]", "[0,18446744073709551615]"), 8, kInvalid,
                       "bytes 0 to 18446744073709551615");
}

TEST(SafetensorsHostileTest, OffsetsBackwards) {
  ExpectHeaderRejected(
      absl::StrCat(Entry("a", "F32", "[2]", "[0,8]"), ",", Entry("b", "F32", "[2]", "[8,0]")), 8,
      kInvalid, "tensor b: bytes 8 to 0");
}

TEST(SafetensorsHostileTest, HoleBeforeBetweenAndAfter) {
  ExpectHeaderRejected(Entry("w", "F32", "[1]", "[4,8]"), 8, kInvalid, "leaves a hole after 0");
  ExpectHeaderRejected(
      absl::StrCat(Entry("a", "F32", "[1]", "[0,4]"), ",", Entry("b", "F32", "[1]", "[8,12]")), 12,
      kInvalid, "tensor b starts at byte 8 and leaves a hole after 4");
  ExpectHeaderRejected(Entry("w", "F32", "[1]", "[0,4]"), 8, kInvalid, "end at byte 4 of 8");
}

TEST(SafetensorsHostileTest, Overlap) {
  ExpectHeaderRejected(
      absl::StrCat(Entry("a", "F32", "[2]", "[0,8]"), ",", Entry("b", "F32", "[1]", "[4,8]")), 8,
      kInvalid, "tensor b starts at byte 4, inside the tensor before, which ends at 8");
}

TEST(SafetensorsHostileTest, NamesThatAreNone) {
  ExpectHeaderRejected(Entry("", "F32", "[1]", "[0,4]"), 4, kInvalid, "tensor name ''");
  ExpectHeaderRejected(Entry("a\\n", "F32", "[1]", "[0,4]"), 4, kInvalid, "tensor name 'a\\n'");
  ExpectHeaderRejected(Entry(std::string(1025, 'w'), "F32", "[1]", "[0,4]"), 4, kInvalid,
                       "longer than 1024");
}

std::string SmallValidFile() {
  return SerializeSafetensors({{"a.weight", {2, 3}, {1, 2, 3, 4, 5, 6}}, {"b", {1}, {2}}},
                              {{"format", "pt"}});
}

TEST(SafetensorsDamageTest, EveryTruncationIsAnError) {
  const std::string whole = SmallValidFile();
  ASSERT_TRUE(ParseStatus(whole).ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    ASSERT_EQ(ParseStatus(absl::string_view(whole).substr(0, size)).code(), kInvalid) << size;
  }
}

TEST(SafetensorsDamageTest, FlippedBitsAreReadOrRejected) {
  const std::string whole = SmallValidFile();
  Rng rng(77);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = whole;
    for (uint64_t flips = 1 + rng.Below(4); flips > 0; --flips) {
      const size_t at = static_cast<size_t>(rng.Below(bytes.size()));
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng.Below(8)));
    }
    ParseStatus(bytes).IgnoreError();
  }
}

}  // namespace
}  // namespace fedge
