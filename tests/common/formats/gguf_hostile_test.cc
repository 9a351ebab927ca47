// Malformed files by class. Each must give the exact code and a message that names the file and the
// trouble: after published CVEs of GGUF readers (named where known) and one per rule of the format.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>

#include "common/formats/gguf.h"
#include "tests/common/formats/gguf_bytes.h"

namespace fedge {
namespace {

using testing::GgufBytes;
using ::testing::HasSubstr;

constexpr uint64_t kHuge = ~uint64_t{0};
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnsupported = absl::StatusCode::kUnimplemented;

// Parses a heap copy of exactly the file's size, so that a sanitizer sees one byte too many.
absl::StatusOr<std::shared_ptr<const GgufFile>> ParseCopy(absl::string_view bytes,
                                                          std::unique_ptr<char[]>* copy) {
  copy->reset(new char[bytes.size()]);
  std::copy(bytes.begin(), bytes.end(), copy->get());
  return GgufFile::Parse(absl::string_view(copy->get(), bytes.size()), "bad.gguf");
}

void ExpectRejected(const GgufBytes& file, absl::StatusCode code, absl::string_view message) {
  std::unique_ptr<char[]> copy;
  const absl::Status status = ParseCopy(file.Build(), &copy).status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(message)));
  EXPECT_THAT(std::string(status.message()), HasSubstr("bad.gguf: "));
  EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
}

// One F32 tensor of 8 values, entry and data as given by the caller after this.
GgufBytes OneTensor() { return GgufBytes().Header(1, 0); }

// --- header

TEST(GgufHostileTest, EmptyFile) { ExpectRejected(GgufBytes(), kInvalid, "0 bytes, fewer"); }

TEST(GgufHostileTest, ShorterThanHeader) {
  ExpectRejected(GgufBytes().Data(23, 'G'), kInvalid, "23 bytes, fewer");
}

TEST(GgufHostileTest, WrongMagic) {
  ExpectRejected(GgufBytes().Header(0, 0, 3, "ggjt"), kInvalid, "not a GGUF file");
  ExpectRejected(GgufBytes().Header(0, 0, 3, "\n\x1b[m"), kInvalid, "'\\n\\x1b[m'");
}

TEST(GgufHostileTest, VersionZero) {
  ExpectRejected(GgufBytes().Header(0, 0, 0), kUnsupported, "GGUF version 0");
}

TEST(GgufHostileTest, VersionOne) {
  ExpectRejected(GgufBytes().Header(0, 0, 1), kUnsupported, "versions 2 and 3 are supported");
}

TEST(GgufHostileTest, VersionOfTheFuture) {
  ExpectRejected(GgufBytes().Header(0, 0, 4), kUnsupported, "GGUF version 4");
}

TEST(GgufHostileTest, BigEndian) {
  ExpectRejected(GgufBytes().Header(0, 0, 0x03000000), kUnsupported, "big-endian");
}

TEST(GgufHostileTest, KeyCountBeyondFile) {  // CVE-2024-21825
  ExpectRejected(GgufBytes().Header(0, 2).Data(27), kInvalid, "2 metadata keys");
  ExpectRejected(GgufBytes().Header(0, kHuge).Data(100), kInvalid, "18446744073709551615 metadata");
  ExpectRejected(GgufBytes().Header(0, uint64_t{1} << 60).Data(100), kInvalid, "metadata keys");
}

TEST(GgufHostileTest, KeyCountOverLimit) {
  ExpectRejected(GgufBytes().Header(0, 65537).Data(65537 * 14), kInvalid, "limit of 65536");
}

TEST(GgufHostileTest, TensorCountBeyondFile) {  // CVE-2024-21836
  ExpectRejected(GgufBytes().Header(1, 0), kInvalid, "1 tensors, with 0 bytes left");
  ExpectRejected(GgufBytes().Header(kHuge, 0).Data(100), kInvalid, "18446744073709551615 tensors");
  ExpectRejected(GgufBytes().Header(uint64_t{1} << 58, 0).Data(100), kInvalid, "tensors");
}

TEST(GgufHostileTest, TensorCountOverLimit) {
  ExpectRejected(GgufBytes().Header(65537, 0).Data(65537 * 33), kInvalid, "limit of 65536");
}

// --- keys

TEST(GgufHostileTest, KeyLengthBeyondFile) {  // CVE-2024-23496
  ExpectRejected(GgufBytes().Header(0, 1).TextClaiming(100, "key").Data(20), kInvalid,
                 "metadata entry 0: bad.gguf: at byte 24: the key does not fit");
}

