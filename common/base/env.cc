#include "common/base/env.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "common/base/failpoint.h"
#include "common/base/status.h"

namespace fedge {
namespace {

absl::StatusCode CodeOf(int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::StatusCode::kNotFound;
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::StatusCode::kPermissionDenied;
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return absl::StatusCode::kResourceExhausted;
    case EEXIST:
      return absl::StatusCode::kAlreadyExists;
    case EISDIR:
    case ENOTEMPTY:
      return absl::StatusCode::kFailedPrecondition;
    default:
      return absl::StatusCode::kInternal;
  }
}

// Whatever the reason (also a full disk): the kernel may have dropped what was written, and a
// second sync would say OK about it.
absl::Status SyncFailed(absl::string_view path, int error) {
  return absl::DataLossError(absl::StrCat(path, ": cannot sync: ", std::strerror(error),
                                          "; what was written may be lost"));
}

absl::Status ErrnoStatus(absl::string_view action, absl::string_view path, int error) {
  return absl::Status(CodeOf(error),
                      absl::StrCat(path, ": cannot ", action, ": ", std::strerror(error)));
}

class PosixMappedFile : public MappedFile {
 public:
  explicit PosixMappedFile(absl::string_view mapped) { bytes_ = mapped; }
  ~PosixMappedFile() override {
    if (!bytes_.empty()) munmap(const_cast<char*>(bytes_.data()), bytes_.size());
  }
  void Release(absl::string_view part) const override {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto begin = (reinterpret_cast<uintptr_t>(part.data()) + page - 1) / page * page;
    const auto end = reinterpret_cast<uintptr_t>(part.data() + part.size()) / page * page;
    // Advice only: a refusal costs memory, nothing else.
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
};

class PosixWritableFile : public WritableFile {
 public:
  PosixWritableFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  ~PosixWritableFile() override {
    if (fd_ >= 0) close(fd_);
  }

  absl::Status Append(absl::string_view data) override {
    while (!data.empty()) {
      const ssize_t written = write(fd_, data.data(), data.size());
      if (written < 0) {
        if (errno == EINTR) continue;
        return ErrnoStatus("write", path_, errno);
      }
      data.remove_prefix(static_cast<size_t>(written));
    }
    return absl::OkStatus();
  }
  absl::Status Sync() override {
    return fdatasync(fd_) == 0 ? absl::OkStatus() : SyncFailed(path_, errno);
  }
  absl::Status Close() override {
    const int fd = fd_;
    fd_ = -1;
    return close(fd) == 0 ? absl::OkStatus() : ErrnoStatus("close", path_, errno);
  }

 private:
  std::string path_;
  int fd_;
};

// Closes a descriptor at the end of a scope.
struct ScopedFd {
  int fd;
  ~ScopedFd() {
    if (fd >= 0) close(fd);
  }
};

class PosixEnv : public Env {
 public:
  absl::StatusOr<std::unique_ptr<MappedFile>> Map(absl::string_view path) override {
    const std::string name(path);
    ScopedFd file{open(name.c_str(), O_RDONLY | O_CLOEXEC)};
    if (file.fd < 0) return ErrnoStatus("open", path, errno);
    struct stat info;
    if (fstat(file.fd, &info) != 0) return ErrnoStatus("stat", path, errno);
    if (S_ISDIR(info.st_mode)) return ErrnoStatus("read", path, EISDIR);
    const size_t size = static_cast<size_t>(info.st_size);
    if (size == 0) return std::make_unique<PosixMappedFile>(absl::string_view());
    void* const address = mmap(nullptr, size, PROT_READ, MAP_SHARED, file.fd, 0);
    if (address == MAP_FAILED) return ErrnoStatus("map", path, errno);
    return std::make_unique<PosixMappedFile>(
        absl::string_view(static_cast<const char*>(address), size));
  }

