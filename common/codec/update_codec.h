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
  double density = 0.05;  // kTopK: fraction of parameters sent, (0, 1]
  int value_bits =
      4;  // kTopK: 2, 4 or 8 bits a value (sign included), one fp16 scale a block of 64
};

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
};

// Upper bound of EncodeUpdate's size for `num_parameters` (to reserve room and limit uploads).
uint64_t EncodedSizeBound(uint64_t num_parameters, const EncodeOptions& options);

// Encodes `delta` (size = header.num_parameters; encoding and num_nonzero are filled in).
// Deterministic. If `residual` is not empty (same size) it receives delta - what the receiver will
// decode. InvalidArgument: non-finite value, bad options.
absl::StatusOr<std::string> EncodeUpdate(absl::Span<const float> delta, UpdateHeader header,
                                         const EncodeOptions& options, absl::Span<float> residual);

// Reads and checks the header only. InvalidArgument, DataLoss (checksum), Unimplemented (version,
// encoding).
absl::StatusOr<UpdateHeader> ReadUpdateHeader(absl::string_view bytes);

struct DecodedUpdate {
  UpdateHeader header;
  std::vector<float> values;  // dense, num_parameters; zero where nothing was sent
};

// FailedPrecondition when the header's num_parameters or layout hash is not the expected one;
// otherwise as ReadUpdateHeader, and InvalidArgument for a body that breaks the grammar or holds a
// non-finite value.
absl::StatusOr<DecodedUpdate> DecodeUpdate(absl::string_view bytes, const Digest& expected_layout,
                                           uint64_t expected_parameters);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_UPDATE_CODEC_H_