TEST(GgufHostileTest, KeyLengthWrapsWithItsTerminator) {  // CVE-2024-21802: length + 1 == 0
  ExpectRejected(GgufBytes().Header(0, 1).TextClaiming(kHuge, "key").Data(20), kInvalid,
                 "does not fit");
}

TEST(GgufHostileTest, EmptyKey) {
  ExpectRejected(GgufBytes().Header(0, 1).Uint32Value("", 1), kInvalid, "a key of 0 bytes");
}

TEST(GgufHostileTest, KeyOverLimit) {
  ExpectRejected(GgufBytes().Header(0, 1).Uint32Value(std::string(65536, 'k'), 1), kInvalid,
                 "a key of 65536 bytes; 1 to 65535");
}

TEST(GgufHostileTest, KeyWithControlCharacters) {
  ExpectRejected(GgufBytes().Header(0, 1).Uint32Value("a\x1b[2J", 1), kInvalid, "'a\\x1b[2J'");
  ExpectRejected(GgufBytes().Header(0, 1).Uint32Value(std::string("a\0b", 3), 1), kInvalid,
                 "control characters in the key");
}

TEST(GgufHostileTest, DuplicateKey) {
  ExpectRejected(GgufBytes().Header(0, 2).Uint32Value("twin", 1).StringValue("twin", "2"), kInvalid,
                 "key 'twin' appears twice");
}

// --- values

TEST(GgufHostileTest, UnknownValueType) {
  ExpectRejected(GgufBytes().Header(0, 1).Key("k", 13).Data(8), kInvalid, "unknown value type 13");
  ExpectRejected(GgufBytes().Header(0, 1).Key("k", ~0u).Data(8), kInvalid,
                 "unknown value type 4294967295");
}

TEST(GgufHostileTest, ScalarCutShort) {
  ExpectRejected(GgufBytes().Header(0, 1).Key("k", 10).Data(7), kInvalid,
                 "value of key 'k' does not fit");
}

TEST(GgufHostileTest, StringLengthBeyondFile) {  // unbounded resize
  ExpectRejected(GgufBytes().Header(0, 1).Key("k", 8).TextClaiming(uint64_t{1} << 40, "abc"),
                 kInvalid, "value of key 'k' does not fit");
}

TEST(GgufHostileTest, StringLengthWraps) {
  ExpectRejected(GgufBytes().Header(0, 1).Key("k", 8).TextClaiming(kHuge, "abc"), kInvalid,
                 "does not fit");
}

TEST(GgufHostileTest, StringLengthBeyondInt32) {  // CVE-2025-49847: cut to a negative int
  ExpectRejected(GgufBytes().Header(0, 1).Array("k", 8, 1).TextClaiming(0x80000001, "abc"),
                 kInvalid, "1 strings do not fit");
}

TEST(GgufHostileTest, BoolThatIsTwo) {
  ExpectRejected(GgufBytes().Header(0, 1).Key("flag", 7).Raw(uint8_t{2}), kInvalid,
                 "neither 0 nor 1");
}

// --- arrays

TEST(GgufHostileTest, ArrayOfUnknownType) {
  ExpectRejected(GgufBytes().Header(0, 1).Array("a", 13, 1).Data(8), kInvalid,
                 "array of the unknown type 13");
}

TEST(GgufHostileTest, ArrayOfArrays) {
  ExpectRejected(GgufBytes().Header(0, 1).Array("a", 9, 1).Raw(4u).Raw(uint64_t{0}), kUnsupported,
                 "key 'a' is an array of arrays");
}

TEST(GgufHostileTest, ManyEmptyArraysInASmallFile) {  // a loop of 2^63 turns over no bytes
  ExpectRejected(GgufBytes().Header(0, 1).Array("aa", 9, uint64_t{1} << 63), kUnsupported,
                 "array of arrays");
}

TEST(GgufHostileTest, ArrayHeadCutShort) {
  ExpectRejected(GgufBytes().Header(0, 1).Key("a", 9).Raw(4u).Data(7), kInvalid, "key 'a'");
}

TEST(GgufHostileTest, ArrayCountBeyondFile) {
  ExpectRejected(GgufBytes().Header(0, 1).Array("a", 0, 9).Data(8), kInvalid,
                 "9 elements of 1 bytes with 8 bytes left");
}

