// The payload of an adapter delta: integers in the order of an adapter's flat buffer, run by run (a
// run is A or B of a module) (proto/ADAPTER_FORMAT.md). Internal to the codec: everybody else uses
// adapter_delta.h.
//
// All decisions go through one adaptive range coder: near the entropy from one value in a thousand
// to a dense sum of many deltas, without a choice between modes.
#ifndef FEDGE_COMMON_CODEC_ADAPTER_DELTA_PAYLOAD_H_
#define FEDGE_COMMON_CODEC_ADAPTER_DELTA_PAYLOAD_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/adapter/lora_adapter.h"

namespace fedge {

// Appends `units` [num_parameters], each within +-kMaxAdapterUnits.
void AppendDeltaPayload(const LoraSpec& spec, absl::Span<const int32_t> units, std::string* out);

// Adds what `payload` holds to `units` [num_parameters]; `num_nonzero` must be right.
// InvalidArgument: another count, a value or a sum beyond kMaxAdapterUnits, bytes left over; the
// units are then undefined. Allocates nothing.
absl::Status AddDeltaPayload(const LoraSpec& spec, absl::string_view payload, uint64_t num_nonzero,
                             absl::Span<int32_t> units);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_ADAPTER_DELTA_PAYLOAD_H_
