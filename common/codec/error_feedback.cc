#include "common/codec/error_feedback.h"

#include <cmath>
#include <utility>

#include "common/base/byte_io.h"
#include "common/base/status.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

constexpr absl::string_view kMagic = "FDGR";
constexpr uint8_t kStateVersion = 1;

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

}  // namespace

ErrorFeedback::ErrorFeedback(const Digest& layout_hash, const Digest& base_model,
                             uint64_t num_parameters)
    : layout_hash_(layout_hash),
      base_model_(base_model),
      residual_(static_cast<size_t>(num_parameters)) {}

absl::StatusOr<std::string> ErrorFeedback::Prepare(absl::Span<const float> delta,
                                                   const SliceLayout& layout,
                                                   const UpdateHeader& header,
                                                   const EncodeOptions& options) {
  if (header.layout_hash != layout_hash_ || header.base_model != base_model_) {
    return absl::FailedPreconditionError(
        "the update is for another adapter layout or base model than the residual");
  }
  if (delta.size() != residual_.size() ||
      layout.adapter_size() != static_cast<int64_t>(delta.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("the update has ", delta.size(), " values, the residual ", residual_.size()));
  }
  std::vector<float> sum = residual_;
  for (const SliceRun& run : layout.runs()) {
    for (int64_t i = run.offset; i < run.offset + run.size; ++i) {
      sum[static_cast<size_t>(i)] += delta[static_cast<size_t>(i)];
    }
  }
  ASSIGN_OR_RETURN(std::string bytes,
                   EncodeUpdate(sum, layout, header, options, absl::MakeSpan(sum)));
  // As it will come back from disk.
  for (float& value : sum) value = HalfToFloat(FloatToHalf(value));
  pending_ = std::move(sum);
  return bytes;
}

void ErrorFeedback::Commit() {
  FEDGE_CHECK(has_pending(), "Commit without Prepare");
  residual_ = std::exchange(pending_, {});
}

void ErrorFeedback::Discard() { pending_ = {}; }

std::string ErrorFeedback::Serialize() const {
  ByteWriter writer;
  writer.WriteBytes(kMagic);
  writer.Write<uint8_t>(kStateVersion);
  writer.Write<uint8_t>(has_pending() ? 1 : 0);
  writer.Write<uint16_t>(0);
  writer.Write<uint64_t>(residual_.size());
  writer.WriteBytes(layout_hash_.Raw());
  writer.WriteBytes(base_model_.Raw());
  WriteHalves(residual_, writer);
  WriteHalves(pending_, writer);
  writer.Write<uint32_t>(Crc32c(writer.bytes()));
  return std::move(writer).Take();
}

absl::Status ErrorFeedback::Restore(absl::string_view bytes) {
  const auto damaged = [](absl::string_view what) {
    return absl::DataLossError(
        absl::StrCat("error-feedback state: ", what, "; delete the file to start without it"));
  };
  ByteReader reader(bytes);
  if (reader.ReadBytes(kMagic.size()) != kMagic) return damaged("not such a file");
  const uint8_t version = reader.Read<uint8_t>();
  if (reader.ok() && version != kStateVersion) {
    return absl::UnimplementedError(absl::StrCat("error-feedback state: version ", version,
                                                 " is not the supported ", kStateVersion));
  }
  const uint8_t pending_flag = reader.Read<uint8_t>();
  const uint16_t reserved = reader.Read<uint16_t>();
  const uint64_t count = reader.Read<uint64_t>();
  const absl::string_view layout = reader.ReadBytes(layout_hash_.bytes.size());
  const absl::string_view base = reader.ReadBytes(base_model_.bytes.size());
  if (!reader.ok()) return damaged("cut off");
  uint32_t crc = 0;
  if (reader.remaining() < sizeof(crc)) return damaged("cut off");
  ByteReader tail(bytes.substr(bytes.size() - sizeof(crc)));
  crc = tail.Read<uint32_t>();
  if (crc != Crc32c(bytes.substr(0, bytes.size() - sizeof(crc)))) {
    return damaged("the checksum does not match");
  }
  if (count != residual_.size() || layout != layout_hash_.Raw() || base != base_model_.Raw()) {
    return absl::FailedPreconditionError(
        "error-feedback state: made for another adapter layout or base model");
  }
  const uint64_t copies = 1 + uint64_t{pending_flag};
  if (pending_flag > 1 || reserved != 0 || reader.remaining() != copies * 2 * count + sizeof(crc)) {
    return damaged("its length contradicts its head");
  }
  std::vector<float> residual(residual_.size());
  std::vector<float> pending(pending_flag == 1 ? residual_.size() : 0);
  if (!ReadHalves(reader, absl::MakeSpan(residual)) ||
      !ReadHalves(reader, absl::MakeSpan(pending))) {
    return damaged("a value is not finite");
  }
  residual_ = std::move(residual);
  pending_ = std::move(pending);
  return absl::OkStatus();
}

}  // namespace fedge
