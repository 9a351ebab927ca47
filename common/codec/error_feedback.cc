#include "common/codec/error_feedback.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "common/base/byte_io.h"
#include "common/base/status.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

constexpr absl::string_view kMagic = "FDGR";
constexpr uint8_t kStateVersion = 2;
// Flags of a state.
constexpr uint8_t kPending = 1;
constexpr uint8_t kVelocity = 2;

void WriteHalves(absl::Span<const float> values, ByteWriter& writer) {
  for (const float value : values) writer.Write<uint16_t>(FloatToHalf(value));
}

// `bytes` holds two for each value. False when one is not finite.
bool ReadHalves(ByteReader& reader, absl::Span<float> values) {
  bool finite = true;
  for (float& value : values) {
    value = HalfToFloat(reader.Read<uint16_t>());
    finite &= std::isfinite(value);
  }
  return finite && reader.ok();
}

absl::Status Damaged(absl::string_view what) {
  return absl::DataLossError(
      absl::StrCat("error-feedback state: ", what, "; delete the file to start without it"));
}

// As they will come back from disk.
void RoundToHalves(absl::Span<float> values) {
  for (float& value : values) value = HalfToFloat(FloatToHalf(value));
}

// The components that both adapters have of the modules that both have.
std::vector<float> CommonComponents(const LoraSpec& from, absl::Span<const float> values,
                                    const LoraSpec& to) {
  std::vector<float> result(static_cast<size_t>(to.num_parameters()));
  for (const LoraModule& module : to.modules()) {
    const int64_t found = module.is_part() ? from.FindPart(module.tensor, module.first_row)
                                           : from.Find(module.tensor);
    if (found < 0) continue;
    const LoraModule& source = from.modules()[static_cast<size_t>(found)];
    if (source.in_features != module.in_features || source.out_features != module.out_features) {
      continue;
    }
    const int64_t rank = std::min(source.rank, module.rank);
    std::copy_n(values.data() + source.offset, rank * module.in_features,
                result.data() + module.offset);
    std::copy_n(values.data() + source.offset + source.a_size(), rank * module.out_features,
                result.data() + module.offset + module.a_size());
  }
  return result;
}

}  // namespace

struct ErrorFeedback::SavedState {
  Digest base_model;
  uint64_t frame = 0;
  uint64_t round = 0;
  uint64_t pending_round = 0;
  LoraSpec spec;  // shapes and layout hash only matter
  Digest layout_hash;
  std::vector<float> residual;
  std::vector<float> pending;
  std::vector<float> velocity;
  std::vector<float> pending_velocity;
};

ErrorFeedback::ErrorFeedback(const LoraSpec& spec, const Digest& base_model, uint64_t frame,
                             const ErrorFeedbackOptions& options)
    : spec_(spec),
      base_model_(base_model),
      frame_(frame),
      options_(options),
      residual_(static_cast<size_t>(spec.num_parameters())),
      velocity_(options.momentum > 0 ? residual_.size() : 0) {}

double ErrorFeedback::ReplayedShare(uint64_t round) const {
  if (options_.full_rounds == 0 || round <= round_) return 1;
  const auto full = static_cast<double>(options_.full_rounds);
  const double away = static_cast<double>(round - round_);
  return std::clamp(2 - away / full, 0.0, 1.0);
}

std::vector<float> ErrorFeedback::Add(absl::Span<const float> held, absl::Span<const float> added,
                                      const SliceLayout& layout, const Replay& replay) {
  std::vector<float> sum(held.begin(), held.end());
  const auto share = static_cast<float>(replay.share);
  if (share < 1) {
    for (float& value : sum) value *= share;
  }
  double kept = 0;
  double moved = 0;
  for (const SliceRun& run : layout.runs()) {
    const auto end = static_cast<size_t>(run.offset + run.size);
    for (auto i = static_cast<size_t>(run.offset); i < end; ++i) {
      kept += static_cast<double>(sum[i]) * sum[i];
      moved += static_cast<double>(added[i]) * added[i];
    }
  }
  const double most = replay.max_norm_ratio * replay.max_norm_ratio * moved;
  const bool cap = replay.max_norm_ratio > 0 && moved > 0 && kept > most;
  const auto scale = static_cast<float>(replay.factor * (cap ? std::sqrt(most / kept) : 1));
  for (const SliceRun& run : layout.runs()) {
    const auto end = static_cast<size_t>(run.offset + run.size);
    for (auto i = static_cast<size_t>(run.offset); i < end; ++i) sum[i] = sum[i] * scale + added[i];
  }
  return sum;
}

