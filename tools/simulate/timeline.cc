#include "tools/simulate/timeline.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/types/span.h"
#include "common/base/rng.h"

namespace fedge {

std::vector<double> DrawSpeeds(const SpeedOptions& options, size_t nodes) {
  Rng rng = Rng::Stream(options.seed, "speeds");
  std::vector<double> speeds(nodes);
  for (double& speed : speeds) {
    speed = options.tokens_per_second * std::exp(options.spread * rng.Normal());
  }
  std::vector<size_t> order(nodes);
  std::iota(order.begin(), order.end(), size_t{0});
  rng.Shuffle(absl::MakeSpan(order));
  const auto slow =
      static_cast<size_t>(std::lround(options.slow_share * static_cast<double>(nodes)));
  for (size_t i = 0; i < std::min(slow, nodes); ++i) speeds[order[i]] /= options.slow_factor;
  return speeds;
}

absl::StatusOr<v1::CheckInResponse> HeldLink::CheckIn(const v1::CheckInRequest& request) {
  absl::StatusOr<v1::CheckInResponse> response = link_->CheckIn(request);
  if (response.ok() && response->has_assignment()) may_upload_ = false;
  return response;
}

absl::StatusOr<v1::QueryUploadResponse> HeldLink::QueryUpload(
    const v1::QueryUploadRequest& request) {
  if (!may_upload_) {
    holds_ = true;
    return absl::CancelledError("the node is still training, in virtual time");
  }
  return link_->QueryUpload(request);
}

}  // namespace fedge
