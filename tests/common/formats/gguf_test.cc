#include "common/formats/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/formats/gguf_writer.h"
#include "common/tensor/quantize.h"
#include "tests/common/formats/gguf_bytes.h"
#include "tests/testing/shared_data.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using testing::GgufBytes;

// A file that keeps its bytes alive.
std::shared_ptr<const GgufFile> MustParse(std::string bytes) {
  struct Kept {
    std::string bytes;
    std::shared_ptr<const GgufFile> file;
  };
  auto kept = std::make_shared<Kept>();
  kept->bytes = std::move(bytes);
  auto file = GgufFile::Parse(kept->bytes, "test.gguf");
  EXPECT_TRUE(file.ok()) << file.status();
  kept->file = *file;
  return std::shared_ptr<const GgufFile>(kept, kept->file.get());
}

TEST(GgufFileTest, ReadsEveryKindOfValue) {
  const std::string bytes = GgufBytes()
                                .Header(0, 13)
                                .Key("u8", 0)
                                .Raw(uint8_t{250})
                                .Key("i8", 1)
                                .Raw(int8_t{-3})
                                .Key("u16", 2)
                                .Raw(uint16_t{60000})
                                .Key("i16", 3)
                                .Raw(int16_t{-300})
                                .Key("u32", 4)
                                .Raw(4000000000u)
                                .Key("i32", 5)
                                .Raw(-5)
                                .Key("f32", 6)
                                .Raw(0.5f)
                                .Key("flag", 7)
                                .Raw(uint8_t{1})
                                .StringValue("text", "grüß\n")
                                .Key("u64", 10)
                                .Raw(~uint64_t{0})
                                .Key("i64", 11)
                                .Raw(int64_t{-1} << 40)
                                .Key("f64", 12)
                                .Raw(1e300)
                                .Array("list", 5, 3)
                                .Raw(-1)
                                .Raw(0)
                                .Raw(7)
                                .Build();
  const auto file = MustParse(bytes);
  EXPECT_EQ(*file->GetUint("u8"), 250u);
  EXPECT_EQ(*file->Find("i8")->AsInt(), -3);
  EXPECT_EQ(*file->GetUint("u16"), 60000u);
  EXPECT_EQ(*file->Find("i16")->AsInt(), -300);
  EXPECT_EQ(*file->GetUint("u32"), 4000000000u);
  EXPECT_EQ(*file->GetFloat("i32"), -5.0);
  EXPECT_EQ(*file->GetFloat("f32"), 0.5);
  EXPECT_EQ(*file->GetBoolOr("flag", false), true);
  EXPECT_EQ(*file->GetString("text"), "grüß\n");
  EXPECT_EQ(*file->GetUint("u64"), ~uint64_t{0});
  EXPECT_EQ(*file->Find("i64")->AsInt(), int64_t{-1} << 40);
  EXPECT_EQ(*file->GetFloat("f64"), 1e300);
  EXPECT_THAT(*file->Find("list")->AsInts(), ElementsAre(-1, 0, 7));
  EXPECT_EQ(file->Find("list")->size(), 3u);
  EXPECT_EQ(file->keys().front(), "u8");
  EXPECT_EQ(file->keys().back(), "list");
}

