#include "common/codec/adapter_state.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "common/base/byte_io.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr absl::string_view kMagic = "FDGS";
constexpr uint32_t kFormatVersion = 1;

}  // namespace

AdapterState::AdapterState(LoraSpec spec, const Digest& base_model)
    : base_model_(base_model), values_(std::move(spec)), units_(values_.values().size()) {}

void AdapterState::Refresh() {
  ApplyUnits(start_, units_, values_.values());
  crc_ = AdapterCrc(values_.values());
}

AdapterState AdapterState::FromSeed(LoraSpec spec, const Digest& base_model, uint64_t seed) {
  AdapterState state(std::move(spec), base_model);
  state.seed_ = seed;
  state.values_.InitializeForTraining(seed);
  state.start_.assign(state.values_.values().begin(), state.values_.values().end());
  state.crc_ = state.start_crc_ = AdapterCrc(state.start_);
  return state;
}

absl::StatusOr<AdapterState> AdapterState::FromValues(LoraSpec spec, const Digest& base_model,
                                                      std::string content) {
  AdapterState state(std::move(spec), base_model);
  state.start_.resize(state.units_.size());
  ASSIGN_OR_RETURN(
      const AdapterHeader header,
      DecodeAdapterValues(state.spec(), base_model, content, absl::MakeSpan(state.start_)));
  state.start_content_ = std::move(content);
  state.version_ = state.start_version_ = header.to_version;
  state.crc_ = state.start_crc_ = header.values_crc;
  std::copy(state.start_.begin(), state.start_.end(), state.values_.values().begin());
  return state;
}

absl::Status AdapterState::Apply(absl::string_view delta) {
  ASSIGN_OR_RETURN(const AdapterHeader announced, ReadAdapterHeader(delta));
  if (announced.from_version != version_) {
    if (announced.from_version != start_version_) {
      return absl::FailedPreconditionError(
          absl::StrCat("adapter delta: starts at version ", announced.from_version, ", held are ",
                       version_, " and its start ", start_version_));
    }
    std::fill(units_.begin(), units_.end(), 0);
  }
  RETURN_IF_ERROR(AddAdapterDelta(spec(), base_model_, delta, absl::MakeSpan(units_)).status());
  version_ = announced.to_version;
  Refresh();
  if (crc_ != announced.values_crc) {
    return absl::DataLossError(absl::StrCat("adapter delta: the result is not version ", version_,
                                            " as it was announced: another run's?"));
  }
  return absl::OkStatus();
}

void AdapterState::Advance(absl::Span<const int32_t> change) {
  FEDGE_CHECK(change.size() == units_.size());
  for (size_t i = 0; i < units_.size(); ++i) {
    const int64_t sum = int64_t{units_[i]} + change[i];
    FEDGE_CHECK(std::abs(sum) <= kMaxAdapterUnits);
    units_[i] = static_cast<int32_t>(sum);
  }
  ++version_;
  Refresh();
}

Digest AdapterState::ValuesDigest() const {
  const absl::Span<const float> values = values_.values();
  return Sha256Of(absl::string_view(reinterpret_cast<const char*>(values.data()),
                                    values.size() * sizeof(float)));
}

std::string AdapterState::EncodeWhole() const {
  AdapterHeader header;
  header.from_version = start_version_;
  header.to_version = version_;
  header.base_model = base_model_;
  header.values_crc = crc_;
  return EncodeAdapterDelta(spec(), header, units_);
}

// magic, version, seed, size of the start's content, the content, the delta.
std::string AdapterState::Serialize() const {
  ByteWriter writer;
  writer.WriteBytes(kMagic);
  writer.Write<uint32_t>(kFormatVersion);
  writer.Write<uint64_t>(seed_);
  writer.Write<uint64_t>(start_content_.size());
  writer.WriteBytes(start_content_);
  writer.WriteBytes(EncodeWhole());
  return std::move(writer).Take();
}

absl::StatusOr<AdapterState> AdapterState::Parse(LoraSpec spec, const Digest& base_model,
                                                 absl::string_view bytes) {
  ByteReader reader(bytes);
  const absl::string_view magic = reader.ReadBytes(kMagic.size());
  const uint32_t version = reader.Read<uint32_t>();
  const uint64_t seed = reader.Read<uint64_t>();
  const absl::string_view content = reader.ReadBytes(reader.Read<uint64_t>());
  if (!reader.ok() || magic != kMagic || version != kFormatVersion) {
    return absl::InvalidArgumentError("stored adapter: damaged or of another version");
  }
  const absl::string_view delta = bytes.substr(reader.position());
  if (content.empty()) {
    AdapterState state = FromSeed(std::move(spec), base_model, seed);
    RETURN_IF_ERROR(state.Apply(delta));
    return state;
  }
  ASSIGN_OR_RETURN(AdapterState state,
                   FromValues(std::move(spec), base_model, std::string(content)));
  RETURN_IF_ERROR(state.Apply(delta));
  return state;
}

}  // namespace fedge
