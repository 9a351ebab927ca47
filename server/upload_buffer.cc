#include "server/upload_buffer.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/byte_io.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr absl::string_view kSuffix = ".part";

// Length-prefixed, so that no two identities share a name.
std::string NameOf(const UploadKey& key) {
  ByteWriter identity;
  identity.Write(static_cast<uint64_t>(key.run_id.size()));
  identity.WriteBytes(key.run_id);
  identity.Write(static_cast<uint64_t>(key.node_id.size()));
  identity.WriteBytes(key.node_id);
  identity.Write(key.round);
  identity.WriteBytes(key.sha256.Raw());
  identity.Write(key.size_bytes);
  return Sha256Of(identity.bytes()).Hex();
}

absl::Status CheckWhole(const UploadKey& key, absl::string_view bytes) {
  const Digest digest = Sha256Of(bytes);
  if (digest == key.sha256) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("upload: the ", bytes.size(), " bytes have SHA-256 ",
                                          digest.Hex(), ", announced was ", key.sha256.Hex(),
                                          "; start again at 0"));
}

}  // namespace

// Lives in the table under its name. Its file goes before it leaves the table, so that a new part
// of the same name never meets the removal of the old one.
struct UploadBuffer::Part {
  std::string name;
  std::string path;
  // Guarded by the buffer's mutex_.
  std::string node;       // empty: left by an earlier process, not continued yet
  uint64_t reserved = 0;  // bytes this part counts for
  absl::Duration last_byte;
  // Guarded by `io`, which is held while the file is touched.
  absl::Mutex io;
  uint64_t committed ABSL_GUARDED_BY(io) = 0;
  bool dropped ABSL_GUARDED_BY(io) = false;
};

UploadBuffer::UploadBuffer(absl::string_view dir, const UploadLimits& limits, Env& env,
                           Clock& clock)
    : dir_(dir),
      limits_(limits),
      env_(env),
      clock_(clock),
      max_upload_bytes_(limits.max_upload_bytes),
      lifetime_(limits.lifetime) {}

UploadBuffer::~UploadBuffer() = default;

void UploadBuffer::Allow(uint64_t max_upload_bytes, absl::Duration lifetime) {
  absl::MutexLock lock(&mutex_);
  max_upload_bytes_ = std::max(max_upload_bytes_, max_upload_bytes);
  lifetime_ = std::max(lifetime_, lifetime);
}

uint64_t UploadBuffer::max_upload_bytes() {
  absl::MutexLock lock(&mutex_);
  return max_upload_bytes_;
}

absl::StatusOr<std::unique_ptr<UploadBuffer>> UploadBuffer::Open(absl::string_view dir,
                                                                 const UploadLimits& limits,
                                                                 Env& env, Clock& clock) {
  std::unique_ptr<UploadBuffer> buffer(new UploadBuffer(dir, limits, env, clock));
  RETURN_IF_ERROR(env.CreateDirs(dir));
  RETURN_IF_ERROR(buffer->AdoptParts());
  return buffer;
}

absl::Status UploadBuffer::AdoptParts() {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, env_.ListDir(dir_));
  for (const std::string& file : names) {
    if (!absl::EndsWith(file, kSuffix)) continue;
    auto part = std::make_shared<Part>();
    part->name = file.substr(0, file.size() - kSuffix.size());
    part->path = JoinPath(dir_, file);
    ASSIGN_OR_RETURN(part->reserved, env_.FileSize(part->path));
    part->last_byte = clock_.Monotonic();
    {
      absl::MutexLock io(&part->io);
      part->committed = part->reserved;
    }
    absl::MutexLock lock(&mutex_);
    reserved_ += part->reserved;
    parts_[part->name] = std::move(part);
  }
  return absl::OkStatus();
}

std::shared_ptr<UploadBuffer::Part> UploadBuffer::Find(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  const auto found = parts_.find(name);
  return found == parts_.end() ? nullptr : found->second;
}

uint64_t UploadBuffer::CommittedBytes(const UploadKey& key) {
  const std::shared_ptr<Part> part = Find(NameOf(key));
  if (part == nullptr) return 0;
  absl::MutexLock io(&part->io);
  return part->dropped ? 0 : part->committed;
}

absl::Status UploadBuffer::CheckChunk(const UploadKey& key, uint64_t offset, absl::string_view data,
                                      uint32_t crc32c) {
  const uint64_t limit = max_upload_bytes();
  if (key.size_bytes == 0 || key.size_bytes > limit) {
    return absl::InvalidArgumentError(
        absl::StrCat("upload: announces ", key.size_bytes, " bytes, allowed are 1 to ", limit));
  }
  if (data.empty() || data.size() > limits_.max_chunk_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "upload: a chunk of ", data.size(), " bytes, allowed are 1 to ", limits_.max_chunk_bytes));
  }
  if (offset > key.size_bytes || data.size() > key.size_bytes - offset) {
    return absl::InvalidArgumentError(absl::StrCat("upload: ", data.size(), " bytes at offset ",
                                                   offset, " pass the announced size of ",
                                                   key.size_bytes));
  }
  if (Crc32c(data) != crc32c) {
    return absl::DataLossError(
        absl::StrCat("upload: the chunk at offset ", offset, " does not match its CRC-32C"));
  }
  return absl::OkStatus();
}

std::shared_ptr<UploadBuffer::Part> UploadBuffer::OldestOfNode(absl::string_view node) {
  std::shared_ptr<Part> oldest;
  size_t count = 0;
  for (const auto& [name, part] : parts_) {
    if (part->node != node) continue;
    ++count;
    if (oldest == nullptr || part->last_byte < oldest->last_byte) oldest = part;
  }
  return count >= limits_.max_open_per_node ? oldest : nullptr;
}

