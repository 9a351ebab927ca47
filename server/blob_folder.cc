#include "server/blob_folder.h"

#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr uint64_t kMaxBlobBytes = uint64_t{16} << 30;
constexpr char kTemporary[] = ".tmp-";

}  // namespace

std::string BlobFolder::PathOf(const Digest& digest) const {
  return absl::StrCat(dir_, "/blobs/", digest.Hex());
}

absl::Status BlobFolder::Create() { return env_.CreateDirs(JoinPath(dir_, "blobs")); }

absl::Status BlobFolder::WriteFile(const Digest& digest, absl::string_view bytes) {
  const std::string path = PathOf(digest);
  const absl::StatusOr<uint64_t> present = env_.FileSize(path);
  if (present.ok() && *present == bytes.size()) {
    // Its name may not be on the disk yet: another thread may have renamed it just now.
    return durable_ ? env_.SyncDir(DirName(path)) : absl::OkStatus();
  }
  if (durable_) return env_.WriteFileAtomic(path, bytes);
  const std::string temporary = absl::StrCat(path, kTemporary);
  ASSIGN_OR_RETURN(const std::unique_ptr<WritableFile> file, env_.OpenForWrite(temporary));
  RETURN_IF_ERROR(file->Append(bytes));
  RETURN_IF_ERROR(file->Close());
  return env_.Rename(temporary, path);
}

absl::StatusOr<Digest> BlobFolder::Write(absl::string_view bytes) {
  const Digest digest = Sha256Of(bytes);
  RETURN_IF_ERROR(WriteFile(digest, bytes));
  return digest;
}

absl::Status BlobFolder::WriteHeld(const Digest& digest, absl::string_view bytes) {
  {
    absl::MutexLock lock(&mutex_);
    ++held_[digest];
  }
  const absl::Status status = FEDGE_FAILPOINT_RUN("store.update.blob", WriteFile(digest, bytes));
  if (!status.ok()) Release(digest);
  return status;
}

void BlobFolder::Release(const Digest& digest) {
  absl::MutexLock lock(&mutex_);
  const auto held = held_.find(digest);
  if (held != held_.end() && --held->second == 0) held_.erase(held);
}

absl::StatusOr<std::string> BlobFolder::Read(const Digest& digest) {
  ASSIGN_OR_RETURN(std::string bytes, env_.ReadFile(PathOf(digest), kMaxBlobBytes));
  if (Sha256Of(bytes) == digest) return bytes;
  return absl::DataLossError(
      absl::StrCat(PathOf(digest),
                   ": the content does not match its name; restore the state folder from a backup "
                   "or move it away"));
}

absl::Status BlobFolder::RemoveUnless(
    const Digest& digest, absl::FunctionRef<absl::StatusOr<bool>(const Digest&)> is_wanted) {
  ASSIGN_OR_RETURN(const bool wanted, is_wanted(digest));
  if (wanted) return absl::OkStatus();
  // Under the lock, so that WriteHeld either is seen here or finds the file gone.
  absl::MutexLock lock(&mutex_);
  if (held_.count(digest) > 0) return absl::OkStatus();
  FEDGE_FAILPOINT_RUN("store.blob.remove", env_.Remove(PathOf(digest))).IgnoreError();
  return absl::OkStatus();
}

absl::Status BlobFolder::Sweep(absl::FunctionRef<absl::StatusOr<bool>(const Digest&)> is_wanted) {
  const std::string dir = JoinPath(dir_, "blobs");
  ASSIGN_OR_RETURN(const std::vector<std::string> names, env_.ListDir(dir));
  for (const std::string& name : names) {
    const absl::StatusOr<Digest> digest = ParseDigest(name);
    if (digest.ok()) {
      RETURN_IF_ERROR(RemoveUnless(*digest, is_wanted));
    } else if (name.find(kTemporary) != std::string::npos) {
      RETURN_IF_ERROR(env_.Remove(JoinPath(dir, name)));
    }
  }
  return absl::OkStatus();
}

absl::Status BlobFolder::Quarantine(const Digest& digest) {
  if (!env_.Exists(PathOf(digest))) return absl::OkStatus();
  const std::string dir = JoinPath(dir_, "quarantine");
  RETURN_IF_ERROR(env_.CreateDirs(dir));
  return env_.Rename(PathOf(digest), JoinPath(dir, digest.Hex()));
}

}  // namespace fedge
