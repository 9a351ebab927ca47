// Error feedback on the sending side: what an update did not carry is kept and added to the next
// one (Seide et al. 2014; Stich et al. 2018). Two phases, because an update can be lost: Prepare
// encodes delta + residual and holds what was not carried as pending; Commit (the receipt came)
// makes the pending residual current; Discard (rejected or lost for good) drops it and keeps the
// residual of before Prepare. The lost delta itself is not kept: it was trained from an adapter
// that never received it, and the next round trains from a fresh one.
//
// Residuals are kept at fp16 precision (multiples of 2^-24 at the least), in memory as on disk, so
// that a restart changes no byte of later updates.
//
// Not thread-safe.
#ifndef FEDGE_COMMON_CODEC_ERROR_FEEDBACK_H_
#define FEDGE_COMMON_CODEC_ERROR_FEEDBACK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/base/digest.h"
#include "common/codec/update_codec.h"

namespace fedge {

class ErrorFeedback {
 public:
  // Residuals of another layout or base model are meaningless: the state is tagged with both.
  ErrorFeedback(const Digest& layout_hash, const Digest& base_model, uint64_t num_parameters);

  // Encodes the slice `layout` of delta + residual (both flat); outside the slice the residual
  // stays as it is. An earlier Prepare that was neither committed nor discarded counts as
  // discarded. FailedPrecondition: the header names another layout or base model; otherwise as
  // EncodeUpdate. Nothing changes on error.
  absl::StatusOr<std::string> Prepare(absl::Span<const float> delta, const SliceLayout& layout,
                                      const UpdateHeader& header, const EncodeOptions& options);
  void Commit();   // after the server's receipt; there must be a pending update
  void Discard();  // rejected: the residual of before Prepare stays

  bool has_pending() const { return !pending_.empty(); }
  absl::Span<const float> residual() const { return residual_; }

  // State for disk: tags, residual and pending residual as fp16, CRC32C. Restore replaces the state
  // or, on error, changes nothing: DataLoss when damaged, Unimplemented for another version,
  // FailedPrecondition when the tags differ from this object's.
  std::string Serialize() const;
  absl::Status Restore(absl::string_view bytes);

 private:
  Digest layout_hash_;
  Digest base_model_;
  std::vector<float> residual_;
  std::vector<float> pending_;  // empty: nothing is pending
};

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_ERROR_FEEDBACK_H_
