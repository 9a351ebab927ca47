// The printed memory estimate against what the kernel counted for a process that did the work.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/env.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;  // which take memory of their own
#else
constexpr bool kSanitized = false;
#endif

struct ProcessResult {
  int status = 0;
  std::string out;
};

// Runs `fedge` with its errors going to a file.
ProcessResult RunFedge(const std::string& arguments, const std::string& errors) {
  const std::string command =
      absl::StrCat(FEDGE_BINARY_DIR, "/bin/fedge ", arguments, " 2>", errors);
  ProcessResult result;
  std::FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return {-1, ""};
  char buffer[4096];
  while (std::fgets(buffer, sizeof(buffer), pipe) != nullptr) result.out += buffer;
  result.status = pclose(pipe);
  return result;
}

struct Case {
  const char* name;
  const char* model;     // arguments of make-model
  const char* training;  // arguments of finetune
};

class MemoryPlanProcessTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (kSanitized) GTEST_SKIP() << "sanitizers take memory of their own";
    dir_ = absl::StrCat(::testing::TempDir(), "/memory_plan_", GetParam().name);
    Env& env = *Env::Posix();
    if (env.Exists(dir_)) {
      ASSERT_TRUE(env.Remove(dir_).ok());
    }
    ASSERT_TRUE(env.CreateDirs(dir_).ok());
    std::string text;
    for (int i = 0; i < 400; ++i) {
      absl::StrAppend(&text, "Note ", i, ": the ", i * 7919 % 1000, " boxes of shelf ", i % 17,
                      " were counted twice and the difference was ", i * 31 % 97, ".\n");
      if (i % 10 == 9) text += "\n";
    }
    ASSERT_TRUE(env.WriteFileAtomic(JoinPath(dir_, "notes.txt"), text).ok());
  }
  void TearDown() override {
    if (!dir_.empty()) Env::Posix()->Remove(dir_).IgnoreError();
  }
  std::string Path(absl::string_view name) const { return JoinPath(dir_, name); }

  std::string dir_;
};

TEST_P(MemoryPlanProcessTest, TheEstimateIsWithinATenthOfThePeak) {
  const ProcessResult made = RunFedge(
      absl::StrCat("make-model ", GetParam().model, " --out ", Path("model.gguf")), Path("errors"));
  ASSERT_EQ(made.status, 0) << Env::Posix()->ReadFile(Path("errors")).value_or("");
  const ProcessResult trained =
      RunFedge(absl::StrCat("finetune --model ", Path("model.gguf"), " --data ", Path("notes.txt"),
                            " --out ", Path("out"), " --steps 2 --threads 2 --format json ",
                            GetParam().training),
               Path("errors"));
  const std::string errors = Env::Posix()->ReadFile(Path("errors")).value_or("");
  ASSERT_EQ(trained.status, 0) << errors;
  EXPECT_THAT(errors, HasSubstr("memory: "));
  const nlohmann::json summary = nlohmann::json::parse(trained.out, nullptr, false);
  const double estimate = summary["estimated_memory_bytes"].get<double>();
  const double peak = summary["peak_memory_bytes"].get<double>();
  std::printf("%-16s estimate %.0f MB, peak %.0f MB\n", GetParam().name, estimate / 1e6,
              peak / 1e6);
  EXPECT_NEAR(estimate, peak, 0.1 * peak);
}

INSTANTIATE_TEST_SUITE_P(
    Models, MemoryPlanProcessTest,
    ::testing::Values(
        Case{"Llama",
             "--shape tiny --family llama --hidden 512 --layers 8 --heads 8 --kv-heads 4 --ffn "
             "1536 --vocab 32000 --context 512 --type Q4_0",
             "--batch 4 --length 256"},
        Case{"LlamaLimited",
             "--shape tiny --family llama --hidden 512 --layers 8 --heads 8 --kv-heads 4 --ffn "
             "1536 --vocab 32000 --context 512 --type Q8_0 --untied",
             "--batch 4 --length 256 --memory-limit 130MB"},
        Case{"QwenVocabulary",
             "--shape tiny --family qwen2 --hidden 384 --layers 4 --heads 6 --kv-heads 2 --ffn "
             "1024 --vocab 100000 --context 512 --type Q8_0",
             "--batch 2 --length 256 --rank 64 --optimizer-bits 8"},
        Case{"Gemma",
             "--shape tiny --family gemma3 --hidden 512 --layers 6 --heads 4 --kv-heads 1 "
             "--head-dim 128 --ffn 2048 --vocab 40000 --context 512 --type Q4_0",
             "--batch 2 --length 512 --memory-limit 300MB"}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace fedge
