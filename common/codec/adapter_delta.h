// The bytes in which global adapters travel from the server to devices (proto/ADAPTER_FORMAT.md):
// whole values of one version, or the change from one version to another.
//
// Changes are integers: a version's value is start + units * 2^-24, rounded to fp32 once, so that
// any chain, any sum and any order of changes gives every device the same bits.
//
// Untrusted input: lengths, identities and checksums are checked before anything else; nothing is
// allocated beyond what the receiver's own adapter needs.
#ifndef FEDGE_COMMON_CODEC_ADAPTER_DELTA_H_
#define FEDGE_COMMON_CODEC_ADAPTER_DELTA_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/digest.h"

namespace fedge {

inline constexpr size_t kAdapterHeaderBytes = 124;
// One unit of a change; no value moves further than 64 from where it started.
inline constexpr double kAdapterUnit = 0x1p-24;
inline constexpr int32_t kMaxAdapterUnits = 1 << 30;

enum class AdapterEncoding : uint8_t {
  kFp32 = 1,   // values, exact
  kFp16 = 2,   // values, rounded to IEEE halves
  kDelta = 3,  // units to add
  // 4 was a trellis of one rate for all
  kTrellis = 5,  // the same as trellis-coded signs, for the smallest changes
};

// Whether content of this encoding is added to what a device has.
inline bool IsDelta(AdapterEncoding encoding) {
  return encoding == AdapterEncoding::kDelta || encoding == AdapterEncoding::kTrellis;
}

struct AdapterHeader {
  AdapterEncoding encoding = AdapterEncoding::kDelta;
  uint64_t from_version = 0;  // delta: what it is added to; values: to_version
  uint64_t to_version = 0;
  Digest base_model;
  uint32_t values_crc = 0;  // AdapterCrc of the values at to_version
  // Set by the encoder and checked by the decoder.
  Digest layout_hash;
  uint64_t num_parameters = 0;
  uint64_t num_nonzero = 0;  // delta: units that are not zero; values: num_parameters
};

// CRC-32C of the values as little-endian fp32: what identifies an adapter's content.
uint32_t AdapterCrc(absl::Span<const float> values);

// values[i] = fp32(start[i] + units[i] * 2^-24); all three of one size.
void ApplyUnits(absl::Span<const float> start, absl::Span<const int32_t> units,
                absl::Span<float> values);

// Upper bound of the bytes of any content of an adapter with that many parameters.
uint64_t AdapterContentBound(uint64_t num_parameters);

// `header.encoding` is kFp32 or kFp16. `values` [num_parameters] must be finite, for kFp16 at most
// 65504 in magnitude: InvalidArgument names the first that is not. Sets header.values_crc to that
// of the values as a decoder gives them.
absl::StatusOr<std::string> EncodeAdapterValues(const LoraSpec& spec, AdapterHeader header,
                                                absl::Span<const float> values);
// `units` [num_parameters], each within +-kMaxAdapterUnits (CHECKed).
std::string EncodeAdapterDelta(const LoraSpec& spec, AdapterHeader header,
                               absl::Span<const int32_t> units);

// A change of which every value has the sign of a path through a trellis and its group's magnitude.
struct TrellisChange {
  std::string payload;
  std::vector<int32_t> units;  // [num_parameters], what a decoder adds
};
// The nearest one to `change` [num_parameters], times `relaxation` (EncodeOptions), in at most
// `bits_per_parameter` and 3 %. `to_version` seeds the code. InvalidArgument names a value that is
// not finite or beyond +-65504. OutOfRange: a group's magnitude is beyond kMaxAdapterUnits.
absl::StatusOr<TrellisChange> QuantizeToTrellis(const LoraSpec& spec, uint64_t to_version,
                                                double bits_per_parameter, double relaxation,
                                                absl::Span<const float> change);
// `change` is of header.to_version.
std::string EncodeAdapterTrellis(const LoraSpec& spec, AdapterHeader header,
                                 const TrellisChange& change);

// InvalidArgument: not an adapter content, a field out of range, another length than announced.
// Unimplemented: another format version or encoding. DataLoss: a checksum does not match.
absl::StatusOr<AdapterHeader> ReadAdapterHeader(absl::string_view bytes);

// As ReadAdapterHeader; FailedPrecondition: another adapter shape or base model. Values are checked
// against the header's values_crc (DataLoss) and must be finite (InvalidArgument). `values`
// [num_parameters] is undefined on error.
absl::StatusOr<AdapterHeader> DecodeAdapterValues(const LoraSpec& spec, const Digest& base_model,
                                                  absl::string_view bytes,
                                                  absl::Span<float> values);
// Adds to `units` [num_parameters]; undefined on error. Codes as above; InvalidArgument also when a
// sum leaves +-kMaxAdapterUnits. The caller compares versions and, after ApplyUnits, values_crc.
absl::StatusOr<AdapterHeader> AddAdapterDelta(const LoraSpec& spec, const Digest& base_model,
                                              absl::string_view bytes, absl::Span<int32_t> units);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_ADAPTER_DELTA_H_
