#include "server/update_source.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace fedge {

void HeldUpdates::Add(absl::string_view node, AdmittedUpdate update) {
  const auto is_before = [&](const auto& held, absl::string_view id) {
    return std::pair<absl::string_view, uint64_t>(held.first, held.second->round) <
           std::pair(id, update.round);
  };
  const auto place = std::lower_bound(updates_.begin(), updates_.end(), node, is_before);
  updates_.emplace(place, std::string(node), std::make_shared<AdmittedUpdate>(std::move(update)));
}

void HeldUpdates::ClipToMedian(double ratio) {
  std::vector<double> rms;
  for (const auto& [node, update] : updates_) rms.push_back(update->rms());
  const double limit = ratio * LowerMedian(std::move(rms));
  if (!(limit > 0)) return;
  for (const auto& [node, update] : updates_) {
    ClipTo(limit * std::sqrt(static_cast<double>(update->layout.size())), *update);
  }
}

}  // namespace fedge
