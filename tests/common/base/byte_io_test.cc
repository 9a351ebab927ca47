#include "common/base/byte_io.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace fedge {
namespace {

TEST(ByteWriterTest, WritesLittleEndian) {
  ByteWriter writer;
  writer.Write<uint8_t>(0x01);
  writer.Write<uint16_t>(0x0302);
  writer.Write<uint32_t>(0x07060504);
  writer.WriteBytes("x");
  writer.PadTo(8);
  writer.PadTo(8);
  writer.Write<float>(1.0f);
  EXPECT_EQ(writer.size(), 12u);
  EXPECT_EQ(std::move(writer).Take(), std::string("\1\2\3\4\5\6\7x\0\0\x80\x3f", 12));
}

TEST(ByteReaderTest, ReadsBackWhatWasWritten) {
  ByteWriter writer;
  writer.Write<int64_t>(std::numeric_limits<int64_t>::min());
  writer.Write<double>(-0.5);
  writer.WriteBytes("tail");
  ByteReader reader(writer.bytes());
  EXPECT_EQ(reader.Read<int64_t>(), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(reader.Read<double>(), -0.5);
  EXPECT_EQ(reader.position(), 16u);
  EXPECT_EQ(reader.ReadBytes(4), "tail");
  EXPECT_EQ(reader.remaining(), 0u);
  EXPECT_TRUE(reader.ok());
}

TEST(ByteReaderTest, FailsForGoodAtTheFirstReadBeyondTheEnd) {
  const std::string bytes = "12345";
  ByteReader reader(bytes);
  EXPECT_EQ(reader.Read<uint8_t>(), '1');
  EXPECT_EQ(reader.Read<uint64_t>(), 0u);
  EXPECT_FALSE(reader.ok());
  EXPECT_EQ(reader.remaining(), 0u);
  EXPECT_EQ(reader.Read<uint8_t>(), 0u);  // although four bytes were left
  EXPECT_EQ(reader.ReadBytes(0), "");
  EXPECT_FALSE(reader.ok());
}

TEST(ByteReaderTest, RefusesLengthsThatWouldOverflow) {
  const std::string bytes = "12345";
  for (const uint64_t size : {uint64_t{6}, std::numeric_limits<uint64_t>::max()}) {
    ByteReader reader(bytes);
    reader.Read<uint8_t>();
    EXPECT_EQ(reader.ReadBytes(size), "");
    EXPECT_FALSE(reader.ok());
  }
  ByteReader exact(bytes);
  EXPECT_EQ(exact.ReadBytes(5), bytes);
  EXPECT_EQ(exact.ReadBytes(0), "");
  EXPECT_TRUE(exact.ok());
}

TEST(CheckedArithmeticTest, SeesOverflow) {
  const uint64_t largest = std::numeric_limits<uint64_t>::max();
  uint64_t out = 0;
  EXPECT_TRUE(CheckedMul(uint64_t{1} << 32, (uint64_t{1} << 32) - 1, &out));
  EXPECT_EQ(out, largest - ((uint64_t{1} << 32) - 1));
  EXPECT_FALSE(CheckedMul(uint64_t{1} << 32, uint64_t{1} << 32, &out));
  EXPECT_TRUE(CheckedAdd(largest, 0, &out));
  EXPECT_EQ(out, largest);
  EXPECT_FALSE(CheckedAdd(largest, 1, &out));
}

}  // namespace
}  // namespace fedge