absl::StatusOr<std::shared_ptr<UploadBuffer::Part>> UploadBuffer::FindOrOpen(
    const std::string& name, const UploadKey& key) {
  for (;;) {
    std::shared_ptr<Part> too_many;
    {
      absl::MutexLock lock(&mutex_);
      const auto found = parts_.find(name);
      if (found != parts_.end() && !found->second->node.empty()) {
        found->second->last_byte = clock_.Monotonic();
        return found->second;
      }
      too_many = OldestOfNode(key.node_id);
      if (too_many == nullptr) {
        const uint64_t held = found == parts_.end() ? 0 : found->second->reserved;
        if (reserved_ - held + key.size_bytes > limits_.max_total_bytes) {
          return absl::ResourceExhaustedError(
              absl::StrCat("upload: ", reserved_, " bytes of open uploads, no room for ",
                           key.size_bytes, " more (limit ", limits_.max_total_bytes, ")"));
        }
        std::shared_ptr<Part>& part = parts_[name];
        if (part == nullptr) {
          part = std::make_shared<Part>();
          part->name = name;
          part->path = absl::StrCat(dir_, "/", name, kSuffix);
        }
        reserved_ += key.size_bytes - part->reserved;
        part->reserved = key.size_bytes;
        part->node = key.node_id;
        part->last_byte = clock_.Monotonic();
        return part;
      }
    }
    Drop(too_many);
  }
}

absl::StatusOr<std::optional<std::string>> UploadBuffer::Append(const UploadKey& key,
                                                                uint64_t offset,
                                                                absl::string_view data,
                                                                uint32_t crc32c) {
  RETURN_IF_ERROR(CheckChunk(key, offset, data, crc32c));
  if (data.size() == key.size_bytes) {  // an upload of one chunk needs no file
    RETURN_IF_ERROR(CheckWhole(key, data));
    return std::optional<std::string>(std::string(data));
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<Part> part, FindOrOpen(NameOf(key), key));
  absl::MutexLock io(&part->io);
  if (part->dropped) return absl::AbortedError("upload: was dropped meanwhile; query and go on");
  const bool known = offset + data.size() <= part->committed;
  if (!known) {
    if (offset != part->committed) {
      return absl::OutOfRangeError(absl::StrCat("upload: offset ", offset, " does not continue; ",
                                                part->committed, " bytes are held, go on there"));
    }
    // Truncating to what is committed also clears the remains of a write that failed.
    ASSIGN_OR_RETURN(const std::unique_ptr<WritableFile> file,
                     env_.OpenForWrite(part->path, part->committed));
    RETURN_IF_ERROR(FEDGE_FAILPOINT_RUN("upload.append", file->Append(data)));
    RETURN_IF_ERROR(file->Close());
    part->committed += data.size();
  }
  if (part->committed < key.size_bytes) return std::optional<std::string>();
  ASSIGN_OR_RETURN(std::string bytes, Finish(part, key));
  return std::optional<std::string>(std::move(bytes));
}

absl::StatusOr<std::optional<std::string>> UploadBuffer::TakeIfWhole(const UploadKey& key) {
  const std::shared_ptr<Part> part = Find(NameOf(key));
  if (part == nullptr) return std::optional<std::string>();
  absl::MutexLock io(&part->io);
  if (part->dropped || part->committed < key.size_bytes) return std::optional<std::string>();
  ASSIGN_OR_RETURN(std::string bytes, Finish(part, key));
  return std::optional<std::string>(std::move(bytes));
}

// The caller holds part->io.
absl::StatusOr<std::string> UploadBuffer::Finish(
    const std::shared_ptr<Part>& part, const UploadKey& key) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  ASSIGN_OR_RETURN(std::string bytes, env_.ReadFile(part->path, max_upload_bytes()));
  const absl::Status status = CheckWhole(key, bytes);
  if (status.ok()) return bytes;
  DropLocked(part);
  return status;
}

void UploadBuffer::Drop(const std::shared_ptr<Part>& part) {
  absl::MutexLock io(&part->io);
  if (!part->dropped) DropLocked(part);
}

void UploadBuffer::DropLocked(const std::shared_ptr<Part>& part) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  // A file that cannot be removed is taken up again at the next start and removed when stale.
  FEDGE_FAILPOINT_RUN("upload.remove", env_.Remove(part->path)).IgnoreError();
  part->dropped = true;
  absl::MutexLock lock(&mutex_);
  reserved_ -= part->reserved;
  parts_.erase(part->name);
}

void UploadBuffer::Remove(const UploadKey& key) {
  if (const std::shared_ptr<Part> part = Find(NameOf(key))) Drop(part);
}

void UploadBuffer::RemoveStale() {
  std::vector<std::shared_ptr<Part>> stale;
  {
    absl::MutexLock lock(&mutex_);
    const absl::Duration now = clock_.Monotonic();
    for (const auto& [name, part] : parts_) {
      if (now - part->last_byte >= lifetime_) stale.push_back(part);
    }
  }
  for (const std::shared_ptr<Part>& part : stale) Drop(part);
}

size_t UploadBuffer::open_uploads() {
  absl::MutexLock lock(&mutex_);
  return parts_.size();
}

uint64_t UploadBuffer::reserved_bytes() {
  absl::MutexLock lock(&mutex_);
  return reserved_;
}

}  // namespace fedge
