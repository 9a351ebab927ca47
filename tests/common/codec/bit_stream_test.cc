#include "common/codec/bit_stream.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/base/rng.h"

namespace fedge {
namespace {

TEST(BitWriterTest, PutsTheFirstBitLowest) {
  std::string out;
  BitWriter writer(&out);
  writer.Write(0b1, 1);
  writer.Write(0b10, 2);
  writer.WriteUnary(3);
  writer.AlignToByte();
  writer.Write(0xABCD, 16);
  EXPECT_EQ(out, std::string("\x3D\xCD\xAB", 3));  // 0 0111 10 1
}

TEST(BitReaderTest, ReadsBackRandomFields) {
  Rng rng(1);
  for (int round = 0; round < 50; ++round) {
    struct Field {
      int bits;  // -1: unary
      uint32_t value;
    };
    std::vector<Field> fields(200);
    std::string out;
    BitWriter writer(&out);
    for (Field& field : fields) {
      field.bits = static_cast<int>(rng.Below(34)) - 1;
      if (field.bits < 0) {
        field.value = static_cast<uint32_t>(rng.Below(rng.Below(4) == 0 ? 300 : 5));
        writer.WriteUnary(field.value);
      } else {
        field.value = static_cast<uint32_t>(rng.Next() & ((uint64_t{1} << field.bits) - 1));
        writer.Write(field.value, field.bits);
      }
    }
    writer.AlignToByte();
    BitReader reader(out);
    for (const Field& field : fields) {
      uint32_t value = 0;
      ASSERT_TRUE(field.bits < 0 ? reader.ReadUnary(1000, &value)
                                 : reader.Read(field.bits, &value));
      ASSERT_EQ(value, field.value);
    }
    EXPECT_TRUE(reader.AlignToByte());
    EXPECT_EQ(reader.remaining(), 0u);
    EXPECT_EQ(reader.BytesConsumed(), out.size());
  }
}

TEST(BitReaderTest, NeverReadsBeyondItsBytes) {
  const std::string ones(20, '\xFF');
  for (size_t size = 0; size <= ones.size(); ++size) {
    BitReader reader(absl::string_view(ones).substr(0, size));
    uint32_t value = 0;
    EXPECT_FALSE(reader.ReadUnary(1000, &value)) << size;  // no zero comes
    BitReader counted(absl::string_view(ones).substr(0, size));
    for (size_t bit = 0; bit < size * 8; ++bit) ASSERT_TRUE(counted.Read(1, &value));
    EXPECT_FALSE(counted.Read(1, &value));
    EXPECT_TRUE(counted.Read(0, &value));
  }
}

TEST(BitReaderTest, StopsAtTheUnaryLimit) {
  std::string out;
  BitWriter writer(&out);
  writer.WriteUnary(100);
  writer.AlignToByte();
  uint32_t value = 0;
  EXPECT_FALSE(BitReader(out).ReadUnary(99, &value));
  EXPECT_TRUE(BitReader(out).ReadUnary(100, &value));
  EXPECT_EQ(value, 100u);
}

TEST(BitReaderTest, SeesPaddingThatIsNotZero) {
  const std::string byte("\x11", 1);
  uint32_t value = 0;
  BitReader dirty(byte);
  ASSERT_TRUE(dirty.Read(4, &value));
  EXPECT_FALSE(dirty.AlignToByte());
  BitReader clean(byte);
  ASSERT_TRUE(clean.Read(5, &value));
  EXPECT_TRUE(clean.AlignToByte());
}

}  // namespace
}  // namespace fedge
