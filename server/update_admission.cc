#include "server/update_admission.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/codec/update_codec.h"
#include "server/task_plan.h"

namespace fedge {
namespace {

absl::Status CheckHeader(const RunPlan& plan, uint64_t round, uint64_t base_version,
                         const UpdateHeader& header) {
  if (header.round != round) {
    return absl::FailedPreconditionError(
        absl::StrCat("update: header says round ", header.round, ", it was sent for ", round));
  }
  if (header.base_version != base_version) {
    return absl::FailedPreconditionError(absl::StrCat("update: is relative to adapter version ",
                                                      header.base_version, ", round ", round,
                                                      " trains version ", base_version));
  }
  if (header.base_model != plan.base_model) {
    return absl::FailedPreconditionError(absl::StrCat("update: made with base model ",
                                                      header.base_model.Hex(), ", the run's is ",
                                                      plan.base_model.Hex()));
  }
  if (header.num_examples == 0) {
    return absl::InvalidArgumentError("update: num_examples is 0, at least 1 is needed");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<AdmittedUpdate> AdmitUpdate(const RunPlan& plan, uint64_t round,
                                           uint64_t base_version, absl::string_view bytes) {
  if (bytes.size() > plan.max_update_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "update: ", bytes.size(), " bytes, more than the run's limit of ", plan.max_update_bytes));
  }
  // The header first: it decides most refusals at the cost of its own size.
  ASSIGN_OR_RETURN(const UpdateHeader header, ReadUpdateHeader(bytes));
  RETURN_IF_ERROR(CheckHeader(plan, round, base_version, header));
  if (!IsPlannedSlice(plan, base_version, header.slice)) {
    return absl::FailedPreconditionError(absl::StrCat("update: is of ", DescribeSlice(header.slice),
                                                      ", round ", round, " trains ",
                                                      DescribeSlice(SliceOf(plan, base_version))));
  }
  AdmittedUpdate update;
  ASSIGN_OR_RETURN(update.layout, SliceLayout::Create(plan.lora, header.slice));
  ASSIGN_OR_RETURN(update.update, DecodeUpdate(bytes, plan.lora.layout_hash(), update.layout));
  update.round = round;
  update.base_version = base_version;
  update.weight = std::min(header.num_examples, plan.max_examples_per_node);
  double sum = 0;
  for (const float value : update.update.values) {
    sum += static_cast<double>(value) * static_cast<double>(value);
  }
  update.norm = std::sqrt(sum);
  return update;
}

double AdmittedUpdate::rms() const {
  return norm / std::sqrt(static_cast<double>(std::max<int64_t>(layout.size(), 1)));
}

size_t NormSlot(const AdapterSlice& slice) { return slice.factors == SliceFactors::kA ? 1 : 0; }

double NormLimit(const AdmissionPlan& admission, double typical_rms, const SliceLayout& layout) {
  constexpr double kNoLimit = std::numeric_limits<double>::infinity();
  if (admission.norm_bound == NormBound::kOff) return kNoLimit;
  if (admission.max_norm > 0) return admission.max_norm;
  if (!(typical_rms > 0)) return kNoLimit;
  return admission.norm_ratio * typical_rms * std::sqrt(static_cast<double>(layout.size()));
}

void ScaleBy(double factor, AdmittedUpdate& update) {
  for (float& value : update.update.values) {
    value = static_cast<float>(static_cast<double>(value) * factor);
  }
  update.norm *= factor;
}

void ClipTo(double limit, AdmittedUpdate& update) {
  if (!(update.norm > limit)) return;
  ScaleBy(limit / update.norm, update);
  update.norm = limit;
}

absl::Status BoundNorm(const AdmissionPlan& admission, double typical_rms, AdmittedUpdate& update) {
  const double limit = NormLimit(admission, typical_rms, update.layout);
  if (admission.norm_bound == NormBound::kReject && update.norm > limit) {
    const std::string origin =
        admission.max_norm > 0
            ? "run.admission.max_norm"
            : absl::StrCat(admission.norm_ratio, " times the median of the last round");
    return absl::InvalidArgumentError(absl::StrCat("update: norm ", update.norm,
                                                   " is above the bound ", limit, ", ", origin,
                                                   " (did the training diverge?)"));
  }
  ClipTo(limit, update);
  return absl::OkStatus();
}

double LowerMedian(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace fedge
