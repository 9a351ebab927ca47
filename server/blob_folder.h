// A folder of blobs named by their SHA-256. Knows nothing of what they are; which of them are still
// wanted is the caller's to say.
#ifndef FEDGE_SERVER_BLOB_FOLDER_H_
#define FEDGE_SERVER_BLOB_FOLDER_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/base/digest.h"
#include "common/base/env.h"

namespace fedge {

// Thread-safe; blobs are written in parallel. Codes are Env's.
class BlobFolder {
 public:
  // <dir>/blobs and, for damaged ones, <dir>/quarantine. Not `durable`: nothing is synced. `env`
  // must outlive this object.
  BlobFolder(std::string dir, bool durable, Env& env)
      : dir_(std::move(dir)), durable_(durable), env_(env) {}
  absl::Status Create();

  // Makes the bytes durable: written, synced, renamed, the folder synced.
  absl::StatusOr<Digest> Write(absl::string_view bytes);
  // The same for bytes that nobody names yet: until as many calls of Release, RemoveUnless spares
  // them. `digest` is that of the bytes. Nothing is held on error.
  absl::Status WriteHeld(const Digest& digest, absl::string_view bytes);
  void Release(const Digest& digest);

  // NotFound: there is none. DataLoss: the content does not match its name.
  absl::StatusOr<std::string> Read(const Digest& digest);
  // Removes the blob unless it is held or `is_wanted` says so; the caller sees to it that this does
  // not change meanwhile. One that cannot be removed is swept later.
  absl::Status RemoveUnless(const Digest& digest,
                            absl::FunctionRef<absl::StatusOr<bool>(const Digest&)> is_wanted);
  // RemoveUnless for all of the folder, and remains of unfinished writes: for the start.
  absl::Status Sweep(absl::FunctionRef<absl::StatusOr<bool>(const Digest&)> is_wanted);
  // Moves a damaged blob aside, to be looked at. Fine when there is none.
  absl::Status Quarantine(const Digest& digest);

 private:
  std::string PathOf(const Digest& digest) const;
  absl::Status WriteFile(const Digest& digest, absl::string_view bytes);

  const std::string dir_;
  const bool durable_;
  Env& env_;
  absl::Mutex mutex_;  // held while a file is removed, not while one is written
  std::map<Digest, int> held_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fedge

#endif  // FEDGE_SERVER_BLOB_FOLDER_H_