absl::StatusOr<std::string> ErrorFeedback::Prepare(absl::Span<const float> delta,
                                                   const SliceLayout& layout,
                                                   const UpdateHeader& header,
                                                   const EncodeOptions& options) {
  if (header.layout_hash != spec_.layout_hash() || header.base_model != base_model_) {
    return absl::FailedPreconditionError(
        "the update is for another adapter layout or base model than the residual");
  }
  if (delta.size() != residual_.size() ||
      layout.adapter_size() != static_cast<int64_t>(delta.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("the update has ", delta.size(), " values, the residual ", residual_.size()));
  }
  const double share = ReplayedShare(header.round);
  std::vector<float> velocity;
  if (options_.momentum > 0) {
    // Of equal deltas it grows to 1 / (1 - m) of them.
    const double bound = options_.max_norm_ratio / (1 - options_.momentum);
    velocity = Add(velocity_, delta, layout, {share, options_.momentum, bound});
  }
  const absl::Span<const float> change = velocity.empty() ? delta : absl::MakeConstSpan(velocity);
  std::vector<float> sum =
      Add(residual_, change, layout, {share, options_.decay, options_.max_norm_ratio});
  const std::vector<float> before = velocity.empty() ? std::vector<float>() : sum;
  ASSIGN_OR_RETURN(std::string bytes,
                   EncodeUpdate(sum, layout, header, options, absl::MakeSpan(sum)));
  for (size_t i = 0; i < velocity.size(); ++i) {
    if (sum[i] != before[i]) velocity[i] = 0;  // it was sent
  }
  RoundToHalves(absl::MakeSpan(sum));
  RoundToHalves(absl::MakeSpan(velocity));
  pending_ = std::move(sum);
  pending_velocity_ = std::move(velocity);
  pending_round_ = header.round;
  return bytes;
}

void ErrorFeedback::Commit() {
  FEDGE_CHECK(has_pending(), "Commit without Prepare");
  residual_ = std::exchange(pending_, {});
  velocity_ = std::exchange(pending_velocity_, {});
  round_ = std::exchange(pending_round_, 0);
}

void ErrorFeedback::Discard() {
  pending_ = {};
  pending_velocity_ = {};
  pending_round_ = 0;
}

std::string ErrorFeedback::Serialize() const {
  ByteWriter writer;
  writer.WriteBytes(kMagic);
  writer.Write<uint8_t>(kStateVersion);
  const int flags = (has_pending() ? kPending : 0) | (velocity_.empty() ? 0 : kVelocity);
  writer.Write<uint8_t>(static_cast<uint8_t>(flags));
  writer.Write<uint16_t>(static_cast<uint16_t>(spec_.modules().size()));
  writer.WriteBytes(spec_.layout_hash().Raw());
  writer.WriteBytes(base_model_.Raw());
  writer.Write<uint64_t>(frame_);
  writer.Write<uint64_t>(round_);
  writer.Write<uint64_t>(pending_round_);
  for (const LoraModule& module : spec_.modules()) {
    writer.Write<uint16_t>(static_cast<uint16_t>(module.tensor.size()));
    writer.WriteBytes(module.tensor);
    writer.Write<uint32_t>(static_cast<uint32_t>(module.in_features));
    writer.Write<uint32_t>(static_cast<uint32_t>(module.out_features));
    writer.Write<uint32_t>(static_cast<uint32_t>(module.rank));
    writer.Write<uint32_t>(static_cast<uint32_t>(module.first_row));
    writer.Write<uint32_t>(static_cast<uint32_t>(module.tensor_rows));
  }
  WriteHalves(residual_, writer);
  WriteHalves(pending_, writer);
  WriteHalves(velocity_, writer);
  WriteHalves(pending_velocity_, writer);
  writer.Write<uint32_t>(Crc32c(writer.bytes()));
  return std::move(writer).Take();
}

