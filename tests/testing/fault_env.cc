#include "tests/testing/fault_env.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge::testing {

class FaultEnv::File : public WritableFile {
 public:
  File(FaultEnv* env, std::string path, std::unique_ptr<WritableFile> base)
      : env_(env), path_(std::move(path)), base_(std::move(base)) {}

  absl::Status Append(absl::string_view data) override {
    const absl::Status fault = env_->Step("Append", path_, true);
    if (fault.ok()) return base_->Append(data);
    base_->Append(data.substr(0, data.size() / 2)).IgnoreError();
    return fault;
  }
  absl::Status Sync() override {
    RETURN_IF_ERROR(env_->Step("Sync", path_, true));
    return base_->Sync();
  }
  absl::Status Close() override {
    const absl::Status fault = env_->Step("Close", path_, true);
    const absl::Status closed = base_->Close();
    return fault.ok() ? closed : fault;
  }

 private:
  FaultEnv* const env_;
  const std::string path_;
  const std::unique_ptr<WritableFile> base_;
};

void FaultEnv::FailFrom(int64_t nth, absl::StatusCode code, Span span, Scope scope) {
  FEDGE_CHECK(nth >= 1 && code != absl::StatusCode::kOk);
  absl::MutexLock lock(&mutex_);
  fail_from_ = nth;
  code_ = code;
  span_ = span;
  scope_ = scope;
  triggered_ = false;
  operations_ = 0;
}

void FaultEnv::Heal() {
  absl::MutexLock lock(&mutex_);
  fail_from_ = 0;
}

bool FaultEnv::triggered() const {
  absl::MutexLock lock(&mutex_);
  return triggered_;
}

int64_t FaultEnv::operations() const {
  absl::MutexLock lock(&mutex_);
  return operations_;
}

std::vector<std::string> FaultEnv::log() const {
  absl::MutexLock lock(&mutex_);
  return log_;
}

absl::Status FaultEnv::Step(absl::string_view operation, absl::string_view path, bool writes) {
  absl::MutexLock lock(&mutex_);
  log_.push_back(absl::StrCat(operation, " ", BaseName(path)));
  if (scope_ == Scope::kWrites && !writes) return absl::OkStatus();
  ++operations_;
  const bool fails = fail_from_ > 0 &&
                     (span_ == Span::kOnce ? operations_ == fail_from_ : operations_ >= fail_from_);
  if (!fails) return absl::OkStatus();
  triggered_ = true;
  return absl::Status(code_, absl::StrCat(path, ": injected failure of ", operation));
}

absl::StatusOr<std::unique_ptr<MappedFile>> FaultEnv::Map(absl::string_view path) {
  RETURN_IF_ERROR(Step("Map", path, false));
  return base_->Map(path);
}

absl::StatusOr<std::unique_ptr<WritableFile>> FaultEnv::OpenForWrite(absl::string_view path,
                                                                     uint64_t keep_bytes) {
  RETURN_IF_ERROR(Step("OpenForWrite", path, true));
  ASSIGN_OR_RETURN(std::unique_ptr<WritableFile> file, base_->OpenForWrite(path, keep_bytes));
  return std::make_unique<File>(this, std::string(path), std::move(file));
}

absl::Status FaultEnv::Rename(absl::string_view from, absl::string_view to) {
  RETURN_IF_ERROR(Step("Rename", to, true));
  return base_->Rename(from, to);
}

absl::Status FaultEnv::SyncDir(absl::string_view dir) {
  RETURN_IF_ERROR(Step("SyncDir", dir, true));
  return base_->SyncDir(dir);
}

absl::Status FaultEnv::CreateDirs(absl::string_view dir) {
  RETURN_IF_ERROR(Step("CreateDirs", dir, true));
  return base_->CreateDirs(dir);
}

absl::Status FaultEnv::Remove(absl::string_view path) {
  RETURN_IF_ERROR(Step("Remove", path, true));
  return base_->Remove(path);
}

absl::StatusOr<uint64_t> FaultEnv::FileSize(absl::string_view path) {
  RETURN_IF_ERROR(Step("FileSize", path, false));
  return base_->FileSize(path);
}

absl::StatusOr<std::vector<std::string>> FaultEnv::ListDir(absl::string_view dir) {
  RETURN_IF_ERROR(Step("ListDir", dir, false));
  return base_->ListDir(dir);
}

}  // namespace fedge::testing
