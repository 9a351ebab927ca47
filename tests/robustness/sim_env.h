// Files in memory. A power cut takes what was not synced: all of it, its end, or only its content.
#ifndef FEDGE_TESTS_ROBUSTNESS_SIM_ENV_H_
#define FEDGE_TESTS_ROBUSTNESS_SIM_ENV_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/base/env.h"
#include "common/base/status.h"
#include "tests/robustness/sim_adversary.h"

namespace fedge::robustness {

// Only what the upload buffer needs: it never syncs, renames or maps writable files. Not
// thread-safe.
class SimEnv : public Env {
 public:
  explicit SimEnv(Adversary* adversary) : adversary_(*adversary) {}

  void PowerCut() {
    for (auto file = files_.begin(); file != files_.end();) {
      std::string& bytes = file->second;
      Rng& rng = adversary_.rng();
      const uint64_t kind = rng.Below(4);
      const size_t kept = static_cast<size_t>(rng.Below(bytes.size() + 1));
      if (kind == 0) {
        file = files_.erase(file);
        continue;
      }
      if (kind == 1) bytes.resize(kept);
      if (kind == 2) std::fill(bytes.begin() + static_cast<int64_t>(kept), bytes.end(), '\0');
      ++file;
    }
  }

  absl::StatusOr<std::unique_ptr<MappedFile>> Map(absl::string_view path) override {
    const auto file = files_.find(std::string(path));
    if (file == files_.end()) return absl::NotFoundError(path);
    return std::make_unique<Mapped>(file->second);
  }
  absl::StatusOr<std::unique_ptr<WritableFile>> OpenForWrite(absl::string_view path,
                                                             uint64_t keep_bytes) override {
    RETURN_IF_ERROR(adversary_.Write(
        [&] { files_[std::string(path)].resize(static_cast<size_t>(keep_bytes)); }));
    return std::make_unique<File>(this, std::string(path));
  }
  absl::Status Rename(absl::string_view, absl::string_view) override {
    return absl::UnimplementedError("rename");
  }
  absl::Status SyncDir(absl::string_view) override { return absl::OkStatus(); }
  absl::Status CreateDirs(absl::string_view) override { return absl::OkStatus(); }
  absl::Status Remove(absl::string_view path) override {
    return adversary_.Write([&] { files_.erase(std::string(path)); });
  }
  absl::StatusOr<uint64_t> FileSize(absl::string_view path) override {
    const auto file = files_.find(std::string(path));
    if (file == files_.end()) return absl::NotFoundError(path);
    return file->second.size();
  }
  absl::StatusOr<std::vector<std::string>> ListDir(absl::string_view dir) override {
    std::vector<std::string> names;
    for (const auto& [path, bytes] : files_) {
      if (DirName(path) == dir) names.push_back(std::string(BaseName(path)));
    }
    return names;
  }

 private:
  class Mapped : public MappedFile {
   public:
    explicit Mapped(std::string bytes) : copy_(std::move(bytes)) { bytes_ = copy_; }

   private:
    const std::string copy_;
  };
  class File : public WritableFile {
   public:
    File(SimEnv* env, std::string path) : env_(*env), path_(std::move(path)) {}
    absl::Status Append(absl::string_view data) override {
      return env_.adversary_.Write([&] { env_.files_[path_].append(data.data(), data.size()); });
    }
    absl::Status Sync() override { return absl::OkStatus(); }
    absl::Status Close() override { return absl::OkStatus(); }

   private:
    SimEnv& env_;
    const std::string path_;
  };

  Adversary& adversary_;
  std::map<std::string, std::string> files_;
};

}  // namespace fedge::robustness

#endif  // FEDGE_TESTS_ROBUSTNESS_SIM_ENV_H_