  absl::StatusOr<std::unique_ptr<WritableFile>> OpenForWrite(absl::string_view path,
                                                             uint64_t keep_bytes) override {
    std::string name(path);
    const int fd = open(name.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return ErrnoStatus("open for writing", path, errno);
    auto file = std::make_unique<PosixWritableFile>(std::move(name), fd);
    if (ftruncate(fd, static_cast<off_t>(keep_bytes)) != 0 || lseek(fd, 0, SEEK_END) < 0) {
      return ErrnoStatus("truncate", path, errno);
    }
    return file;
  }

  absl::Status Rename(absl::string_view from, absl::string_view to) override {
    if (rename(std::string(from).c_str(), std::string(to).c_str()) == 0) return absl::OkStatus();
    return ErrnoStatus(absl::StrCat("rename to ", to), from, errno);
  }

  absl::Status SyncDir(absl::string_view dir) override {
    ScopedFd file{open(std::string(dir).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (file.fd < 0) return ErrnoStatus("open", dir, errno);
    return fsync(file.fd) == 0 ? absl::OkStatus() : SyncFailed(dir, errno);
  }

  absl::Status CreateDirs(absl::string_view dir) override {
    std::error_code error;
    std::filesystem::create_directories(std::string(dir), error);
    return error ? ErrnoStatus("create folder", dir, error.value()) : absl::OkStatus();
  }

  absl::Status Remove(absl::string_view path) override {
    std::error_code error;
    const auto removed = std::filesystem::remove_all(std::string(path), error);
    if (error) return ErrnoStatus("remove", path, error.value());
    return removed == 0 ? ErrnoStatus("remove", path, ENOENT) : absl::OkStatus();
  }

  absl::StatusOr<uint64_t> FileSize(absl::string_view path) override {
    struct stat info;
    if (stat(std::string(path).c_str(), &info) != 0) return ErrnoStatus("stat", path, errno);
    return static_cast<uint64_t>(info.st_size);
  }

  absl::StatusOr<std::vector<std::string>> ListDir(absl::string_view dir) override {
    std::error_code error;
    std::filesystem::directory_iterator it(std::string(dir), error);
    if (error) return ErrnoStatus("list", dir, error.value());
    std::vector<std::string> names;
    for (; it != std::filesystem::directory_iterator(); it.increment(error)) {
      if (error) return ErrnoStatus("list", dir, error.value());
      std::error_code ignored;
      names.push_back(it->path().filename().string() + (it->is_directory(ignored) ? "/" : ""));
    }
    std::sort(names.begin(), names.end());
    return names;
  }
};

absl::Status TooLarge(absl::string_view path, absl::string_view size, uint64_t max_bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat(path, ": ", size, "more than the limit of ", max_bytes));
}

// What has no size and cannot be mapped: `--config <(command)`.
bool IsStream(absl::string_view path) {
  struct stat info;
  return stat(std::string(path).c_str(), &info) == 0 &&
         (S_ISFIFO(info.st_mode) || S_ISCHR(info.st_mode));
}

absl::StatusOr<std::string> ReadStream(absl::string_view path, uint64_t max_bytes) {
  const ScopedFd file{open(std::string(path).c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) return ErrnoStatus("open", path, errno);
  std::string bytes;
  char piece[1 << 16];
  for (;;) {
    const ssize_t size = read(file.fd, piece, sizeof(piece));
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) return ErrnoStatus("read", path, errno);
    if (size == 0) return bytes;
    bytes.append(piece, static_cast<size_t>(size));
    if (bytes.size() > max_bytes) return TooLarge(path, "", max_bytes);
  }
}

}  // namespace

Env* Env::Posix() {
  static PosixEnv* const env = new PosixEnv;
  return env;
}

bool Env::Exists(absl::string_view path) { return FileSize(path).ok(); }

bool Env::IsDirectory(absl::string_view path) { return ListDir(path).ok(); }

absl::StatusOr<std::string> Env::ReadFile(absl::string_view path, uint64_t max_bytes) {
  if (IsStream(path)) return ReadStream(path, max_bytes);
  ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, Map(path));
  if (file->bytes().size() > max_bytes) {
    return TooLarge(path, absl::StrCat(file->bytes().size(), " bytes, "), max_bytes);
  }
  return std::string(file->bytes());
}

absl::Status Env::SetPermissions(absl::string_view path, uint32_t mode) {
  if (chmod(std::string(path).c_str(), static_cast<mode_t>(mode & 0777)) == 0) {
    return absl::OkStatus();
  }
  return ErrnoStatus("change the permissions", path, errno);
}

absl::StatusOr<uint32_t> Env::Permissions(absl::string_view path) {
  struct stat info;
  if (stat(std::string(path).c_str(), &info) != 0) return ErrnoStatus("stat", path, errno);
  return static_cast<uint32_t>(info.st_mode & 0777);
}

absl::Status Env::WriteFileAtomic(absl::string_view path, absl::string_view data, uint32_t mode) {
  static std::atomic<uint64_t> counter{0};
  const std::string temporary = absl::StrCat(path, ".tmp-", getpid(), "-", counter.fetch_add(1));
  const auto write = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(std::unique_ptr<WritableFile> file, OpenForWrite(temporary));
    if (mode != 0) RETURN_IF_ERROR(SetPermissions(temporary, mode));
    RETURN_IF_ERROR(FEDGE_FAILPOINT_RUN("file.write", file->Append(data)));
    RETURN_IF_ERROR(FEDGE_FAILPOINT_RUN("file.sync", file->Sync()));
    RETURN_IF_ERROR(file->Close());
    RETURN_IF_ERROR(FEDGE_FAILPOINT_RUN("file.rename", Rename(temporary, path)));
    return FEDGE_FAILPOINT_RUN("file.sync_dir", SyncDir(DirName(path)));
  };
  const absl::Status status = write();
  if (!status.ok()) Remove(temporary).IgnoreError();
  return status;
}

std::string JoinPath(absl::string_view a, absl::string_view b) {
  if (a.empty()) return std::string(b);
  return a.back() == '/' ? absl::StrCat(a, b) : absl::StrCat(a, "/", b);
}

absl::string_view DirName(absl::string_view path) {
  const size_t slash = path.rfind('/');
  if (slash == absl::string_view::npos) return ".";
  return slash == 0 ? path.substr(0, 1) : path.substr(0, slash);
}

absl::string_view BaseName(absl::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == absl::string_view::npos ? path : path.substr(slash + 1);
}

}  // namespace fedge
