// The one public face of the update format (proto/UPDATE_FORMAT.md): a flat vector of fp32 changes
// of an adapter's parameters <-> bytes on the wire.
//
// Untrusted input: DecodeUpdate allocates only what the receiver already expects
// (`num_parameters`), checks every length, count and value, and returns a typed error for anything
// else.
#ifndef FEDGE_COMMON_CODEC_UPDATE_CODEC_H_
#define FEDGE_COMMON_CODEC_UPDATE_CODEC_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/base/digest.h"

namespace fedge {

enum class UpdateEncoding : uint8_t {
  kDenseFp16 = 1,  // every value as IEEE half: 2 bytes a parameter
  kTopK = 2,       // the k largest magnitudes: Golomb-Rice coded gaps, block-quantized values
};

struct EncodeOptions {
  UpdateEncoding encoding = UpdateEncoding::kTopK;
  double density = 0.05;  // kTopK: fraction of parameters sent, (0, 1]; at least one is sent
  int value_bits = 4;     // kTopK: 2, 4 or 8 bits a value, sign included
};

// InvalidArgument for an encoding, density or width that EncodeUpdate does not know.
absl::Status CheckEncodeOptions(const EncodeOptions& options);

// What an update is about; travels in the header, protected by its checksum.
struct UpdateHeader {
  UpdateEncoding encoding = UpdateEncoding::kDenseFp16;
  uint64_t round = 0;
  uint64_t base_version = 0;  // adapter version the change is relative to
  uint64_t num_examples = 0;  // the averaging weight
  Digest layout_hash;         // LoraSpec::layout_hash
  Digest base_model;          // SHA-256 of the base model file
  uint64_t num_parameters = 0;
  uint64_t num_nonzero = 0;  // values present
  int value_bits = 0;        // of one value, sign included; 16 in kDenseFp16
};

// Upper bound of EncodeUpdate's size for `num_parameters` (to reserve room and limit uploads).
// Options that EncodeUpdate refuses get the bound of the costliest top-k options.
uint64_t EncodedSizeBound(uint64_t num_parameters, const EncodeOptions& options);

// Encodes `delta` (size = header.num_parameters; encoding, num_nonzero and value_bits are filled
// in). Deterministic: of equal magnitudes the lower index is sent first. Magnitudes below 2^-24 are
// never sent. If `residual` is not empty (same size; may be `delta`'s own memory) it receives
// delta - what the receiver will decode. InvalidArgument: bad options, sizes that differ, a value
// that is not finite or beyond +-65504 (what a half holds); `residual` is untouched then.
absl::StatusOr<std::string> EncodeUpdate(absl::Span<const float> delta, UpdateHeader header,
                                         const EncodeOptions& options, absl::Span<float> residual);

// Reads and checks the header only. InvalidArgument (not an update, contradicting fields), DataLoss
// (checksum), Unimplemented (version, encoding).
absl::StatusOr<UpdateHeader> ReadUpdateHeader(absl::string_view bytes);

struct DecodedUpdate {
  UpdateHeader header;
  std::vector<float> values;  // dense, num_parameters; zero where nothing was sent
};

// FailedPrecondition when the header's num_parameters or layout hash is not the expected one;
// otherwise as ReadUpdateHeader, for the payload too, and InvalidArgument for a payload of another
// length, one that breaks the grammar or one that holds a non-finite value.
absl::StatusOr<DecodedUpdate> DecodeUpdate(absl::string_view bytes, const Digest& expected_layout,
                                           uint64_t expected_parameters);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_UPDATE_CODEC_H_
