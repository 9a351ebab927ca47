// An Env over the real one whose Nth operation (and, if wanted, all after it) fails, and a folder
// that goes away with the test.
#ifndef FEDGE_TESTS_SERVER_FAILING_ENV_H_
#define FEDGE_TESTS_SERVER_FAILING_ENV_H_

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "common/base/env.h"
#include "common/base/status.h"

namespace fedge::testing {

class FailingEnv : public Env {
 public:
  // Operations are counted from 1; 0: none fails.
  void FailAt(int operation, bool for_ever) {
    done_ = 0;
    fail_at_ = operation;
    for_ever_ = for_ever;
  }
  int operations() const { return done_; }

  absl::Status Next(absl::string_view what) {
    const int number = ++done_;
    if (fail_at_ > 0 && (number == fail_at_ || (for_ever_ && number > fail_at_))) {
      return absl::ResourceExhaustedError(absl::StrCat(what, ": injected: no space left"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<MappedFile>> Map(absl::string_view path) override {
    RETURN_IF_ERROR(Next(path));
    return Env::Posix()->Map(path);
  }
  absl::StatusOr<std::unique_ptr<WritableFile>> OpenForWrite(absl::string_view path,
                                                             uint64_t keep_bytes) override {
    RETURN_IF_ERROR(Next(path));
    ASSIGN_OR_RETURN(std::unique_ptr<WritableFile> file,
                     Env::Posix()->OpenForWrite(path, keep_bytes));
    return std::make_unique<File>(std::move(file), *this);
  }
  absl::Status Rename(absl::string_view from, absl::string_view to) override {
    RETURN_IF_ERROR(Next(from));
    return Env::Posix()->Rename(from, to);
  }
  absl::Status SyncDir(absl::string_view dir) override {
    RETURN_IF_ERROR(Next(dir));
    return Env::Posix()->SyncDir(dir);
  }
  absl::Status CreateDirs(absl::string_view dir) override {
    RETURN_IF_ERROR(Next(dir));
    return Env::Posix()->CreateDirs(dir);
  }
  absl::Status Remove(absl::string_view path) override {
    RETURN_IF_ERROR(Next(path));
    return Env::Posix()->Remove(path);
  }
  absl::StatusOr<uint64_t> FileSize(absl::string_view path) override {
    return Env::Posix()->FileSize(path);
  }
  absl::StatusOr<std::vector<std::string>> ListDir(absl::string_view dir) override {
    return Env::Posix()->ListDir(dir);
  }

 private:
  class File : public WritableFile {
   public:
    File(std::unique_ptr<WritableFile> file, FailingEnv& env) : file_(std::move(file)), env_(env) {}
    absl::Status Append(absl::string_view data) override {
      const absl::Status status = env_.Next("append");
      if (status.ok()) return file_->Append(data);
      file_->Append(data.substr(0, data.size() / 2)).IgnoreError();  // a torn write
      return status;
    }
    absl::Status Sync() override {
      RETURN_IF_ERROR(env_.Next("sync"));
      return file_->Sync();
    }
    absl::Status Close() override {
      RETURN_IF_ERROR(env_.Next("close"));
      return file_->Close();
    }

   private:
    std::unique_ptr<WritableFile> file_;
    FailingEnv& env_;
  };

  std::atomic<int> done_{0};
  std::atomic<int> fail_at_{0};
  std::atomic<bool> for_ever_{false};
};

class TemporaryDir {
 public:
  TemporaryDir() {
    const char* const root = std::getenv("TMPDIR");
    path_ = absl::StrCat(root != nullptr ? root : "/tmp", "/fedge-test-XXXXXX");
    FEDGE_CHECK(mkdtemp(path_.data()) != nullptr, path_);
  }
  ~TemporaryDir() { Env::Posix()->Remove(path_).IgnoreError(); }
  TemporaryDir(const TemporaryDir&) = delete;
  TemporaryDir& operator=(const TemporaryDir&) = delete;

  const std::string& path() const { return path_; }
  std::string File(absl::string_view name) const { return JoinPath(path_, name); }

 private:
  std::string path_;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_SERVER_FAILING_ENV_H_