TEST(GgufFileTest, DefaultsStandInForAbsentKeysOnly) {
  const auto file = MustParse(GgufBytes().Header(0, 1).Uint32Value("n", 3).Build());
  EXPECT_EQ(*file->GetUintOr("absent", 9), 9u);
  EXPECT_EQ(*file->GetUintOr("n", 9), 3u);
  EXPECT_EQ(*file->GetFloatOr("absent", 0.25), 0.25);
  EXPECT_EQ(*file->GetBoolOr("absent", true), true);
  EXPECT_EQ(*file->GetStringOr("absent", "x"), "x");
  EXPECT_EQ(file->GetStringOr("n", "x").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(file->Find("absent"), nullptr);
  EXPECT_EQ(file->FindTensor("absent"), nullptr);
}

TEST(GgufFileTest, ReadsVersionTwo) {
  const auto file = MustParse(GgufBytes()
                                  .Header(1, 1, 2)
                                  .StringValue("general.architecture", "llama")
                                  .Tensor("w", {4, 2}, 0, 0)
                                  .Pad()
                                  .Data(32, 0)
                                  .Build());
  EXPECT_EQ(file->version(), 2u);
  EXPECT_EQ(file->tensors().front().num_elements(), 8);
}

TEST(GgufFileTest, ReadsAFileWithoutAnything) {
  const auto file = MustParse(GgufBytes().Header(0, 0).Build());
  EXPECT_TRUE(file->keys().empty());
  EXPECT_TRUE(file->tensors().empty());
}

TEST(GgufFileTest, ReadsEmptyArrays) {
  const auto file =
      MustParse(GgufBytes().Header(0, 2).Array("strings", 8, 0).Array("floats", 6, 0).Build());
  EXPECT_TRUE(file->Find("strings")->AsStrings()->empty());
  EXPECT_TRUE(file->Find("floats")->AsFloats()->empty());
}

TEST(GgufFileTest, TensorsMayStandInAnyOrderWithGapsAndTrailingBytes) {
  const auto file = MustParse(GgufBytes()
                                  .Header(2, 0)
                                  .Tensor("late", {8}, 0, 96)
                                  .Tensor("early", {1}, 0, 0)
                                  .Pad()
                                  .Data(96, 'e')
                                  .Data(32, 'l')
                                  .Data(5, 't')
                                  .Build());
  EXPECT_EQ(file->FindTensor("early")->data, "eeee");
  EXPECT_EQ(file->FindTensor("late")->data, std::string(32, 'l'));
}

TEST(GgufFileTest, HonoursTheAlignmentKey) {
  const auto file = MustParse(GgufBytes()
                                  .Header(1, 1)
                                  .Uint32Value("general.alignment", 4096)
                                  .Tensor("w", {1}, 0, 0)
                                  .Pad(4096)
                                  .Data(4, 'w')
                                  .Build());
  EXPECT_EQ(file->tensors()[0].data, "wwww");
  EXPECT_EQ(file->tensors()[0].data.data() - file->bytes().data(), 4096);
}

TEST(GgufTensorTest, AsMatrixIsRowsByColumns) {
  const auto file = MustParse(GgufBytes()
                                  .Header(4, 0)
                                  .Tensor("m", {4, 2}, 0, 0)
                                  .Tensor("v", {8}, 0, 32)
                                  .Tensor("m1", {4, 2, 1, 1}, 0, 64)
                                  .Tensor("cube", {2, 2, 2}, 0, 96)
                                  .Pad()
                                  .Data(128, 0)
                                  .Build());
  for (const char* const name : {"m", "m1"}) {
    const WeightMatrix matrix = *file->FindTensor(name)->AsMatrix();
    EXPECT_EQ(matrix.rows, 2);
    EXPECT_EQ(matrix.cols, 4);
  }
  EXPECT_EQ(file->FindTensor("v")->AsMatrix()->rows, 1);
  EXPECT_EQ(file->FindTensor("v")->AsMatrix()->cols, 8);
  EXPECT_EQ(file->FindTensor("cube")->AsMatrix().status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(GgufFileTest, OpenNamesTheMissingFile) {
  const absl::Status status = GgufFile::Open("/no/such.gguf", *Env::Posix()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("/no/such.gguf"));
}

std::string Floats(const std::vector<float>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * 4);
}

GgufWriter ExampleWriter() {
  GgufWriter writer;
  writer.SetString("general.architecture", "llama");
  writer.SetUint32("layers", 7);
  writer.SetUint64("seed", ~uint64_t{0});
  writer.SetInt32("shift", -2);
  writer.SetFloat32("rate", 0.1f);
  writer.SetBool("tied", true);
  writer.SetStrings("tokens", std::vector<std::string>{"a", "", "ccc"});
  writer.SetFloat32s("scores", {1.5f, -2.0f});
  writer.SetInt32s("types", {1, -1});
  writer.AddTensor("odd", DType::kF32, {3}, Floats({1, 2, 3}));
  writer.AddTensor("packed", DType::kQ8_0, {32, 2}, std::string(68, 'q'));
  return writer;
}

TEST(GgufWriterTest, WhatIsWrittenIsRead) {
  const std::string bytes = ExampleWriter().Serialize();
  const auto file = MustParse(bytes);
  EXPECT_EQ(file->version(), 3u);
  EXPECT_EQ(*file->GetString("general.architecture"), "llama");
  EXPECT_EQ(*file->GetUint("layers"), 7u);
  EXPECT_EQ(*file->GetUint("seed"), ~uint64_t{0});
  EXPECT_EQ(*file->Find("shift")->AsInt(), -2);
  EXPECT_EQ(static_cast<float>(*file->GetFloat("rate")), 0.1f);
  EXPECT_EQ(*file->GetBoolOr("tied", false), true);
  EXPECT_THAT(*file->Find("tokens")->AsStrings(), ElementsAre("a", "", "ccc"));
  EXPECT_THAT(*file->Find("scores")->AsFloats(), ElementsAre(1.5f, -2.0f));
  EXPECT_THAT(*file->Find("types")->AsInts(), ElementsAre(1, -1));
  EXPECT_EQ(file->FindTensor("odd")->data, Floats({1, 2, 3}));
  EXPECT_THAT(file->FindTensor("packed")->dims, ElementsAre(32, 2));
  EXPECT_EQ(file->FindTensor("packed")->data, std::string(68, 'q'));
}

// Writes what was read: the same bytes if nothing was lost or reordered.
std::string Rewritten(const GgufFile& file) {
  GgufWriter writer;
  for (const std::string& key : file.keys()) writer.CopyValue(key, *file.Find(key));
  for (const GgufTensor& tensor : file.tensors()) {
    writer.AddTensor(tensor.name, tensor.type, tensor.dims, std::string(tensor.data));
  }
  return writer.Serialize();
}

TEST(GgufWriterTest, RewritingGivesTheSameBytes) {
  const std::string bytes = ExampleWriter().Serialize();
  EXPECT_EQ(Rewritten(*MustParse(bytes)), bytes);
}

TEST(GgufWriterTest, CopyLeavesTheAlignmentToTheWriter) {
  const auto file = MustParse(GgufBytes()
                                  .Header(1, 1)
                                  .Uint32Value("general.alignment", 4096)
                                  .Tensor("w", {1}, 0, 0)
                                  .Pad(4096)
                                  .Data(4, 'w')
                                  .Build());
  const auto copy = MustParse(Rewritten(*file));
  EXPECT_EQ(copy->Find("general.alignment"), nullptr);
  EXPECT_EQ(copy->tensors()[0].data, "wwww");
}

TEST(GgufWriterTest, WritesAFileThatOpens) {
  const std::string path = ::testing::TempDir() + "/fedge_gguf_writer_test.gguf";
  ASSERT_TRUE(ExampleWriter().WriteFile(path, *Env::Posix()).ok());
  const auto file = GgufFile::Open(path, *Env::Posix());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->path(), path);
  EXPECT_EQ((*file)->tensors().size(), 2u);
  EXPECT_TRUE(Env::Posix()->Remove(path).ok());
}

TEST(GgufWriterTest, RefusesOurOwnMistakes) {
  GgufWriter writer = ExampleWriter();
  EXPECT_DEATH(writer.SetUint32("layers", 1), "set twice");
  EXPECT_DEATH(writer.AddTensor("odd", DType::kF32, {1}, Floats({1})), "added twice");
  EXPECT_DEATH(writer.AddTensor("short", DType::kF32, {2}, Floats({1})), "4 bytes instead of 8");
}

// --- real files

class RealGgufTest : public ::testing::TestWithParam<const char*> {};

TEST_P(RealGgufTest, EveryValueAndTensorIsReadable) {
  FEDGE_SHARED_DATA_OR_SKIP(path, GetParam());
  const auto file = GgufFile::Open(path, *Env::Posix());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_FALSE((*file)->GetString("general.architecture")->empty());
  for (const GgufTensor& tensor : (*file)->tensors()) {
    std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
    Dequantize(tensor.type, reinterpret_cast<const uint8_t*>(tensor.data.data()),
               tensor.num_elements(), values.data());
    double square = 0;
    for (const float value : values) square += static_cast<double>(value) * value;
    // A wrongly decoded block gives huge values or NaN sooner or later.
    EXPECT_LT(std::sqrt(square / static_cast<double>(values.size())), 100.0) << tensor.name;
  }
}

TEST_P(RealGgufTest, RewritingGivesTheSameBytes) {
  FEDGE_SHARED_DATA_OR_SKIP(path, GetParam());
  const auto file = GgufFile::Open(path, *Env::Posix());
  ASSERT_TRUE(file.ok()) << file.status();
  std::string bytes = Rewritten(**file);
  // llama.cpp leaves a file without tensors unpadded.
  if ((*file)->tensors().empty()) bytes.resize((*file)->bytes().size());
  EXPECT_TRUE(bytes == (*file)->bytes());
}

INSTANTIATE_TEST_SUITE_P(
    SharedData, RealGgufTest,
    ::testing::Values("models/stories260K-f32.gguf", "models/stories15M-Q8_0.gguf",
                      "models/stories15M-Q4_0.gguf", "models/rand-tiny-llama-f32.gguf",
                      "models/rand-tiny-llama-Q4_0.gguf", "models/rand-tiny-llama-Q4_K_M.gguf",
                      "models/rand-tiny-llama-f32.lora-r8a16.gguf",
                      "models/rand-tiny-qwen2-f32.gguf", "models/rand-tiny-qwen2-Q4_K_M.gguf",
                      "models/rand-tiny-qwen3-f32.gguf", "models/rand-tiny-gemma3-f32.gguf",
                      "models/rand-tiny-phi3-f32.gguf", "tokenizer/ggml-vocab-gpt-2.gguf",
                      "tokenizer/ggml-vocab-llama-spm.gguf", "tokenizer/llama3.2-vocab.gguf",
                      "tokenizer/qwen2.5-vocab.gguf"),
    [](const auto& file) {
      std::string name = file.param;
      for (char& c : name) {
        if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
      }
      return name;
    });

std::vector<float> Decoded(const GgufTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  Dequantize(tensor.type, reinterpret_cast<const uint8_t*>(tensor.data.data()),
             tensor.num_elements(), values.data());
  return values;
}

TEST(LlamaCppConformanceTest, Q4IsEncodedToTheSameBytes) {
  FEDGE_SHARED_DATA_OR_SKIP(exact_path, "models/rand-tiny-llama-f32.gguf");
  FEDGE_SHARED_DATA_OR_SKIP(quantized_path, "models/rand-tiny-llama-Q4_0.gguf");
  const auto exact = *GgufFile::Open(exact_path, *Env::Posix());
  const auto quantized = *GgufFile::Open(quantized_path, *Env::Posix());
  int compared = 0;
  for (const GgufTensor& tensor : quantized->tensors()) {
    if (tensor.type != DType::kQ4_0) continue;
    std::string encoded(tensor.data.size(), '\0');
    ASSERT_TRUE(Quantize(DType::kQ4_0, Decoded(*exact->FindTensor(tensor.name)),
                         reinterpret_cast<uint8_t*>(encoded.data()))
                    .ok());
    EXPECT_TRUE(encoded == tensor.data) << tensor.name;
    ++compared;
  }
  EXPECT_GT(compared, 20);
}

// The relative error of llama.cpp's quantization as our decoder sees it: a wrong bit anywhere
// raises it, and a lower one than the format allows would be just as wrong.
TEST(LlamaCppConformanceTest, KTypesDecodeToWithinTheirError) {
  FEDGE_SHARED_DATA_OR_SKIP(exact_path, "models/rand-tiny-llama-f32.gguf");
  FEDGE_SHARED_DATA_OR_SKIP(quantized_path, "models/rand-tiny-llama-Q4_K_M.gguf");
  const auto exact = *GgufFile::Open(exact_path, *Env::Posix());
  const auto quantized = *GgufFile::Open(quantized_path, *Env::Posix());
  std::map<DType, int> seen;
  for (const GgufTensor& tensor : quantized->tensors()) {
    const std::vector<float> want = Decoded(*exact->FindTensor(tensor.name));
    const std::vector<float> got = Decoded(tensor);
    double error = 0, total = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      error += std::pow(static_cast<double>(want[i]) - got[i], 2);
      total += std::pow(static_cast<double>(want[i]), 2);
    }
    const double relative = std::sqrt(error / total);
    ++seen[tensor.type];
    if (tensor.type == DType::kQ4_K) {
      EXPECT_GT(relative, 0.05) << tensor.name;
      EXPECT_LT(relative, 0.09) << tensor.name;
    } else if (tensor.type == DType::kQ6_K) {
      EXPECT_GT(relative, 0.01) << tensor.name;
      EXPECT_LT(relative, 0.03) << tensor.name;
    } else {
      EXPECT_LT(relative, 0.07) << tensor.name << " " << DTypeName(tensor.type);
    }
  }
  EXPECT_GT(seen[DType::kQ4_K], 5);
  EXPECT_GT(seen[DType::kQ6_K], 1);
}

}  // namespace
}  // namespace fedge
