#include "client/participant_state.h"

#include <utility>

#include "common/base/byte_io.h"
#include "common/base/digest.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr uint32_t kMagic = 0x534e4446;  // "FDNS"
constexpr uint32_t kVersion = 1;
constexpr uint64_t kMaxStateBytes = uint64_t{1} << 33;

void WriteSized(absl::string_view bytes, ByteWriter& writer) {
  writer.Write<uint64_t>(bytes.size());
  writer.WriteBytes(bytes);
}

absl::string_view ReadSized(ByteReader& reader) {
  return reader.ReadBytes(reader.Read<uint64_t>());
}

}  // namespace

std::string ParticipantState::Serialize() const {
  ByteWriter writer;
  writer.Write(kMagic);
  writer.Write(kVersion);
  writer.Write(tokens_per_second);
  writer.Write(num_examples);
  WriteSized(run_id, writer);
  WriteSized(lora.SerializeAsString(), writer);
  WriteSized(last_metrics.SerializeAsString(), writer);
  WriteSized(error_feedback, writer);
  writer.Write(Crc32c(writer.bytes()));
  return std::move(writer).Take();
}

absl::StatusOr<ParticipantState> ParticipantState::Parse(absl::string_view bytes) {
  const absl::Status damaged = absl::DataLossError(
      "the node's saved state is damaged or of another version; it starts afresh");
  if (bytes.size() < 3 * sizeof(uint32_t)) return damaged;
  const absl::string_view body = bytes.substr(0, bytes.size() - sizeof(uint32_t));
  ByteReader checksum(bytes.substr(body.size()));
  if (checksum.Read<uint32_t>() != Crc32c(body)) return damaged;
  ByteReader reader(body);
  if (reader.Read<uint32_t>() != kMagic || reader.Read<uint32_t>() != kVersion) return damaged;
  ParticipantState state;
  state.tokens_per_second = reader.Read<double>();
  state.num_examples = reader.Read<uint64_t>();
  state.run_id = std::string(ReadSized(reader));
  const absl::string_view lora = ReadSized(reader);
  const absl::string_view metrics = ReadSized(reader);
  state.error_feedback = std::string(ReadSized(reader));
  if (!reader.ok() || reader.remaining() != 0 ||
      !state.lora.ParseFromArray(lora.data(), static_cast<int>(lora.size())) ||
      !state.last_metrics.ParseFromArray(metrics.data(), static_cast<int>(metrics.size()))) {
    return damaged;
  }
  return state;
}

DirectoryStateStore::DirectoryStateStore(std::string dir, Env* env, std::string suffix)
    : dir_(std::move(dir)), env_(env), suffix_(std::move(suffix)) {}

std::string DirectoryStateStore::Path(absl::string_view node_id) const {
  // Node ids are free text; their hash is a file name everywhere.
  return JoinPath(dir_, absl::StrCat("node-", Sha256Of(node_id).Hex().substr(0, 32), suffix_));
}

absl::StatusOr<std::string> DirectoryStateStore::Read(absl::string_view node_id) {
  return env_->ReadFile(Path(node_id), kMaxStateBytes);
}

absl::Status DirectoryStateStore::Write(absl::string_view node_id, std::string bytes) {
  RETURN_IF_ERROR(env_->CreateDirs(dir_));
  return env_->WriteFileAtomic(Path(node_id), bytes);
}

absl::Status DirectoryStateStore::Remove(absl::string_view node_id) {
  const absl::Status removed = env_->Remove(Path(node_id));
  if (absl::IsNotFound(removed)) return absl::OkStatus();
  RETURN_IF_ERROR(removed);
  return env_->SyncDir(dir_);
}

BudgetedStateStore::BudgetedStateStore(uint64_t max_memory_bytes, StateStore* spill)
    : max_memory_bytes_(max_memory_bytes), spill_(spill) {}

absl::StatusOr<std::string> BudgetedStateStore::Read(absl::string_view node_id) {
  {
    absl::MutexLock lock(&mutex_);
    const auto found = held_.find(node_id);
    if (found != held_.end()) return found->second;
  }
  return spill_->Read(node_id);
}

absl::Status BudgetedStateStore::Write(absl::string_view node_id, std::string bytes) {
  {
    absl::MutexLock lock(&mutex_);
    const auto found = held_.find(node_id);
    const uint64_t before = found == held_.end() ? 0 : found->second.size();
    if (memory_bytes_ - before + bytes.size() <= max_memory_bytes_) {
      memory_bytes_ += bytes.size() - before;
      held_.insert_or_assign(std::string(node_id), std::move(bytes));
      return absl::OkStatus();
    }
    if (found != held_.end()) {
      memory_bytes_ -= before;
      held_.erase(found);
    }
  }
  return spill_->Write(node_id, std::move(bytes));
}

uint64_t BudgetedStateStore::memory_bytes() const {
  absl::MutexLock lock(&mutex_);
  return memory_bytes_;
}

}  // namespace fedge
