// Error feedback on the sending side: what an update did not carry is kept and added to the next
// one (Seide et al. 2014; Stich et al. 2018). Two phases, because an update can be lost: Prepare
// encodes delta + residual and holds the new residual as pending; Commit (receipt came) makes it
// current; Discard (the update was rejected or lost for good) keeps everything: the old residual
// plus the delta that never arrived is dropped or kept by the caller's choice.
#ifndef FEDGE_COMMON_CODEC_ERROR_FEEDBACK_H_
#define FEDGE_COMMON_CODEC_ERROR_FEEDBACK_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/digest.h"
#include "common/codec/update_codec.h"

namespace fedge {

class ErrorFeedback {
 public:
  // Residuals of another layout or base model are meaningless: the state is tagged with both.
  ErrorFeedback(const Digest& layout_hash, const Digest& base_model, uint64_t num_parameters);

  // Encodes delta + residual.
  absl::StatusOr<std::string> Prepare(absl::Span<const float> delta, const UpdateHeader& header,
                                      const EncodeOptions& options);
  void Commit();   // after the server's receipt
  void Discard();  // rejected: the residual of before Prepare stays

  absl::Span<const float> residual() const { return residual_; }

  // State for disk (fp16 values, tags, CRC32C). Restore: DataLoss when damaged; FailedPrecondition
  // when the tags differ from this object's.
  std::string Serialize() const;
  absl::Status Restore(absl::string_view bytes);

 private:
  Digest layout_hash_;
  Digest base_model_;
  std::vector<float> residual_;
  std::vector<float> pending_;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_ERROR_FEEDBACK_H_
