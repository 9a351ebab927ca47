#include "server/round_updates.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "server/robust_aggregation.h"
#include "server/task_plan.h"
#include "server/update_admission.h"

namespace fedge {

RoundUpdates::RoundUpdates(const RunPlan& plan, const ModelState& before, BlobReader read)
    : plan_(plan), before_(before), sums_(plan.lora, MakeAggregatorOptions(plan, before.version)) {
  if (plan_.robust.rule == RobustRule::kNone && IsBounded()) return;
  UpdateReader reader;
  if (read != nullptr) {
    reader = [this,
              read = std::move(read)](const HeldUpdate& held) -> absl::StatusOr<AdmittedUpdate> {
      const absl::StatusOr<std::string> bytes = read(held.digest);
      absl::Status status = bytes.status();
      absl::StatusOr<AdmittedUpdate> update = absl::UnknownError("not read");
      if (status.ok()) {
        update = AdmitUpdate(plan_, held.round, held.base_version, *bytes);
        status = update.ok() ? Bound(*update) : update.status();
      }
      if (status.ok()) return update;
      return absl::DataLossError(absl::StrCat("the update of node '", held.node, "' for round ",
                                              held.round,
                                              " cannot be read again: ", status.message()));
    };
  }
  held_ = std::make_unique<HeldUpdates>(std::move(reader));
}

size_t RoundUpdates::slot() const { return NormSlot(SliceOf(plan_, before_.version)); }

bool RoundUpdates::IsBounded() const {
  return plan_.admission.norm_bound == NormBound::kOff || plan_.admission.max_norm > 0 ||
         before_.typical_norm[slot()] > 0;
}

absl::Status RoundUpdates::Bound(AdmittedUpdate& update, double* rms) const {
  RETURN_IF_ERROR(BoundNorm(plan_.admission, before_.typical_norm[slot()], update));
  if (rms != nullptr) *rms = update.rms();
  if (update.base_version < before_.version) {
    ScaleBy(StalenessFactor(before_.version - update.base_version), update);
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> RoundUpdates::Add(absl::string_view node, ReceivedUpdate received) {
  AdmittedUpdate& update = *received.admitted;
  FEDGE_CHECK(update.base_version <= before_.version);
  double rms = 0;
  RETURN_IF_ERROR(Bound(update, &rms));
  RETURN_IF_ERROR(sums_.Accumulate({.layout = &update.layout,
                                    .coordinates = update.update.coordinates,
                                    .values = update.update.values},
                                   update.weight));
  const uint64_t weight = update.weight;
  contributions_.push_back(
      {std::string(node), update.round, received.digest, weight, received.wire_bytes});
  nodes_.emplace(node);
  norms_.push_back(rms);
  if (held_ != nullptr) held_->Add(node, received.digest, std::move(update));
  return weight;
}

absl::StatusOr<NextVersion> RoundUpdates::CloseSums(std::vector<Contribution>& contributions) {
  if (held_ == nullptr) return CloseRound(plan_, before_, sums_);
  if (!IsBounded()) held_->ClipToMedian(plan_.admission.norm_ratio);
  std::vector<uint64_t> weights;
  ASSIGN_OR_RETURN(NextVersion next, CloseRobustRound(plan_, before_, *held_, weights));
  for (size_t i = 0; i < weights.size(); ++i) contributions[i].weight = weights[i];
  return next;
}

absl::StatusOr<ClosedRound> RoundUpdates::Close() {
  ClosedRound closed;
  closed.contributions = std::move(contributions_);
  std::sort(closed.contributions.begin(), closed.contributions.end(),
            [](const Contribution& a, const Contribution& b) {
              return std::tie(a.node_id, a.round) < std::tie(b.node_id, b.round);
            });
  ASSIGN_OR_RETURN(closed.next, CloseSums(closed.contributions));
  closed.next.state.typical_norm[slot()] = LowerMedian(std::move(norms_));
  return closed;
}

}  // namespace fedge
