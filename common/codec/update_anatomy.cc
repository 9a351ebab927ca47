#include "common/codec/update_anatomy.h"

#include <algorithm>
#include <utility>

#include "common/base/status.h"
#include "common/codec/rate_control.h"
#include "common/codec/trellis_payload.h"
#include "common/codec/update_codec.h"
#include "common/codec/update_header.h"
#include "common/codec/update_payload.h"

namespace fedge {
namespace {

// The values sent of each run. `coordinates` as DecodeUpdate gives them.
std::vector<uint64_t> CountByRun(const SliceLayout& slice,
                                 const std::vector<uint32_t>& coordinates) {
  std::vector<uint64_t> counts;
  auto first = coordinates.begin();
  for (const SliceRun& run : slice.runs()) {
    auto sent = static_cast<uint64_t>(run.size);
    if (!coordinates.empty()) {
      const auto end = std::lower_bound(first, coordinates.end(), run.offset + run.size);
      sent = static_cast<uint64_t>(end - std::exchange(first, end));
    }
    counts.push_back(sent);
  }
  return counts;
}

std::vector<UpdateAnatomy::Module> ByModule(const SliceLayout& slice,
                                            absl::Span<const uint64_t> by_run) {
  std::vector<UpdateAnatomy::Module> modules;
  for (size_t i = 0; i < by_run.size(); ++i) {
    const SliceRun& run = slice.runs()[i];
    const auto module = static_cast<size_t>(run.module);
    if (modules.size() <= module) modules.resize(module + 1);
    (run.is_b ? modules[module].b : modules[module].a) += by_run[i];
  }
  return modules;
}

}  // namespace

void UpdateAnatomy::Add(const UpdateAnatomy& other) {
  parameters += other.parameters;
  header_bits += other.header_bits;
  position_bits += other.position_bits;
  scale_bits += other.scale_bits;
  value_bits += other.value_bits;
  floor_bits += other.floor_bits;
  modules.resize(std::max(modules.size(), other.modules.size()));
  for (size_t i = 0; i < other.modules.size(); ++i) {
    modules[i].a += other.modules[i].a;
    modules[i].b += other.modules[i].b;
  }
}

absl::StatusOr<UpdateAnatomy> AnatomyOf(absl::string_view bytes, const Digest& layout_hash,
                                        const SliceLayout& slice) {
  ASSIGN_OR_RETURN(const DecodedUpdate update, DecodeUpdate(bytes, layout_hash, slice));
  const UpdateHeader& header = update.header;
  const absl::string_view payload = bytes.substr(kUpdateHeaderBytes);
  UpdateAnatomy anatomy;
  anatomy.parameters = header.num_parameters;
  const auto parameters = static_cast<double>(header.num_parameters);
  PayloadBits bits;
  if (header.support == UpdateSupport::kTrellis) {
    bits = TrellisPayloadBits(payload, slice);
    anatomy.modules = ByModule(slice, TrellisBitsByRun(payload, slice));
    anatomy.floor_bits = 8.0 * static_cast<double>(payload.size()) - bits.head - bits.scales;
  } else {
    anatomy.modules = ByModule(slice, CountByRun(slice, update.coordinates));
    std::vector<uint32_t> positions;
    std::vector<float> values;
    RETURN_IF_ERROR(ReadPayload(payload, header, slice, &positions, &values, &bits));
    const double density = static_cast<double>(header.num_nonzero) / parameters;
    anatomy.floor_bits = header.support == UpdateSupport::kTopK
                             ? parameters * FloorBits(density, header.value_bits)
                             : static_cast<double>(header.num_nonzero) * header.value_bits;
  }
  anatomy.header_bits = 8.0 * kUpdateHeaderBytes + bits.head;
  anatomy.position_bits = bits.positions;
  anatomy.scale_bits = bits.scales;
  anatomy.value_bits = 8.0 * static_cast<double>(bytes.size()) - anatomy.header_bits -
                       anatomy.position_bits - anatomy.scale_bits;
  return anatomy;
}

}  // namespace fedge
