// What an encoded update must pass before it may be summed: "untrusted in, checked once".
#ifndef FEDGE_SERVER_UPDATE_ADMISSION_H_
#define FEDGE_SERVER_UPDATE_ADMISSION_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/adapter/adapter_slice.h"
#include "common/base/digest.h"
#include "common/codec/update_codec.h"
#include "server/run_plan.h"

namespace fedge {

// An update that belongs to (round, base_version) of the run and is finite.
struct AdmittedUpdate {
  uint64_t round = 0;
  uint64_t base_version = 0;
  uint64_t weight = 1;   // num_examples, at most plan.max_examples_per_node
  DecodedUpdate update;  // with the layout below
  SliceLayout layout;
  double norm = 0;  // L2; smaller after clipping

  double rms() const;  // the norm by the root of the slice's size: slices of all sizes compare
};

// InvalidArgument: too many bytes, num_examples of 0, broken or non-finite body.
// FailedPrecondition: another round, version, base model, layout or slice. DataLoss: checksum. Cost
// and memory are in the number of values sent. Pure: safe to call from any thread.
absl::StatusOr<AdmittedUpdate> AdmitUpdate(const RunPlan& plan, uint64_t round,
                                           uint64_t base_version, absl::string_view bytes);

// The norm bound. It follows from the state a round starts from, so it is the same for all updates
// of the round in whatever order they come, and after a restart: `typical_rms` is the median rms()
// of the round that published the version (0: not known, no bound but a fixed one). Factors
// trained in turn have norms of their own: NormSlot says which of a version's two medians counts.
size_t NormSlot(const AdapterSlice& slice);
// L2; infinity: no bound.
double NormLimit(const AdmissionPlan& admission, double typical_rms, const SliceLayout& layout);
// Multiplies the values.
void ScaleBy(double factor, AdmittedUpdate& update);
// Scales an update whose norm is above `limit` down to it.
void ClipTo(double limit, AdmittedUpdate& update);
// Clips, or returns InvalidArgument where the plan says reject.
absl::Status BoundNorm(const AdmissionPlan& admission, double typical_rms, AdmittedUpdate& update);
// Of an even number the smaller of the two in the middle; 0 of none.
double LowerMedian(std::vector<double> values);

// A whole update as it came in, and what became of it.
struct ReceivedUpdate {
  Digest digest;  // of the bytes
  uint64_t wire_bytes = 0;
  absl::StatusOr<AdmittedUpdate> admitted;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_UPDATE_ADMISSION_H_
