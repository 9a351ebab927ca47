// The payload of an update of trellis-coded signs (grammar: proto/UPDATE_FORMAT.md). Internal to
// the codec.
#ifndef FEDGE_COMMON_CODEC_TRELLIS_PAYLOAD_H_
#define FEDGE_COMMON_CODEC_TRELLIS_PAYLOAD_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/adapter/adapter_slice.h"
#include "common/codec/update_codec.h"
#include "common/codec/update_payload.h"

namespace fedge {

// Appends the payload of all `values` [layout.size()] of the slice (magnitudes up to 65504) and
// replaces each by what the receiver will decode. Of `options`: density, seed, relaxation.
void AppendTrellisPayload(const SliceLayout& layout, const EncodeOptions& options,
                          absl::Span<float> values, std::string* out);

// As ReadPayload; the values are header.num_parameters.
absl::Status ReadTrellisPayload(absl::string_view payload, const UpdateHeader& header,
                                const SliceLayout& layout, std::vector<float>* values);

// Of a payload that ReadTrellisPayload has read.
PayloadBits TrellisPayloadBits(absl::string_view payload, const SliceLayout& layout);

// The bits of the path that each run of the slice has, likewise; runs of one group share its by
// their sizes.
std::vector<uint64_t> TrellisBitsByRun(absl::string_view payload, const SliceLayout& layout);

// Upper bound of the payload: the path has `bits_per_parameter`, what tells the groups' rates and
// scales at most a sixteenth more.
uint64_t TrellisPayloadBound(uint64_t num_parameters, double bits_per_parameter);

// The most bits a parameter, up to 1, whose bound is at most `payload_bytes`; below
// kLeastTrellisBits: none.
double TrellisBitsWithin(uint64_t num_parameters, uint64_t payload_bytes);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_TRELLIS_PAYLOAD_H_
