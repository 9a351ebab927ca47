// Bytes of updates that are not whole yet, on disk, so that a device goes on where a broken
// connection (or a restarted server) left it.
//
// One file an upload: <dir>/<SHA-256 of the upload's identity>.part. The identity, not the content,
// names the file, so that two nodes can never write to each other's. Its size is the committed
// offset. Parts are not synced: the receipt is what promises durability, and the digest of the
// whole finds a part that a power cut tore.
#ifndef FEDGE_SERVER_UPLOAD_BUFFER_H_
#define FEDGE_SERVER_UPLOAD_BUFFER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "common/base/digest.h"
#include "common/base/env.h"

namespace fedge {

struct UploadKey {
  std::string run_id;
  uint64_t round = 0;
  std::string node_id;
  Digest sha256;  // of the whole
  uint64_t size_bytes = 0;
};

struct UploadLimits {
  uint64_t max_upload_bytes = 0;  // of one upload
  uint64_t max_chunk_bytes = uint64_t{1} << 20;
  uint64_t max_total_bytes = uint64_t{1} << 30;  // declared sizes of all open uploads together
  size_t max_open_per_node = 2;                  // one more drops the node's oldest
  absl::Duration lifetime = absl::Minutes(20);   // since the last byte
};

// Thread-safe; chunks of one upload are written one at a time, of different ones in parallel.
class UploadBuffer {
 public:
  // Takes up the parts an earlier process left in `dir` (made when absent). `env` and `clock` must
  // outlive the buffer.
  static absl::StatusOr<std::unique_ptr<UploadBuffer>> Open(absl::string_view dir,
                                                            const UploadLimits& limits, Env& env,
                                                            Clock& clock);
  ~UploadBuffer();

  // Raises the limits to at least these: runs with larger updates or longer rounds share the
  // buffer.
  void Allow(uint64_t max_upload_bytes, absl::Duration lifetime);

  // How many bytes of the upload are held; 0 when it is unknown.
  uint64_t CommittedBytes(const UploadKey& key);

  // Adds a chunk; returns the whole upload's bytes once they are complete and their digest is
  // right, nothing before that. The part stays until Remove: a server that stops before the update
  // is stored elsewhere finds it again. A chunk that lies wholly in what is held is ignored. Codes:
  //   InvalidArgument    upload or chunk over its limit, of no bytes, or beyond the declared size
  //   OutOfRange         the offset leaves a gap or overlaps: the message names the offset to go on
  //   DataLoss           the chunk's CRC is wrong (nothing added), or the whole's digest is (the
  //                      part is dropped: start again at 0)
  //   Aborted            the upload was dropped meanwhile: query and go on
  //   ResourceExhausted  no room for another upload; also the codes of Env (nothing is added then)
  absl::StatusOr<std::optional<std::string>> Append(const UploadKey& key, uint64_t offset,
                                                    absl::string_view data, uint32_t crc32c);

  // The whole upload when all its bytes are here but nobody took them (the server stopped just
  // before); nothing otherwise. Codes as for the last chunk.
  absl::StatusOr<std::optional<std::string>> TakeIfWhole(const UploadKey& key);

  // Forgets an upload and its bytes.
  void Remove(const UploadKey& key);
  // Forgets uploads that got no byte for `lifetime`.
  void RemoveStale();

  size_t open_uploads();
  uint64_t reserved_bytes();

 private:
  struct Part;
  UploadBuffer(absl::string_view dir, const UploadLimits& limits, Env& env, Clock& clock);

  uint64_t max_upload_bytes();
  absl::Status CheckChunk(const UploadKey& key, uint64_t offset, absl::string_view data,
                          uint32_t crc32c);
  absl::Status AdoptParts();
  std::shared_ptr<Part> Find(const std::string& name);
  absl::StatusOr<std::shared_ptr<Part>> FindOrOpen(const std::string& name, const UploadKey& key);
  std::shared_ptr<Part> OldestOfNode(absl::string_view node) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::string> Finish(const std::shared_ptr<Part>& part, const UploadKey& key);
  void Drop(const std::shared_ptr<Part>& part);        // takes the part's lock
  void DropLocked(const std::shared_ptr<Part>& part);  // the caller holds it

  const std::string dir_;
  const UploadLimits limits_;  // but those two that Allow raises
  Env& env_;
  Clock& clock_;
  absl::Mutex mutex_;  // of the table; never held during disk I/O
  uint64_t max_upload_bytes_ ABSL_GUARDED_BY(mutex_);
  absl::Duration lifetime_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::shared_ptr<Part>> parts_ ABSL_GUARDED_BY(mutex_);
  uint64_t reserved_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_UPLOAD_BUFFER_H_
