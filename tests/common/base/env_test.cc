#include "common/base/env.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/testing/fault_env.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using testing::FaultEnv;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A new folder for each test, removed at its end.
class EnvTest : public ::testing::Test {
 protected:
  EnvTest() {
    const auto* const info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = JoinPath(::testing::TempDir(), absl::StrCat("env-", getpid(), "-", info->name()));
    EXPECT_TRUE(env_->CreateDirs(folder_).ok());
  }
  ~EnvTest() override { env_->Remove(folder_).IgnoreError(); }

  std::string Path(absl::string_view name) const { return JoinPath(folder_, name); }
  std::string Content(absl::string_view path) const {
    auto bytes = env_->ReadFile(path);
    EXPECT_TRUE(bytes.ok()) << bytes.status();
    return bytes.ok() ? *std::move(bytes) : std::string();
  }
  std::vector<std::string> Listing(absl::string_view dir) const {
    auto names = env_->ListDir(dir);
    EXPECT_TRUE(names.ok()) << names.status();
    return names.ok() ? *std::move(names) : std::vector<std::string>();
  }

  Env* const env_ = Env::Posix();
  std::string folder_;
};

// A small file system of its own, where the process may mount one.
class MountedTmpfs {
 public:
  MountedTmpfs(std::string path, const char* options) : path_(std::move(path)) {
    mounted_ = mount("tmpfs", path_.c_str(), "tmpfs", 0, options) == 0;
  }
  ~MountedTmpfs() {
    if (mounted_) umount2(path_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }
  bool MakeReadOnly() {
    return mount("tmpfs", path_.c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, nullptr) == 0;
  }

 private:
  std::string path_;
  bool mounted_;
};

TEST_F(EnvTest, ReadsAPipeToItsEnd) {
  const std::string path = Path("pipe");
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const auto read = [&](size_t size, uint64_t limit) {
    std::thread writer([&] {
      std::ofstream out(path);
      out << std::string(size, 'x');
    });
    auto bytes = env_->ReadFile(path, limit);
    writer.join();
    return bytes;
  };
  EXPECT_EQ(read(200'000, 200'000).value(), std::string(200'000, 'x'));
  EXPECT_THAT(std::string(read(2000, 1000).status().message()),
              HasSubstr("more than the limit of 1000"));
}

TEST_F(EnvTest, WritesAppendsAndTruncates) {
  const std::string path = Path("file");
  {
    auto file = env_->OpenForWrite(path);
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE((*file)->Append("hello ").ok());
    ASSERT_TRUE((*file)->Append("").ok());
    ASSERT_TRUE((*file)->Append("world").ok());
    ASSERT_TRUE((*file)->Sync().ok());
    ASSERT_TRUE((*file)->Close().ok());
  }
  EXPECT_EQ(Content(path), "hello world");
  EXPECT_EQ(*env_->FileSize(path), 11u);
  {
    auto file = env_->OpenForWrite(path, 6);
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE((*file)->Append("disk").ok());
  }  // the destructor closes
  EXPECT_EQ(Content(path), "hello disk");
  ASSERT_TRUE(env_->OpenForWrite(path).ok());
  EXPECT_EQ(Content(path), "");
}

TEST_F(EnvTest, KeepsAMappingAfterTheFileIsGone) {
  const std::string path = Path("file");
  const std::string data(10000, 'x');
  ASSERT_TRUE(env_->WriteFileAtomic(path, data).ok());
  auto mapped = env_->Map(path);
  ASSERT_TRUE(mapped.ok());
  ASSERT_TRUE(env_->Remove(path).ok());
  EXPECT_EQ((*mapped)->bytes(), data);
}

TEST_F(EnvTest, ReadsReleasedPagesAgain) {
  std::string bytes(100'000, 'a');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 31 / 7);
  ASSERT_TRUE(env_->WriteFileAtomic(Path("f"), bytes).ok());
  const auto file = env_->Map(Path("f"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->bytes(), bytes);
  (*file)->Release((*file)->bytes().substr(100, 90'000));
  (*file)->Release((*file)->bytes().substr(50, 10));  // less than a page
  (*file)->Release("");
  EXPECT_EQ((*file)->bytes(), bytes);
}

TEST_F(EnvTest, ListsFoldersSorted) {
  ASSERT_TRUE(env_->CreateDirs(Path("b/c")).ok());
  ASSERT_TRUE(env_->CreateDirs(Path("b/c")).ok());  // again is fine
  ASSERT_TRUE(env_->WriteFileAtomic(Path("z"), "").ok());
  ASSERT_TRUE(env_->WriteFileAtomic(Path("a"), "").ok());
  EXPECT_THAT(Listing(folder_), ElementsAre("a", "b/", "z"));
  EXPECT_TRUE(env_->IsDirectory(Path("b")));
  EXPECT_FALSE(env_->IsDirectory(Path("a")));
  EXPECT_TRUE(env_->Exists(Path("a")));
  EXPECT_FALSE(env_->Exists(Path("nothing")));
  ASSERT_TRUE(env_->Rename(Path("a"), Path("b/c/a")).ok());
  ASSERT_TRUE(env_->SyncDir(Path("b/c")).ok());
  EXPECT_THAT(Listing(Path("b/c")), ElementsAre("a"));
  ASSERT_TRUE(env_->Remove(Path("b")).ok());
  EXPECT_THAT(Listing(folder_), ElementsAre("z"));
}

TEST_F(EnvTest, NamesPathAndReasonOfErrors) {
  const std::string nothing = Path("nothing");
  ASSERT_TRUE(env_->WriteFileAtomic(Path("file"), "abc").ok());
  EXPECT_EQ(env_->Map(nothing).status(),
            absl::NotFoundError(nothing + ": cannot open: No such file or directory"));
  EXPECT_EQ(env_->FileSize(nothing).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(env_->ListDir(nothing).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(env_->Remove(nothing).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(env_->SyncDir(nothing).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(env_->Rename(nothing, Path("x")).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(env_->Map(folder_).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(env_->OpenForWrite(folder_).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(env_->CreateDirs(Path("file/below")).ok());
  const absl::Status too_large = env_->ReadFile(Path("file"), 2).status();
  EXPECT_EQ(too_large.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(too_large.message()), HasSubstr("3 bytes, more than the limit of 2"));
}

TEST_F(EnvTest, ReplacesAFileAtomically) {
  const std::string path = Path("state");
  ASSERT_TRUE(env_->WriteFileAtomic(path, "old").ok());
  ASSERT_TRUE(env_->WriteFileAtomic(path, "new and longer").ok());
  EXPECT_EQ(Content(path), "new and longer");
  EXPECT_THAT(Listing(folder_), ElementsAre("state"));
}

TEST_F(EnvTest, WritesNothingIntoAFolderThatIsNotThere) {
  const absl::Status status = env_->WriteFileAtomic(Path("no/such/file"), "data");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Listing(folder_), IsEmpty());
}

// Every operation of WriteFileAtomic fails once: the old file or the new one is there, whole, and
// nothing beside it.
TEST_F(EnvTest, LeavesOldOrNewFileWhereverTheWriteFails) {
  const std::string path = Path("state");
  int64_t n = 1;
  for (;; ++n) {
    ASSERT_TRUE(env_->WriteFileAtomic(path, "old").ok());
    FaultEnv faulty;
    faulty.FailFrom(n, absl::StatusCode::kResourceExhausted, FaultEnv::Span::kOnce);
    const absl::Status status = faulty.WriteFileAtomic(path, "brand new");
    EXPECT_THAT(Listing(folder_), ElementsAre("state"));
    if (!faulty.triggered()) {
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_EQ(Content(path), "brand new");
      break;
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    const bool only_folder_sync_failed = n == 6;
    EXPECT_EQ(Content(path), only_folder_sync_failed ? "brand new" : "old") << n;
  }
  EXPECT_EQ(n, 7);  // open, append, sync, close, rename, sync of the folder, and none
}

// From the Nth operation on all fail, the clean-up too: the old file is whole all the same.
TEST_F(EnvTest, KeepsTheOldFileWhenTheDiskStaysBroken) {
  const std::string path = Path("state");
  for (int64_t n = 1; n <= 5; ++n) {
    ASSERT_TRUE(env_->WriteFileAtomic(path, "old").ok());
    FaultEnv faulty;
    faulty.FailFrom(n, absl::StatusCode::kInternal, FaultEnv::Span::kForEver);
    EXPECT_EQ(faulty.WriteFileAtomic(path, "brand new").code(), absl::StatusCode::kInternal);
    EXPECT_EQ(Content(path), "old") << n;
    faulty.Heal();
    EXPECT_TRUE(faulty.WriteFileAtomic(path, "healed").ok());
    EXPECT_EQ(Content(path), "healed");
  }
}

TEST_F(EnvTest, ReportsAFullDiskAndKeepsTheOldFile) {
  MountedTmpfs disk(folder_, "size=64k");
  if (!disk.mounted()) GTEST_SKIP() << "needs the right to mount a tmpfs";
  const std::string path = Path("state");
  ASSERT_TRUE(env_->WriteFileAtomic(path, "old").ok());
  const absl::Status status = env_->WriteFileAtomic(path, std::string(1 << 20, 'x'));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("No space left on device"));
  EXPECT_EQ(Content(path), "old");
  EXPECT_THAT(Listing(folder_), ElementsAre("state"));
  EXPECT_TRUE(env_->WriteFileAtomic(path, std::string(20000, 'y')).ok());  // the room came back
}

TEST_F(EnvTest, ReportsAReadOnlyFolder) {
  MountedTmpfs disk(folder_, "size=64k");
  ASSERT_TRUE(env_->WriteFileAtomic(Path("state"), "old").ok());
  if (disk.mounted()) {
    ASSERT_TRUE(disk.MakeReadOnly());
  } else if (geteuid() == 0) {
    GTEST_SKIP() << "root may write everywhere and cannot mount a tmpfs here";
  } else {
    ASSERT_EQ(chmod(folder_.c_str(), 0555), 0);
  }
  EXPECT_EQ(env_->WriteFileAtomic(Path("state"), "new").code(),
            absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(env_->CreateDirs(Path("sub")).code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(env_->Remove(Path("state")).code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(Content(Path("state")), "old");
  chmod(folder_.c_str(), 0755);
}

TEST(PathTest, JoinsAndSplits) {
  EXPECT_EQ(JoinPath("a", "b"), "a/b");
  EXPECT_EQ(JoinPath("a/", "b"), "a/b");
  EXPECT_EQ(JoinPath("/", "b"), "/b");
  EXPECT_EQ(JoinPath("", "b"), "b");
  EXPECT_EQ(DirName("a/b/c"), "a/b");
  EXPECT_EQ(DirName("/c"), "/");
  EXPECT_EQ(DirName("c"), ".");
  EXPECT_EQ(BaseName("a/b/c"), "c");
  EXPECT_EQ(BaseName("c"), "c");
  EXPECT_EQ(BaseName("a/"), "");
}

// The fault injector itself.
TEST_F(EnvTest, FaultEnvCountsAndTearsAppends) {
  FaultEnv faulty;
  faulty.FailFrom(1, absl::StatusCode::kResourceExhausted, FaultEnv::Span::kOnce,
                  FaultEnv::Scope::kWrites);
  EXPECT_FALSE(faulty.Exists(Path("file")));  // a read does not count
  EXPECT_FALSE(faulty.OpenForWrite(Path("file")).ok());
  EXPECT_TRUE(faulty.triggered());
  auto file = faulty.OpenForWrite(Path("file"));
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(faulty.operations(), 2);
  faulty.FailFrom(2, absl::StatusCode::kResourceExhausted, FaultEnv::Span::kForEver);
  EXPECT_FALSE(faulty.triggered());
  EXPECT_TRUE((*file)->Append("abcd").ok());
  EXPECT_EQ((*file)->Append("efgh").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ((*file)->Sync().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ((*file)->Close().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Content(Path("file")), "abcdef");
  EXPECT_THAT(faulty.log(), ElementsAre("FileSize file", "OpenForWrite file", "OpenForWrite file",
                                        "Append file", "Append file", "Sync file", "Close file"));
}

}  // namespace
}  // namespace fedge
