// The one public face of the update format (proto/UPDATE_FORMAT.md): the changes of a slice of an
// adapter's parameters <-> bytes on the wire.
//
// Untrusted input: DecodeUpdate checks every length, count and value, allocates in the number of
// values that the bytes can hold and the receiver's slice allows, and returns a typed error for
// anything else.
#ifndef FEDGE_COMMON_CODEC_UPDATE_CODEC_H_
#define FEDGE_COMMON_CODEC_UPDATE_CODEC_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/adapter/adapter_slice.h"
#include "common/base/digest.h"

namespace fedge {

// Which coordinates of the slice are sent.
enum class UpdateSupport : uint8_t {
  kDense = 0,   // all
  kTopK = 1,    // the largest magnitudes
  kSeeded = 2,  // a pseudo-random set that both sides derive from a seed: no index bytes
  // 3 was a trellis of one rate for all
  kTrellis = 4,  // all, as signs of which several share a bit (trellis_code.h)
};

// Whether it is one of the above.
bool IsUpdateSupport(UpdateSupport support);

// "dense", "top-k", "seeded", "trellis"; the numbers of unknown ones.
std::string UpdateSupportName(UpdateSupport support);

inline constexpr double kLeastTrellisBits = 1.0 / 64;  // a value, of a trellis

struct EncodeOptions {
  UpdateSupport support = UpdateSupport::kTopK;
  // kTopK, kSeeded: share of the slice, (0, 1]; at least one is sent. kTrellis: bits a value.
  double density = 0.05;
  bool per_run = false;  // kTopK: the same share of each run; false: one threshold for all
  // Of one value, sign included: 1, 2, 3, 4, 8, or 16 (IEEE half). kTrellis: only the sign.
  int value_bits = 2;
  // kTrellis: what is sent is this many times the nearest point. 1 leaves the smallest residual;
  // with error feedback more of it, below 2, makes values wait less and adds noise, which averages
  // out over nodes.
  double relaxation = 1;
  // Unbiased stochastic rounding, for runs without error feedback; otherwise the nearest value.
  bool stochastic = false;
  uint64_t seed = 0;           // of the seeded support, the trellis; travels in the header
  uint64_t rounding_seed = 0;  // of stochastic rounding: a counter-based stream
  // Not 0: the density is chosen so that the update is at most this long and at least 95 % of it
  // (a trellis 90 %), where not every value fits; `density` is then ignored, as this
  // is by kDense.
  uint64_t budget_bytes = 0;
};

// The closed form of the budget: the options with the density at which the entropy of independent
// positions and values, H(d) + d b, fills `budget_bytes`. EncodeUpdate starts from it.
EncodeOptions PlanRate(uint64_t budget_bytes, uint64_t num_parameters, EncodeOptions options);

// InvalidArgument for a support, density or width that EncodeUpdate does not know.
absl::Status CheckEncodeOptions(const EncodeOptions& options);

// What an update is about; travels in the header, protected by its checksum.
struct UpdateHeader {
  uint64_t round = 0;
  uint64_t base_version = 0;  // adapter version the change is relative to
  uint64_t num_examples = 0;  // the averaging weight
  Digest layout_hash;         // LoraSpec::layout_hash
  Digest base_model;          // SHA-256 of the base model file
  // What EncodeUpdate fills in.
  AdapterSlice slice;
  uint64_t num_parameters = 0;  // coordinates of the slice
  UpdateSupport support = UpdateSupport::kDense;
  int value_bits = 0;        // of one value, sign included
  uint64_t seed = 0;         // of the seeded support, the trellis
  uint64_t num_nonzero = 0;  // values present
};

// Upper bound of EncodeUpdate's size for a slice of `num_parameters` coordinates (to reserve room
// and limit uploads). Options that EncodeUpdate refuses get the bound of the costliest ones.
uint64_t EncodedSizeBound(uint64_t num_parameters, const EncodeOptions& options);

// Encodes what `delta` (flat: [layout.adapter_size()]) holds inside the slice. Deterministic: of
// equal magnitudes the lower index is sent first; top-k never sends magnitudes below 2^-24. If
// `residual` is not empty (flat too; may be `delta`'s own memory) it receives delta - what the
// receiver will decode inside the slice and keeps its values outside. Every decoded value is a
// multiple of 2^-24. InvalidArgument: bad options, sizes that differ, a value of the slice that is
// not finite or beyond +-65504 (what a half holds). ResourceExhausted: not one value fits the
// budget. `residual` is untouched then.
absl::StatusOr<std::string> EncodeUpdate(absl::Span<const float> delta, const SliceLayout& layout,
                                         UpdateHeader header, const EncodeOptions& options,
                                         absl::Span<float> residual);

// Reads and checks the header only. InvalidArgument (not an update, contradicting fields), DataLoss
// (checksum), Unimplemented (version, support).
absl::StatusOr<UpdateHeader> ReadUpdateHeader(absl::string_view bytes);

struct DecodedUpdate {
  UpdateHeader header;
  // In the flat adapter, strictly ascending; empty when every coordinate of the slice was sent.
  std::vector<uint32_t> coordinates;
  std::vector<float> values;  // [header.num_nonzero]
};

// FailedPrecondition when the header's layout hash, slice or number of coordinates is not the
// expected one; otherwise as ReadUpdateHeader, for the payload too, and InvalidArgument for a
// payload of another length, one that breaks the grammar or one that holds a non-finite value.
// Memory: 8 bytes for each value sent.
absl::StatusOr<DecodedUpdate> DecodeUpdate(absl::string_view bytes, const Digest& expected_layout,
                                           const SliceLayout& expected_slice);

// flat[layout.adapter_size()] += factor * update, O(values sent). `update` was decoded with
// `layout`.
void AddUpdate(const DecodedUpdate& update, const SliceLayout& layout, float factor,
               absl::Span<float> flat);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_UPDATE_CODEC_H_
