// Files: the one seam through which Fedge touches a disk, so that tests can make any operation
// fail.
#ifndef FEDGE_COMMON_BASE_ENV_H_
#define FEDGE_COMMON_BASE_ENV_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fedge {

// A read-only mapping of a whole file. The bytes stay valid as long as this object lives.
class MappedFile {
 public:
  virtual ~MappedFile() = default;
  absl::string_view bytes() const { return bytes_; }
  // Says that the whole pages in `part` of bytes() are not needed for now: they leave this
  // process's memory and are read again when touched. Thread-safe.
  virtual void Release(absl::string_view /*part*/) const {}

 protected:
  absl::string_view bytes_;
};

// A file being written from its start or from an offset on. Not thread-safe.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  virtual absl::Status Append(absl::string_view data) = 0;
  virtual absl::Status Sync() = 0;   // data reached the disk
  virtual absl::Status Close() = 0;  // the destructor closes too, dropping the error
};

// Messages of all errors name the path and the system's reason. Codes: NotFound (no such file),
// PermissionDenied (also read-only file systems), ResourceExhausted (disk or quota full),
// AlreadyExists, FailedPrecondition (a folder where a file is needed or the reverse), DataLoss (a
// sync failed: what was written may be gone, whatever a later sync says), Internal.
// Thread-safe.
class Env {
 public:
  virtual ~Env() = default;
  static Env* Posix();  // never null, never freed

  virtual absl::StatusOr<std::unique_ptr<MappedFile>> Map(absl::string_view path) = 0;
  // `keep_bytes`: the file is truncated to this size (0: a new or emptied file), then appended to.
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> OpenForWrite(absl::string_view path,
                                                                     uint64_t keep_bytes = 0) = 0;
  virtual absl::Status Rename(absl::string_view from, absl::string_view to) = 0;
  virtual absl::Status SyncDir(absl::string_view dir) = 0;
  virtual absl::Status CreateDirs(absl::string_view dir) = 0;  // with parents; fine if it exists
  virtual absl::Status Remove(absl::string_view path) = 0;     // a file, or a folder with all in it
  virtual absl::StatusOr<uint64_t> FileSize(absl::string_view path) = 0;
  // Names (not paths) in `dir`, sorted; folders end in "/".
  virtual absl::StatusOr<std::vector<std::string>> ListDir(absl::string_view dir) = 0;
  // Who may read, write and enter: the nine lowest bits of the mode, e.g. 0600.
  virtual absl::Status SetPermissions(absl::string_view path, uint32_t mode);
  virtual absl::StatusOr<uint32_t> Permissions(absl::string_view path);

  bool Exists(absl::string_view path);
  bool IsDirectory(absl::string_view path);

  // Whole-file conveniences built on the above.
  absl::StatusOr<std::string> ReadFile(absl::string_view path,
                                       uint64_t max_bytes = uint64_t{1} << 32);
  // Writes beside `path`, syncs, renames over it and syncs the folder: a reader sees the old file
  // or the new one, never a part. On error the old file is untouched and nothing is left beside it,
  // with two exceptions: if only the folder's sync fails, the new file is in place but a power cut
  // may bring the old one back; if removing fails too, a file "<path>.tmp-..." stays. With a
  // `mode`, nobody whom it keeps out could ever read a byte of `data`.
  absl::Status WriteFileAtomic(absl::string_view path, absl::string_view data, uint32_t mode = 0);
};

std::string JoinPath(absl::string_view a, absl::string_view b);
absl::string_view DirName(absl::string_view path);  // "." when there is none
absl::string_view BaseName(absl::string_view path);

}  // namespace fedge

#endif  // FEDGE_COMMON_BASE_ENV_H_
