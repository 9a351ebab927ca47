// A valid file with damage at random or everywhere: each result is a file that can be read whole,
// or an error.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "common/base/rng.h"
#include "common/formats/gguf.h"
#include "common/tensor/quantize.h"
#include "tests/common/formats/gguf_bytes.h"

namespace fedge {
namespace {

using testing::GgufBytes;

// Parses a heap copy of exactly the file's size, so that a sanitizer sees one byte too many.
absl::StatusOr<std::shared_ptr<const GgufFile>> ParseCopy(absl::string_view bytes,
                                                          std::unique_ptr<char[]>* copy) {
  copy->reset(new char[bytes.size()]);
  std::copy(bytes.begin(), bytes.end(), copy->get());
  return GgufFile::Parse(absl::string_view(copy->get(), bytes.size()), "bad.gguf");
}

// A file with every kind of value and two tensors; the last byte belongs to a tensor.
std::string SmallValidFile() {
  GgufBytes file = GgufBytes().Header(2, 16);
  const uint32_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  for (uint32_t type = 0; type < 13; ++type) {
    if (sizes[type] != 0) file.Key("scalar" + std::to_string(type), type).Data(sizes[type]);
  }
  file.StringValue("general.architecture", "llama").Uint32Value("general.alignment", 32);
  file.Array("strings", 8, 2).Text("one").Text("").Array("floats", 6, 2).Raw(1.0f).Raw(2.0f);
  file.Array("bools", 7, 2).Raw(uint8_t{0}).Raw(uint8_t{1});
  file.Tensor("a.weight", {32, 2}, 2, 0).Tensor("b.weight", {3, 2}, 0, 64);
  return file.Pad().Data(36).Pad().Data(24, 0).Build();
}

// Reads everything the file offers.
void Consume(const GgufFile& file) {
  for (const std::string& key : file.keys()) {
    const GgufValue& value = *file.Find(key);
    value.AsUint().IgnoreError();
    value.AsInt().IgnoreError();
    value.AsFloat().IgnoreError();
    value.AsBool().IgnoreError();
    value.AsString().IgnoreError();
    value.AsStrings().IgnoreError();
    value.AsInts().IgnoreError();
    value.AsFloats().IgnoreError();
  }
  for (const GgufTensor& tensor : file.tensors()) {
    std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
    Dequantize(tensor.type, reinterpret_cast<const uint8_t*>(tensor.data.data()),
               tensor.num_elements(), values.data());
  }
}

TEST(GgufDamageTest, SmallFileIsValid) {
  const std::string bytes = SmallValidFile();
  const auto file = GgufFile::Parse(bytes, "small.gguf");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->keys().size(), 16u);
  EXPECT_EQ((*file)->tensors().size(), 2u);
}

TEST(GgufDamageTest, EveryTruncationIsAnError) {
  const std::string whole = SmallValidFile();
  for (size_t size = 0; size < whole.size(); ++size) {
    std::unique_ptr<char[]> copy;
    const auto file = ParseCopy(absl::string_view(whole).substr(0, size), &copy);
    ASSERT_FALSE(file.ok()) << size;
    ASSERT_THAT(std::string(file.status().message()), ::testing::HasSubstr("bad.gguf: ")) << size;
  }
}

TEST(GgufDamageTest, FlippedBitsAreReadOrRejected) {
  const std::string whole = SmallValidFile();
  Rng rng(20240);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = whole;
    for (uint64_t flips = 1 + rng.Below(4); flips > 0; --flips) {
      const size_t at = static_cast<size_t>(rng.Below(bytes.size()));
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng.Below(8)));
    }
    std::unique_ptr<char[]> copy;
    const auto file = ParseCopy(bytes, &copy);
    if (file.ok()) Consume(**file);
  }
}

TEST(GgufDamageTest, ExtremeNumbersAnywhereAreReadOrRejected) {
  const std::string whole = SmallValidFile();
  const uint64_t extremes[] = {
      0,          1,          ~uint64_t{0},     ~uint64_t{31}, uint64_t{1} << 63,
      0x7fffffff, 0xffffffff, uint64_t{1} << 32};
  for (size_t at = 0; at + 8 <= whole.size(); ++at) {
    for (const uint64_t extreme : extremes) {
      std::string bytes = whole;
      std::memcpy(bytes.data() + at, &extreme, 8);
      std::unique_ptr<char[]> copy;
      const auto file = ParseCopy(bytes, &copy);
      if (file.ok()) Consume(**file);
    }
  }
}

}  // namespace
}  // namespace fedge
