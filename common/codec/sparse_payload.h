// The payload of a top-k update: blocks of 131,072 coordinates, each with its own Rice parameter
// and base magnitude (grammar: proto/UPDATE_FORMAT.md). Internal to the codec.
#ifndef FEDGE_COMMON_CODEC_SPARSE_PAYLOAD_H_
#define FEDGE_COMMON_CODEC_SPARSE_PAYLOAD_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace fedge {

inline constexpr uint64_t kSparseBlockCoordinates = uint64_t{1} << 17;

// Appends the payload that carries `indices` (ascending; magnitudes in [2^-24, 65504]) of `values`.
// Where `residual` is not empty, the decoded values are subtracted from it.
void AppendSparsePayload(absl::Span<const float> values, absl::Span<const uint32_t> indices,
                         int value_bits, absl::Span<float> residual, std::string* out);

// Appends the payload's coordinates and values. InvalidArgument when the payload breaks the
// grammar or holds another number of values than `num_nonzero`; both are then undefined.
absl::Status ReadSparsePayload(absl::string_view payload, uint64_t num_parameters,
                               uint64_t num_nonzero, int value_bits,
                               std::vector<uint32_t>* coordinates, std::vector<float>* values);

// Upper bound of the payload for `count` of `num_parameters` values.
uint64_t SparsePayloadBound(uint64_t num_parameters, uint64_t count, int value_bits);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_SPARSE_PAYLOAD_H_
