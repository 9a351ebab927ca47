#include "server/update_source.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/base/status.h"

namespace fedge {
namespace {

void Clip(double rms, AdmittedUpdate& update) {
  ClipTo(rms * std::sqrt(static_cast<double>(update.layout.size())), update);
}

}  // namespace

void HeldUpdates::Add(absl::string_view node, const Digest& digest, AdmittedUpdate update) {
  const auto is_before = [&](const HeldUpdate& held, absl::string_view id) {
    return std::pair<absl::string_view, uint64_t>(held.node, held.round) <
           std::pair(id, update.round);
  };
  const auto place = std::lower_bound(updates_.begin(), updates_.end(), node, is_before);
  HeldUpdate held{.node = std::string(node),
                  .round = update.round,
                  .base_version = update.base_version,
                  .digest = digest,
                  .rms = update.rms(),
                  .update = nullptr};
  if (reader_ == nullptr) held.update = std::make_shared<AdmittedUpdate>(std::move(update));
  updates_.insert(place, std::move(held));
}

absl::StatusOr<std::shared_ptr<const AdmittedUpdate>> HeldUpdates::Read(size_t i) const {
  if (updates_[i].update != nullptr) return updates_[i].update;
  ASSIGN_OR_RETURN(AdmittedUpdate update, reader_(updates_[i]));
  if (limit_ > 0) Clip(limit_, update);
  return std::make_shared<const AdmittedUpdate>(std::move(update));
}

void HeldUpdates::ClipToMedian(double ratio) {
  std::vector<double> rms;
  for (const HeldUpdate& held : updates_) rms.push_back(held.rms);
  const double limit = ratio * LowerMedian(std::move(rms));
  if (!(limit > 0)) return;
  limit_ = limit;
  for (const HeldUpdate& held : updates_) {
    if (held.update != nullptr) Clip(limit, *held.update);
  }
}

}  // namespace fedge
