// Runs `fedge` in-process in a folder of its own with a tiny model in it.
#ifndef FEDGE_TESTS_TOOLS_FEDGE_FEDGE_FIXTURE_H_
#define FEDGE_TESTS_TOOLS_FEDGE_FEDGE_FIXTURE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/rng.h"
#include "common/formats/adapter_files.h"
#include "common/model/base_model.h"
#include "tests/testing/tiny_model.h"
#include "tools/fedge/cli.h"
#include "tools/fedge/lora_option.h"

namespace fedge::testing {

struct FedgeRun {
  int code = 0;
  std::string out;
  std::string err;

  nlohmann::json Json() const { return nlohmann::json::parse(out, nullptr, false); }
  // Exactly one line of error, with the program's mark in front.
  bool IsOneErrorLine() const {
    return absl::StartsWith(err, "fedge: error: ") && err.find('\n') == err.size() - 1;
  }
};

class FedgeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    dir_ =
        absl::StrCat(::testing::TempDir(), "/fedge_", test->test_suite_name(), "_", test->name());
    if (env_.Exists(dir_)) {
      ASSERT_TRUE(env_.Remove(dir_).ok());
    }
    model_ = WriteTinyModel(dir_, {});
  }
  FedgeRun Run(const std::vector<std::string>& arguments) {
    std::ostringstream out;
    std::ostringstream err;
    ManualClock clock;
    CommandContext::Outside outside;
    outside.env = &env_;
    outside.clock = &clock;
    outside.out = &out;
    outside.err = &err;
    outside.interrupted = [this] { return interrupted_; };
    FedgeRun run;
    run.code = RunFedge(arguments, outside);
    run.out = out.str();
    run.err = err.str();
    return run;
  }
  std::string Path(absl::string_view name) const { return JoinPath(dir_, name); }
  std::string Write(absl::string_view name, absl::string_view bytes) {
    EXPECT_TRUE(env_.WriteFileAtomic(Path(name), bytes).ok());
    return Path(name);
  }
  std::string Read(absl::string_view path) { return env_.ReadFile(path).value_or("absent"); }

  // An adapter of the tiny model with values that matter, as GGUF.
  std::string WriteAdapter(absl::string_view name) {
    const auto model = BaseModel::Load(model_, env_).value();
    LoraTargets targets;
    targets.rank = 4;
    LoraAdapter adapter(model->MakeLoraSpec(targets).value());
    Rng rng(6);
    for (float& value : adapter.values()) value = static_cast<float>(0.2 * rng.Normal());
    EXPECT_TRUE(WriteAdapterGguf(adapter, AdapterInfoOf(*model, true), Path(name), env_).ok());
    return Path(name);
  }

  Env& env_ = *Env::Posix();
  std::string dir_;
  std::string model_;
  bool interrupted_ = false;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TOOLS_FEDGE_FEDGE_FIXTURE_H_