TEST(GgufHostileTest, ArrayBytesWrap) {  // CVE-2024-23605: count * size == 0 modulo 2^64
  ExpectRejected(GgufBytes().Header(0, 1).Array("a", 4, uint64_t{1} << 62).Data(8), kInvalid,
                 "4611686018427387904 elements of 4 bytes");
  ExpectRejected(GgufBytes().Header(0, 1).Array("a", 12, (uint64_t{1} << 61) + 1).Data(8), kInvalid,
                 "elements of 8 bytes");
}

TEST(GgufHostileTest, StringCountBeyondFile) {
  ExpectRejected(GgufBytes().Header(0, 1).Array("a", 8, 3).Text("x").Text("y"), kInvalid,
                 "3 strings do not fit");
  ExpectRejected(GgufBytes().Header(0, 1).Array("a", 8, uint64_t{1} << 61).Data(64, 0), kInvalid,
                 "strings do not fit");
}

TEST(GgufHostileTest, StringInArrayWraps) {
  ExpectRejected(GgufBytes().Header(0, 1).Array("a", 8, 2).TextClaiming(kHuge - 7, "x").Text("y"),
                 kInvalid, "2 strings do not fit");
}

TEST(GgufHostileTest, BoolArrayWithATwo) {
  ExpectRejected(GgufBytes().Header(0, 1).Array("a", 7, 2).Raw(uint8_t{1}).Raw(uint8_t{2}),
                 kInvalid, "has a bool that is neither");
}

// --- alignment

TEST(GgufHostileTest, AlignmentZero) {  // division by zero
  ExpectRejected(GgufBytes().Header(0, 1).Uint32Value("general.alignment", 0), kInvalid,
                 "general.alignment is 0");
}

TEST(GgufHostileTest, AlignmentNoPowerOfTwo) {
  ExpectRejected(GgufBytes().Header(0, 1).Uint32Value("general.alignment", 48), kInvalid,
                 "general.alignment is 48, not a power of two");
}

TEST(GgufHostileTest, AlignmentOfAGigabyte) {  // padding of 2^30 bytes for a tiny file
  ExpectRejected(GgufBytes().Header(0, 1).Uint32Value("general.alignment", 1u << 30), kInvalid,
                 "from 8 to 1048576");
}

TEST(GgufHostileTest, AlignmentBelowAnElement) {
  ExpectRejected(GgufBytes().Header(0, 1).Uint32Value("general.alignment", 1), kInvalid,
                 "general.alignment is 1,");
}

TEST(GgufHostileTest, AlignmentOfWrongType) {  // CVE-2024-41130's kind: a value read as another
  ExpectRejected(GgufBytes().Header(0, 1).StringValue("general.alignment", "32"), kInvalid,
                 "general.alignment is string, not uint32");
  ExpectRejected(GgufBytes().Header(0, 1).Array("general.alignment", 4, 0), kInvalid,
                 "general.alignment is array");
}

// --- tensor directory

TEST(GgufHostileTest, TensorNameBeyondFile) {
  ExpectRejected(OneTensor().TextClaiming(kHuge, "w").Data(40), kInvalid,
                 "tensor 0: bad.gguf: at byte 24: the tensor name does not fit");
}

TEST(GgufHostileTest, TensorNameTooLong) {
  ExpectRejected(OneTensor().Tensor(std::string(65, 'w'), {8}, 0, 0).Pad().Data(32), kInvalid,
                 "a tensor name of 65 bytes; 1 to 64");
}

TEST(GgufHostileTest, EmptyTensorName) {
  ExpectRejected(OneTensor().Tensor("", {8}, 0, 0).Pad().Data(32), kInvalid, "name of 0 bytes");
}

TEST(GgufHostileTest, TensorNameWithControlCharacters) {
  ExpectRejected(OneTensor().Tensor("w\n", {8}, 0, 0).Pad().Data(32), kInvalid, "'w\\n'");
}

TEST(GgufHostileTest, DuplicateTensor) {
  ExpectRejected(
      GgufBytes().Header(2, 0).Tensor("w", {8}, 0, 0).Tensor("w", {8}, 0, 32).Pad().Data(64),
      kInvalid, "tensor w appears twice");
}

TEST(GgufHostileTest, NoDimensions) {
  ExpectRejected(OneTensor().Tensor("w", {}, 0, 0).Pad().Data(32), kInvalid, "0 dimensions");
}

