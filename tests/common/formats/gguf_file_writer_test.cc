#include "common/formats/gguf_file_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/testing/fault_env.h"

namespace fedge {
namespace {

using ::fedge::testing::FaultEnv;
using ::testing::ElementsAre;

const std::vector<GgufTensorShape>& Shapes() {
  static const auto* const kShapes = new std::vector<GgufTensorShape>{
      {"a", DType::kF32, {3}}, {"b", DType::kQ8_0, {32, 2}}, {"c", DType::kF16, {1, 5}}};
  return *kShapes;
}

std::string DataOf(const GgufTensorShape& shape) {
  std::string data(static_cast<size_t>(shape.bytes()), '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 7 + shape.name[0]);
  return data;
}

GgufWriter Metadata() {
  GgufWriter writer;
  writer.SetString("general.architecture", "llama");
  writer.SetUint32("llama.block_count", 3);
  return writer;
}

std::string NewFolder(absl::string_view name) {
  const std::string dir = absl::StrCat(::testing::TempDir(), "/gguf_file_writer_", name);
  Env::Posix()->Remove(dir).IgnoreError();
  EXPECT_TRUE(Env::Posix()->CreateDirs(dir).ok());
  return dir;
}

absl::Status WriteAll(const std::string& path, Env& env) {
  auto file = GgufFileWriter::Create(path, Metadata(), Shapes(), env);
  if (!file.ok()) return file.status();
  for (const GgufTensorShape& shape : Shapes()) {
    const std::string data = DataOf(shape);
    for (const absl::string_view part :
         {absl::string_view(data).substr(0, 5), absl::string_view(data).substr(5)}) {
      const absl::Status status = (*file)->Append(part);
      if (!status.ok()) return status;
    }
  }
  return (*file)->Finish();
}

TEST(GgufFileWriterTest, WritesTheBytesOfTheWriterInMemory) {
  const std::string dir = NewFolder("bytes");
  ASSERT_TRUE(WriteAll(dir + "/x.gguf", *Env::Posix()).ok());
  GgufWriter in_memory = Metadata();
  for (const GgufTensorShape& shape : Shapes()) {
    in_memory.AddTensor(shape.name, shape.type, shape.dims, DataOf(shape));
  }
  EXPECT_EQ(*Env::Posix()->ReadFile(dir + "/x.gguf"), in_memory.Serialize());
  EXPECT_THAT(*Env::Posix()->ListDir(dir), ElementsAre("x.gguf"));
}

TEST(GgufFileWriterTest, LeavesNothingWhenGivenUp) {
  const std::string dir = NewFolder("given_up");
  {
    auto file = GgufFileWriter::Create(dir + "/x.gguf", Metadata(), Shapes(), *Env::Posix());
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE((*file)->Append("abcd").ok());
  }
  EXPECT_THAT(*Env::Posix()->ListDir(dir), ElementsAre());
}

TEST(GgufFileWriterTest, KeepsTheOldFileWhateverFails) {
  const std::string dir = NewFolder("faults");
  const std::string path = dir + "/x.gguf";
  for (int64_t n = 1;; ++n) {
    ASSERT_TRUE(Env::Posix()->WriteFileAtomic(path, "old").ok());
    FaultEnv env;
    env.FailFrom(n, absl::StatusCode::kResourceExhausted, FaultEnv::Span::kOnce);
    const absl::Status status = WriteAll(path, env);
    EXPECT_THAT(*Env::Posix()->ListDir(dir), ElementsAre("x.gguf")) << n;
    if (!env.triggered()) {
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_GT(n, 10);
      break;
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << n;
    const auto log = env.log();
    const bool renamed = log.back() != "Remove x.gguf" && log.back().find("SyncDir") == 0;
    if (!renamed) {
      EXPECT_EQ(*Env::Posix()->ReadFile(path), "old") << n;
    }
  }
}

}  // namespace
}  // namespace fedge
