// The payload of an update: where its values are and what they are (grammar:
// proto/UPDATE_FORMAT.md). Internal to the codec.
#ifndef FEDGE_COMMON_CODEC_UPDATE_PAYLOAD_H_
#define FEDGE_COMMON_CODEC_UPDATE_PAYLOAD_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/adapter/adapter_slice.h"
#include "common/codec/update_codec.h"

namespace fedge {

// Appends the payload of `values` (magnitudes up to 65504) at `positions` of the slice (ascending;
// empty when every coordinate is sent, not written when seeded), and replaces each value by what
// the receiver will decode. Of `options`: support, value_bits, stochastic, rounding_seed.
void AppendPayload(const SliceLayout& layout, absl::Span<const uint32_t> positions,
                   const EncodeOptions& options, absl::Span<float> values, std::string* out);

// What a payload's sections take; the rest are values.
struct PayloadBits {
  double head = 0;
  double positions = 0;
  double scales = 0;
};

// Reads what `header` (checked, of this slice) announces. `positions` stay empty when every
// coordinate was sent. `bits` (may be null): how much it found where. InvalidArgument when the
// payload breaks the grammar.
absl::Status ReadPayload(absl::string_view payload, const UpdateHeader& header,
                         const SliceLayout& layout, std::vector<uint32_t>* positions,
                         std::vector<float>* values, PayloadBits* bits = nullptr);

// Upper bound of the payload for `count` of `num_parameters` values.
uint64_t PayloadBound(uint64_t num_parameters, uint64_t count, const EncodeOptions& options);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_UPDATE_PAYLOAD_H_