TEST(GgufHostileTest, TooManyDimensions) {  // CVE-2024-21836's write past info->ne
  ExpectRejected(OneTensor().Tensor("w", {1, 1, 1, 1, 8}, 0, 0).Pad().Data(32), kInvalid,
                 "5 dimensions; 1 to 4");
  ExpectRejected(OneTensor().Text("w").Raw(~0u).Data(64), kInvalid, "4294967295 dimensions");
}

TEST(GgufHostileTest, DimensionZero) {
  ExpectRejected(OneTensor().Tensor("w", {8, 0}, 0, 0).Pad().Data(32), kInvalid,
                 "dimension 1 is 0");
}

TEST(GgufHostileTest, DimensionNegative) {
  ExpectRejected(OneTensor().Tensor("w", {kHuge - 7}, 0, 0).Pad().Data(32), kInvalid,
                 "too many elements");
}

TEST(GgufHostileTest, ProductOfDimensionsWrapsToZero) {
  const uint64_t half = uint64_t{1} << 32;
  ExpectRejected(OneTensor().Tensor("w", {half, half}, 0, 0).Pad().Data(32), kInvalid,
                 "too many elements");
}

TEST(GgufHostileTest, ProductOfDimensionsWrapsToSmall) {
  // 3 * 0xAAAAAAAAAAAAAAAB = 1 modulo 2^64
  ExpectRejected(OneTensor().Tensor("w", {3, 0xAAAAAAAAAAAAAAABull}, 0, 0).Pad().Data(32), kInvalid,
                 "too many elements");
}

TEST(GgufHostileTest, BytesOfATensorWrap) {  // CVE-2026-33298: elements fit, their bytes do not
  ExpectRejected(OneTensor().Tensor("w", {uint64_t{1} << 62}, 0, 0).Pad().Data(32), kInvalid,
                 "too many elements");
  ExpectRejected(OneTensor().Tensor("w", {uint64_t{1} << 60}, 0, 0).Pad().Data(32), kInvalid,
                 "4611686018427387904 bytes at offset 0 reach beyond the 32 bytes");
}

TEST(GgufHostileTest, UnknownTensorType) {
  for (const uint32_t id : {4u, 5u, 9u, 10u, 16u, 31u, 1000u, ~0u}) {
    ExpectRejected(OneTensor().Tensor("blk.0.w", {256}, id, 0).Pad().Data(512), kUnsupported,
                   "tensor blk.0.w: tensor type id " + std::to_string(id));
  }
  ExpectRejected(OneTensor().Tensor("w", {256}, 10, 0).Pad().Data(512), kUnsupported,
                 "requantize to one of F32, F16, BF16, Q4_0");
}

TEST(GgufHostileTest, RowIsNoMultipleOfTheBlock) {
  ExpectRejected(OneTensor().Tensor("w", {48, 2}, 2, 0).Pad().Data(64), kInvalid,
                 "rows of 48 elements are no multiple of the 32 elements of a Q4_0 block");
  ExpectRejected(OneTensor().Tensor("w", {32, 8}, 12, 0).Pad().Data(144), kInvalid,
                 "rows of 32 elements");
}

TEST(GgufHostileTest, OffsetNotAligned) {
  ExpectRejected(OneTensor().Tensor("w", {8}, 0, 4).Pad().Data(64), kInvalid,
                 "offset 4 is not aligned to 32");
}

TEST(GgufHostileTest, OffsetNotAlignedToTheFilesAlignment) {
  ExpectRejected(GgufBytes()
                     .Header(1, 1)
                     .Uint32Value("general.alignment", 64)
                     .Tensor("w", {8}, 0, 32)
                     .Pad(64)
                     .Data(64),
                 kInvalid, "offset 32 is not aligned to 64");
}

TEST(GgufHostileTest, EntryCutShort) {
  ExpectRejected(OneTensor().Text("w12345").Raw(2u).Raw(uint64_t{8}).Raw(uint64_t{8}).Raw(0u),
                 kInvalid, "entry does not fit");
  ExpectRejected(OneTensor().Text("w1234567890123456").Raw(4u).Raw(uint64_t{8}), kInvalid,
                 "entry does not fit");
}

// --- tensor data

TEST(GgufHostileTest, TensorLargerThanFile) {  // CVE-2026-7482, CVE-2024-39720
  ExpectRejected(OneTensor().Tensor("w", {8, 1024}, 0, 0).Pad().Data(32), kInvalid,
                 "tensor w: 32768 bytes at offset 0 reach beyond the 32 bytes");
}

