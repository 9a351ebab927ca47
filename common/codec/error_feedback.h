// Error feedback on the sending side: what an update did not carry is kept and added to the next
// one (Seide et al. 2014; Stich et al. 2018). Two phases, because an update can be lost: Prepare
// encodes delta + residual and holds what was not carried as pending; Commit (the receipt came)
// makes the pending residual current; Discard (rejected or lost for good) drops it and keeps the
// residual of before Prepare. The lost delta itself is not kept: it was trained from an adapter
// that never received it, and the next round trains from a fresh one.
//
// A residual is worth replaying in the frame and near the time it was computed in:
//  - it is tagged with base model, layout and frame (a server that rotates the adapter's
//    coordinates counts the frame up); of another frame or base it is dropped, of another rank the
//    components that both have are kept,
//  - a node that was away for long replays less of it, and never more than a few deltas' worth,
//  - coordinates outside an update's slice keep theirs.
//
// Momentum correction (DGC; Lin, Han, Mao, Wang, Dally 2018, section 3.2), where it is asked for:
// momentum on the sending side, of each coordinate's own changes, sent or not. Velocity
// u <- m u + delta; what is encoded is u + residual. Momentum after the server's sum instead would
// repeat the few values of one round for many rounds and know nothing of those held back. Where a
// value was sent u starts again at 0 (momentum factor masking): the momentum that waited there with
// it is spent. u shares the residual's phases, tags and rules; outside a slice it stays.
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
#include "common/adapter/adapter_slice.h"
#include "common/base/digest.h"
#include "common/codec/update_codec.h"

namespace fedge {

struct ErrorFeedbackOptions {
  // Of a residual this many rounds old everything is replayed; of one twice as old nothing, in
  // between linearly less. 0: no decay.
  uint64_t full_rounds = 25;
  // The residual's L2 norm inside the slice is at most this many times the delta's. 0: no bound.
  double max_norm_ratio = 3;
  // What a round leaves of the residual, [0, 1]: 1 sends everything sooner or later, less forgets
  // what has waited, which is old news in a model that moves on.
  double decay = 1;
  // m of the momentum correction, [0, 1). The velocity has the residual's decay and its bound
  // over 1 - m. 0: off.
  double momentum = 0;
};

class ErrorFeedback {
 public:
  // Nothing held back yet. `frame`: of the coordinates of this adapter.
  ErrorFeedback(const LoraSpec& spec, const Digest& base_model, uint64_t frame,
                const ErrorFeedbackOptions& options = {});

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
  absl::Span<const float> velocity() const { return velocity_; }  // empty without momentum

  // State for disk: tags, the modules' shapes, residual, velocity and what of both is pending as
  // fp16, CRC32C. A state without velocity gives one of zeros, without momentum it is dropped.
  // Restore replaces the state or, on error, changes nothing: DataLoss when damaged, Unimplemented
  // for another version, FailedPrecondition for another base model or frame. The state of another
  // layout gives the components of the modules that both have; its pending update is dropped.
  std::string Serialize() const;
  absl::Status Restore(absl::string_view bytes);

 private:
  struct SavedState;
  static absl::StatusOr<SavedState> Parse(absl::string_view bytes);

  // What of the residual is replayed in `round`: 1 down to 0.
  double ReplayedShare(uint64_t round) const;
  // `held` times `share`; inside the slice bounded in norms of `added`, times `factor`, plus
  // `added`.
  struct Replay {
    double share;
    double factor;
    double max_norm_ratio;  // 0: none
  };
  static std::vector<float> Add(absl::Span<const float> held, absl::Span<const float> added,
                                const SliceLayout& layout, const Replay& replay);

  LoraSpec spec_;
  Digest base_model_;
  uint64_t frame_;
  ErrorFeedbackOptions options_;
  std::vector<float> residual_;
  std::vector<float> velocity_;  // empty without momentum
  uint64_t round_ = 0;           // of the last committed update; 0: none
  std::vector<float> pending_;   // empty: nothing is pending
  std::vector<float> pending_velocity_;
  uint64_t pending_round_ = 0;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_ERROR_FEEDBACK_H_