absl::StatusOr<ErrorFeedback::SavedState> ErrorFeedback::Parse(absl::string_view bytes) {
  ByteReader reader(bytes);
  if (reader.ReadBytes(kMagic.size()) != kMagic) return Damaged("not such a file");
  const uint8_t version = reader.Read<uint8_t>();
  if (reader.ok() && version != kStateVersion) {
    return absl::UnimplementedError(absl::StrCat("error-feedback state: version ", version,
                                                 " is not the supported ", kStateVersion));
  }
  constexpr size_t kCrcBytes = sizeof(uint32_t);
  if (reader.remaining() < kCrcBytes) return Damaged("cut off");
  const absl::string_view body = bytes.substr(0, bytes.size() - kCrcBytes);
  uint32_t crc = 0;
  std::memcpy(&crc, bytes.data() + body.size(), kCrcBytes);
  if (crc != Crc32c(body)) return Damaged("the checksum does not match");
  SavedState state;
  const uint8_t flags = reader.Read<uint8_t>();
  const uint16_t num_modules = reader.Read<uint16_t>();
  const absl::string_view layout = reader.ReadBytes(state.layout_hash.bytes.size());
  const absl::string_view base = reader.ReadBytes(state.base_model.bytes.size());
  state.frame = reader.Read<uint64_t>();
  state.round = reader.Read<uint64_t>();
  state.pending_round = reader.Read<uint64_t>();
  std::vector<LoraModule> modules;
  for (uint16_t i = 0; i < num_modules && reader.ok(); ++i) {
    LoraModule& module = modules.emplace_back();
    module.tensor = std::string(reader.ReadBytes(reader.Read<uint16_t>()));
    module.in_features = reader.Read<uint32_t>();
    module.out_features = reader.Read<uint32_t>();
    module.rank = reader.Read<uint32_t>();
    module.first_row = reader.Read<uint32_t>();
    module.tensor_rows = reader.Read<uint32_t>();
  }
  if (!reader.ok()) return Damaged("its head is cut off");
  std::memcpy(state.layout_hash.bytes.data(), layout.data(), layout.size());
  std::memcpy(state.base_model.bytes.data(), base.data(), base.size());
  absl::StatusOr<LoraSpec> spec = LoraSpec::Create("saved", 1, std::move(modules));
  if (!spec.ok()) return Damaged("its modules are none");
  state.spec = *std::move(spec);
  const auto count = static_cast<uint64_t>(state.spec.num_parameters());
  const uint64_t phases = (flags & kPending) != 0 ? 2 : 1;
  const uint64_t kinds = (flags & kVelocity) != 0 ? 2 : 1;
  if (flags > (kPending | kVelocity) ||
      reader.remaining() != 2 * count * phases * kinds + kCrcBytes) {
    return Damaged("its length contradicts its head");
  }
  state.residual.resize(count);
  if (phases == 2) state.pending.resize(count);
  if (kinds == 2) state.velocity.resize(count);
  if (phases * kinds == 4) state.pending_velocity.resize(count);
  for (auto* values : {&state.residual, &state.pending, &state.velocity, &state.pending_velocity}) {
    if (!ReadHalves(reader, absl::MakeSpan(*values))) return Damaged("a value is not finite");
  }
  return state;
}

absl::Status ErrorFeedback::Restore(absl::string_view bytes) {
  ASSIGN_OR_RETURN(SavedState state, Parse(bytes));
  if (state.base_model != base_model_) {
    return absl::FailedPreconditionError("error-feedback state: made for another base model");
  }
  if (state.frame != frame_) {
    return absl::FailedPreconditionError(
        absl::StrCat("error-feedback state: of frame ", state.frame, ", the adapter is in frame ",
                     frame_, "; what it holds has no place there"));
  }
  if (velocity_.empty()) {
    state.velocity = {};
    state.pending_velocity = {};
  } else if (state.velocity.empty()) {
    state.velocity.resize(state.residual.size());
    state.pending_velocity.resize(state.pending.size());
  }
  if (state.layout_hash == spec_.layout_hash() && state.residual.size() == residual_.size()) {
    residual_ = std::move(state.residual);
    velocity_ = std::move(state.velocity);
    pending_ = std::move(state.pending);
    pending_velocity_ = std::move(state.pending_velocity);
    pending_round_ = state.pending_round;
  } else {
    residual_ = CommonComponents(state.spec, state.residual, spec_);
    if (!velocity_.empty()) velocity_ = CommonComponents(state.spec, state.velocity, spec_);
    Discard();
  }
  round_ = state.round;
  return absl::OkStatus();
}

}  // namespace fedge
