#include "client/global_adapter.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/byte_io.h"
#include "common/base/status.h"
#include "common/security/signing.h"

namespace fedge {
namespace {

constexpr uint32_t kMagic = 0x414e4446;  // "FDNA"
constexpr uint32_t kVersion = 1;
constexpr int kMaxDeltas = 1024;

struct KeptAdapter {
  v1::HeldAdapter held;
  std::string state;  // AdapterState::Serialize
};

std::string SerializeKept(const v1::HeldAdapter& held, const std::string& state) {
  const std::string head = held.SerializeAsString();
  ByteWriter writer;
  writer.Write(kMagic);
  writer.Write(kVersion);
  writer.Write<uint64_t>(head.size());
  writer.WriteBytes(head);
  writer.WriteBytes(state);
  writer.Write(Crc32c(writer.bytes()));
  return std::move(writer).Take();
}

absl::StatusOr<KeptAdapter> ParseKept(absl::string_view bytes) {
  const absl::Status damaged = absl::DataLossError("kept adapter: damaged or of another version");
  if (bytes.size() < 4 * sizeof(uint32_t) + sizeof(uint32_t)) return damaged;
  const absl::string_view body = bytes.substr(0, bytes.size() - sizeof(uint32_t));
  ByteReader crc(bytes.substr(body.size()));
  if (crc.Read<uint32_t>() != Crc32c(body)) return damaged;
  ByteReader reader(body);
  if (reader.Read<uint32_t>() != kMagic || reader.Read<uint32_t>() != kVersion) return damaged;
  const absl::string_view head = reader.ReadBytes(reader.Read<uint64_t>());
  KeptAdapter kept;
  if (!reader.ok() || !kept.held.ParseFromArray(head.data(), static_cast<int>(head.size()))) {
    return damaged;
  }
  kept.state = std::string(body.substr(reader.position()));
  return kept;
}

v1::HeldAdapter Describe(const AdapterState& state, const std::string& run_id) {
  v1::HeldAdapter held;
  held.set_run_id(run_id);
  held.set_version(state.version());
  held.set_values_crc32c(state.crc());
  held.set_start_version(state.start_version());
  held.set_start_crc32c(state.start_crc());
  return held;
}

}  // namespace

GlobalAdapter::GlobalAdapter(std::string node_id, const Digest& base_model, Transfer* transfer,
                             StateStore* kept, ServerKey* key)
    : node_id_(std::move(node_id)),
      base_model_(base_model),
      transfer_(transfer),
      kept_(kept),
      key_(key) {}

const v1::HeldAdapter& GlobalAdapter::held() {
  if (held_) return *held_;
  held_.emplace();
  if (kept_ == nullptr) return *held_;
  const absl::StatusOr<std::string> bytes = kept_->Read(node_id_);
  if (!bytes.ok()) return *held_;
  const absl::StatusOr<KeptAdapter> kept = ParseKept(*bytes);
  if (kept.ok()) held_ = kept->held;
  return *held_;
}

void GlobalAdapter::Forget() { held_.emplace(); }

absl::StatusOr<std::string> GlobalAdapter::FetchContent(const v1::ContentRef& ref,
                                                        uint64_t max_bytes) {
  ASSIGN_OR_RETURN(std::string content, transfer_->Fetch(node_id_, ref, max_bytes));
  downloaded_bytes_ += content.size();
  return content;
}

absl::StatusOr<AdapterState> GlobalAdapter::Start(const LoraSpec& spec,
                                                  const v1::AdapterSource& source) {
  const auto parameters = static_cast<uint64_t>(spec.num_parameters());
  switch (source.start_case()) {
    case v1::AdapterSource::kSeed:
      return AdapterState::FromSeed(spec, base_model_, source.seed());
    case v1::AdapterSource::kValues: {
      ASSIGN_OR_RETURN(std::string content,
                       FetchContent(source.values(), AdapterContentBound(parameters)));
      return AdapterState::FromValues(spec, base_model_, std::move(content));
    }
    case v1::AdapterSource::kHeld: {
      if (kept_ == nullptr || held().run_id().empty()) {
        return absl::InvalidArgumentError("global adapter: the server counts on what is not held");
      }
      const absl::StatusOr<std::string> bytes = kept_->Read(node_id_);
      if (!bytes.ok()) return absl::DataLossError(bytes.status().message());
      ASSIGN_OR_RETURN(const KeptAdapter kept, ParseKept(*bytes));
      return AdapterState::Parse(spec, base_model_, kept.state);
    }
    default:
      return absl::UnimplementedError(
          "global adapter: the server offers a start this client does not know; update the client");
  }
}

absl::StatusOr<std::optional<Digest>> GlobalAdapter::CheckSignature(const v1::AdapterSource& source,
                                                                    absl::string_view context,
                                                                    const LoraSpec& spec) {
  if (key_ == nullptr) return std::optional<Digest>();
  return key_->Check(source, context, spec, base_model_);
}

absl::Status GlobalAdapter::Follow(const v1::AdapterSource& source,
                                   const std::optional<Digest>& values, AdapterState& state) {
  if (source.deltas_size() > kMaxDeltas) {
    return absl::InvalidArgumentError(
        absl::StrCat("global adapter: ", source.deltas_size(), " deltas, at most ", kMaxDeltas));
  }
  // No way to a version is longer than the whole change.
  uint64_t left = AdapterContentBound(static_cast<uint64_t>(state.spec().num_parameters()));
  for (const v1::ContentRef& ref : source.deltas()) {
    ASSIGN_OR_RETURN(const std::string delta, FetchContent(ref, left));
    left -= delta.size();
    RETURN_IF_ERROR(state.Apply(delta));
  }
  if (state.version() != source.version() || state.crc() != source.values_crc32c()) {
    return absl::DataLossError(absl::StrCat("global adapter: what was sent leads to version ",
                                            state.version(), ", not to ", source.version(),
                                            " as it was announced"));
  }
  if (values && *values != state.ValuesDigest()) {
    return absl::DataLossError(absl::StrCat("global adapter: what was sent is not the version ",
                                            source.version(), " that the server signed"));
  }
  return absl::OkStatus();
}

absl::StatusOr<AdapterState> GlobalAdapter::FetchState(const LoraSpec& spec,
                                                       const v1::AdapterSource& source) {
  ASSIGN_OR_RETURN(const std::optional<Digest> values,
                   CheckSignature(source, kVersionManifestContext, spec));
  ASSIGN_OR_RETURN(AdapterState state, Start(spec, source));
  RETURN_IF_ERROR(Follow(source, values, state));
  const v1::HeldAdapter before = held();
  if (kept_ != nullptr &&
      (source.start_case() != v1::AdapterSource::kHeld || before.version() != state.version())) {
    Keep(state, source.run_id());
  }
  return state;
}

absl::StatusOr<LoraAdapter> GlobalAdapter::Fetch(const LoraSpec& spec,
                                                 const v1::AdapterSource& source) {
  ASSIGN_OR_RETURN(const AdapterState state, FetchState(spec, source));
  return state.adapter();
}

absl::StatusOr<AdapterState> GlobalAdapter::FetchCandidate(const AdapterState& current,
                                                           const v1::AdapterSource& source) {
  ASSIGN_OR_RETURN(const std::optional<Digest> values,
                   CheckSignature(source, kCandidateManifestContext, current.spec()));
  const bool is_whole = source.start_case() == v1::AdapterSource::kValues;
  absl::StatusOr<AdapterState> state =
      is_whole ? Start(current.spec(), source) : absl::StatusOr<AdapterState>(current);
  RETURN_IF_ERROR(state.status());
  RETURN_IF_ERROR(Follow(source, values, *state));
  return state;
}

void GlobalAdapter::Keep(const AdapterState& state, const std::string& run_id) {
  const v1::HeldAdapter now = Describe(state, run_id);
  const absl::Status written = kept_->Write(node_id_, SerializeKept(now, state.Serialize()));
  held_.emplace();
  if (written.ok()) {
    held_ = now;
  } else {
    warning_ = absl::StrCat("the global adapter cannot be kept, the next one comes whole: ",
                            written.message());
  }
}

absl::StatusOr<std::string> SharedStateStore::Read(absl::string_view node_id) {
  absl::MutexLock lock(&mutex_);
  const auto found = by_node_.find(node_id);
  if (found == by_node_.end()) return absl::NotFoundError("nothing kept for this node");
  return contents_.at(found->second).bytes;
}

absl::Status SharedStateStore::Write(absl::string_view node_id, std::string bytes) {
  const Digest digest = Sha256Of(bytes);
  absl::MutexLock lock(&mutex_);
  Shared& now = contents_[digest];
  if (now.nodes++ == 0) now.bytes = std::move(bytes);
  const auto [entry, is_new] = by_node_.try_emplace(std::string(node_id), digest);
  if (is_new) return absl::OkStatus();
  const auto before = contents_.find(entry->second);
  entry->second = digest;
  if (--before->second.nodes == 0) contents_.erase(before);
  return absl::OkStatus();
}

uint64_t SharedStateStore::memory_bytes() const {
  absl::MutexLock lock(&mutex_);
  uint64_t bytes = 0;
  for (const auto& [digest, shared] : contents_) bytes += shared.bytes.size();
  return bytes;
}

}  // namespace fedge
