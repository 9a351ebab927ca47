#include "client/adapter_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "client/hook_command.h"
#include "common/base/logging.h"
#include "common/formats/adapter_files.h"
#include "tests/server/temporary_dir.h"
#include "tests/testing/fault_env.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;

class AdapterFolderTest : public ::testing::Test {
 protected:
  AdapterFolderTest() {
    SetLogLevel(LogLevel::kOff);
    base_ = BaseModel::Load(testing::WriteTinyModel(dir_.path(), {}), *Env::Posix()).value();
    LoraTargets targets;
    targets.rank = 2;
    adapter_ = LoraAdapter(base_->MakeLoraSpec(targets).value());
  }

  LoraAdapter Adapter(uint64_t seed) {
    adapter_.InitializeForTraining(seed);
    return adapter_;
  }
  AdapterFolder Open(Env* env = Env::Posix()) {
    return AdapterFolder(dir_.File("adapters"), base_, "tiny.gguf", env, [this] { ++changes_; });
  }
  // Of the adapter at the stable path, in both forms.
  bool Holds(const std::string& link, const LoraAdapter& adapter) {
    AdapterInfo info;
    info.num_heads = base_->config().head_count;
    info.num_kv_heads = base_->config().head_count_kv;
    for (const char* const form : {"adapter.gguf", "peft"}) {
      const auto read =
          ReadAdapter(JoinPath(dir_.File("adapters/" + link), form), info, *Env::Posix());
      if (!read.ok() || read->adapter.values() != adapter.values()) return false;
    }
    return true;
  }
  static LocalLosses Losses(uint64_t version, double global, double personal, uint64_t sample = 1) {
    return {version, global, personal, 100, sample};
  }
  std::vector<std::string> Folders() {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(dir_.File("adapters"))) {
      if (!entry.is_symlink() && entry.is_directory()) names.push_back(entry.path().filename());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  testing::TemporaryDir dir_;
  std::shared_ptr<const BaseModel> base_;
  LoraAdapter adapter_;
  int changes_ = 0;
};

TEST_F(AdapterFolderTest, KeepsEachVersionAtTheSamePaths) {
  AdapterFolder folder = Open();
  ASSERT_TRUE(folder.PutGlobal(Adapter(1), "run", 0).ok());
  EXPECT_TRUE(Holds("current", Adapter(1)));
  EXPECT_TRUE(Holds("best", Adapter(1)));
  ASSERT_TRUE(folder.PutGlobal(Adapter(2), "run", 1).ok());
  EXPECT_TRUE(Holds("current", Adapter(2)));
  EXPECT_TRUE(Holds("best", Adapter(2)));
  EXPECT_THAT(Folders(), ElementsAre("v1"));
  EXPECT_EQ(changes_, 2);
  // The same version again: nothing to do, also for the next process.
  ASSERT_TRUE(Open().PutGlobal(Adapter(2), "run", 1).ok());
  EXPECT_EQ(changes_, 2);
}

TEST_F(AdapterFolderTest, BestIsTheBetterOneOnTheRecordsHere) {
  AdapterFolder folder = Open();
  ASSERT_TRUE(folder.PutGlobal(Adapter(1), "run", 0).ok());
  ASSERT_TRUE(folder.PutTrained(Adapter(11), Losses(0, 3.0, 2.5)).ok());
  EXPECT_EQ(folder.choice().best(), "personal");
  EXPECT_TRUE(Holds("best", Adapter(11)));
  EXPECT_TRUE(Holds("current", Adapter(1)));
  // A new global one is current at once, best when it has been measured.
  ASSERT_TRUE(folder.PutGlobal(Adapter(2), "run", 1).ok());
  EXPECT_TRUE(Holds("current", Adapter(2)));
  EXPECT_TRUE(Holds("best", Adapter(11)));
  EXPECT_THAT(Folders(), ElementsAre("p0", "v1"));
  // An earlier personal one that is better than both stays, over a restart too.
  AdapterFolder later = Open();
  ASSERT_TRUE(later.PutTrained(Adapter(12), Losses(1, 2.7, 2.6)).ok());
  EXPECT_TRUE(Holds("best", Adapter(11)));
  EXPECT_EQ(later.choice().personal_loss(), 2.5);
  // On other records the old loss says nothing.
  ASSERT_TRUE(later.PutTrained(Adapter(12), Losses(1, 2.7, 2.6, 2)).ok());
  EXPECT_TRUE(Holds("best", Adapter(12)));
  // And the global one wins when it is better.
  ASSERT_TRUE(later.PutTrained(Adapter(13), Losses(1, 2.0, 2.2, 2)).ok());
  EXPECT_TRUE(Holds("best", Adapter(2)));
  EXPECT_EQ(later.choice().best(), "global");
  EXPECT_THAT(Folders(), ElementsAre("v1"));
}

TEST_F(AdapterFolderTest, AnotherRunBeginsAnew) {
  AdapterFolder folder = Open();
  ASSERT_TRUE(folder.PutGlobal(Adapter(1), "run", 5).ok());
  ASSERT_TRUE(folder.PutTrained(Adapter(11), Losses(5, 3.0, 2.5)).ok());
  ASSERT_TRUE(folder.PutGlobal(Adapter(2), "another", 5).ok());
  EXPECT_TRUE(Holds("current", Adapter(2)));
  EXPECT_TRUE(Holds("best", Adapter(2)));
}

// Whatever operation fails, a reader finds a whole adapter at each path, and the next try succeeds.
TEST_F(AdapterFolderTest, AReaderNeverFindsAPart) {
  for (int64_t n = 1;; ++n) {
    Env::Posix()->Remove(dir_.File("adapters")).IgnoreError();
    testing::FaultEnv env;
    AdapterFolder folder = Open(&env);
    ASSERT_TRUE(folder.PutGlobal(Adapter(1), "run", 0).ok());
    env.FailFrom(n, absl::StatusCode::kResourceExhausted, testing::FaultEnv::Span::kOnce,
                 testing::FaultEnv::Scope::kWrites);
    const absl::Status status = folder.PutGlobal(Adapter(2), "run", 1);
    const bool triggered = env.triggered();
    EXPECT_TRUE(Holds("current", Adapter(1)) || Holds("current", Adapter(2))) << n;
    EXPECT_TRUE(Holds("best", Adapter(1)) || Holds("best", Adapter(2))) << n;
    env.Heal();
    ASSERT_TRUE(folder.PutGlobal(Adapter(3), "run", 2).ok());
    EXPECT_TRUE(Holds("current", Adapter(3))) << n;
    if (!triggered) break;
    ASSERT_LT(n, 1000);
  }
}

TEST(HookCommandTest, RunsWithWhatIsNewAndOneAtATime) {
  SetLogLevel(LogLevel::kOff);
  const testing::TemporaryDir dir;
  HookCommand hook(
      "echo $FEDGE_ADAPTER $FEDGE_BEST_ADAPTER $FEDGE_ADAPTER_VERSION $FEDGE_BEST >> " +
      dir.File("out"));
  v1::AdapterChoice choice;
  choice.set_version(7);
  choice.set_best("global");
  hook.Run("/a", choice);
  choice.set_version(8);
  hook.Run("/a", choice);
  choice.set_version(9);
  hook.Run("/a", choice);
  hook.Wait();
  hook.Look();
  hook.Wait();
  const std::string out = Env::Posix()->ReadFile(dir.File("out")).value_or("");
  EXPECT_THAT(out, ::testing::StartsWith("/a/current /a/best 7 global\n"));
  EXPECT_THAT(out, ::testing::EndsWith("/a/current /a/best 9 global\n"));
}

}  // namespace
}  // namespace fedge
