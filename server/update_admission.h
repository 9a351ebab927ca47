// What an encoded update must pass before it may be summed: "untrusted in, checked once".
#ifndef FEDGE_SERVER_UPDATE_ADMISSION_H_
#define FEDGE_SERVER_UPDATE_ADMISSION_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/adapter/adapter_slice.h"
#include "common/base/digest.h"
#include "common/codec/update_codec.h"
#include "server/run_plan.h"

namespace fedge {

// An update that belongs to (round, base_version) of the run, is finite and within the norm bound.
struct AdmittedUpdate {
  uint64_t round = 0;
  uint64_t base_version = 0;
  uint64_t weight = 1;   // num_examples, at most plan.max_examples_per_node
  DecodedUpdate update;  // with the layout below
  SliceLayout layout;
  double norm = 0;  // L2 as received; the values are scaled down when it was over the bound
};

// InvalidArgument: too many bytes, num_examples of 0, broken or non-finite body.
// FailedPrecondition: another round, version, base model, layout or slice. DataLoss: checksum. Cost
// and memory are in the number of values sent. Pure: safe to call from any thread.
absl::StatusOr<AdmittedUpdate> AdmitUpdate(const RunPlan& plan, uint64_t round,
                                           uint64_t base_version, absl::string_view bytes);

// A whole update as it came in, and what became of it.
struct ReceivedUpdate {
  Digest digest;  // of the bytes
  uint64_t wire_bytes = 0;
  absl::StatusOr<AdmittedUpdate> admitted;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_UPDATE_ADMISSION_H_