TEST(GgufHostileTest, TensorOneByteShort) {
  ExpectRejected(OneTensor().Tensor("w", {8}, 0, 0).Pad().Data(31), kInvalid,
                 "32 bytes at offset 0 reach beyond the 31 bytes");
}

TEST(GgufHostileTest, NoDataSection) {
  ExpectRejected(OneTensor().Tensor("w", {8}, 0, 0), kInvalid, "reach beyond the 0 bytes");
}

TEST(GgufHostileTest, OffsetBeyondFile) {
  ExpectRejected(OneTensor().Tensor("w", {8}, 0, uint64_t{1} << 40).Pad().Data(32), kInvalid,
                 "at offset 1099511627776 reach beyond");
}

TEST(GgufHostileTest, OffsetPlusSizeWraps) {  // also the wrap of a padded size
  ExpectRejected(OneTensor().Tensor("w", {8}, 0, kHuge - 31).Pad().Data(32), kInvalid,
                 "reach beyond");
}

TEST(GgufHostileTest, SumOfSizesWraps) {        // CVE-2025-53630 and its sequel CVE-2026-27940
  const uint64_t elements = uint64_t{1} << 60;  // 2^62 bytes each: four of them make 2^64
  GgufBytes file = GgufBytes().Header(5, 0);
  for (uint64_t i = 0; i < 4; ++i) {
    file.Tensor("w" + std::to_string(i), {elements}, 0, i << 62);
  }
  ExpectRejected(file.Tensor("w4", {8}, 0, 0).Pad().Data(64), kInvalid, "tensor w0");
}

TEST(GgufHostileTest, TensorsOverlap) {
  ExpectRejected(
      GgufBytes().Header(2, 0).Tensor("a", {16}, 0, 0).Tensor("b", {8}, 0, 32).Pad().Data(64),
      kInvalid, "tensors a and b overlap at offset 32");
}

TEST(GgufHostileTest, TensorsShareTheirBytes) {
  ExpectRejected(
      GgufBytes().Header(2, 0).Tensor("a", {8}, 0, 0).Tensor("b", {8}, 0, 0).Pad().Data(32),
      kInvalid, "tensors a and b overlap at offset 0");
}

TEST(GgufHostileTest, OverlapAcrossTheOrderOfTheDirectory) {
  ExpectRejected(GgufBytes()
                     .Header(3, 0)
                     .Tensor("a", {8}, 0, 64)
                     .Tensor("b", {8}, 0, 32)
                     .Tensor("c", {24}, 0, 0)
                     .Pad()
                     .Data(96),
                 kInvalid, "tensors c and b overlap");
}

// --- metadata of a type nobody expected (a string array read as numbers and the like)

TEST(GgufHostileTest, ValuesOfAnotherTypeAreErrorsNotCasts) {
  const std::string bytes = GgufBytes()
                                .Header(0, 6)
                                .Array("tokens", 4, 1)
                                .Raw(7u)
                                .StringValue("layers", "12")
                                .Key("big", 10)
                                .Raw(kHuge)
                                .Key("negative", 5)
                                .Raw(int32_t{-1})
                                .Uint32Value("model", 3)
                                .Array("names", 8, 1)
                                .Text("x")
                                .Build();
  const auto file = GgufFile::Parse(bytes, "bad.gguf");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->Find("tokens")->AsStrings().status().code(), kInvalid);
  EXPECT_EQ((*file)->Find("tokens")->AsFloats().status().code(), kInvalid);
  EXPECT_EQ((*file)->Find("tokens")->AsUint().status().code(), kInvalid);
  EXPECT_EQ((*file)->Find("names")->AsInts().status().code(), kInvalid);
  EXPECT_EQ((*file)->Find("names")->AsString().status().code(), kInvalid);
  EXPECT_EQ((*file)->GetUint("layers").status().message(),
            "bad.gguf: key layers is string, not an integer");
  EXPECT_EQ((*file)->GetFloat("layers").status().code(), kInvalid);
  EXPECT_EQ((*file)->GetString("model").status().message(),
            "bad.gguf: key model is uint32, not a string");
  EXPECT_EQ((*file)->GetUint("negative").status().message(),
            "bad.gguf: key negative is -1, out of range");
  EXPECT_EQ((*file)->Find("big")->AsInt().status().code(), kInvalid);
  EXPECT_EQ((*file)->GetBoolOr("model", true).status().code(), kInvalid);
  EXPECT_EQ((*file)->GetUint("absent").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace fedge
