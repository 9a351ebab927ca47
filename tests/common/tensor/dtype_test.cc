#include "common/tensor/dtype.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace fedge {
namespace {

constexpr DType kAll[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ4_0,
                          DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0,
                          DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

TEST(DTypeTest, NamesAndIdsComeBack) {
  for (const DType type : kAll) {
    EXPECT_EQ(*DTypeFromId(static_cast<uint32_t>(type)), type);
    EXPECT_EQ(*DTypeFromName(DTypeName(type)), type);
  }
  EXPECT_EQ(*DTypeFromName("q4_k"), DType::kQ4_K);
}

TEST(DTypeTest, NamesSupportedTypesForAnUnknownOne) {
  for (const uint32_t id : {4u, 10u, 16u, 31u, 0xffffffffu}) {
    const absl::Status status = DTypeFromId(id).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << id;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("Q6_K"));
  }
  EXPECT_EQ(DTypeFromName("Q9").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(DTypeTest, RowBytesAreWholeBlocks) {
  EXPECT_EQ(RowBytes(DType::kF32, 3), 12);
  EXPECT_EQ(RowBytes(DType::kQ4_0, 64), 36);
  EXPECT_EQ(RowBytes(DType::kQ8_0, 32), 34);
  EXPECT_EQ(RowBytes(DType::kQ4_K, 512), 288);
  EXPECT_EQ(RowBytes(DType::kQ5_K, 256), 176);
  EXPECT_EQ(RowBytes(DType::kQ6_K, 256), 210);
  EXPECT_EQ(RowBytes(DType::kQ4_0, 0), 0);
  EXPECT_DEATH(RowBytes(DType::kQ4_0, 33), "33 elements of Q4_0");
}

TEST(DTypeTest, WeightMatrixFindsItsRows) {
  WeightMatrix matrix;
  uint8_t bytes[3 * 36] = {};
  matrix.data = bytes;
  matrix.type = DType::kQ4_0;
  matrix.rows = 3;
  matrix.cols = 64;
  EXPECT_EQ(matrix.Row(2), bytes + 72);
}

}  // namespace
}  // namespace fedge
