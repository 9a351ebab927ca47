#include "server/aggregator.h"

#include <cmath>

#include "common/base/status.h"

namespace fedge {
namespace {

constexpr double kUnitsPerOne = 0x1p26;
static_assert(static_cast<double>(kMaxUpdateMagnitude) * kUnitsPerOne <= 0x1p32 &&
                  kMaxTotalWeight < (uint64_t{1} << 31),
              "a sum must stay below 2^63");

// The nearest multiple of the unit, halves away from zero. The product and the sum are exact:
// a float has 24 significant bits and a double 53.
int64_t ToUnits(float value) {
  const double scaled = static_cast<double>(value) * kUnitsPerOne;
  return static_cast<int64_t>(scaled + std::copysign(0.5, scaled));
}

absl::Status CheckTotal(uint64_t total, uint64_t more) {
  if (more > kMaxTotalWeight - total) {
    return absl::ResourceExhaustedError(absl::StrCat("the round's total weight ", total, " + ",
                                                     more, " exceeds the limit ", kMaxTotalWeight,
                                                     "; sample fewer nodes per round"));
  }
  return absl::OkStatus();
}

}  // namespace

UpdateAggregator::UpdateAggregator(int64_t num_parameters) {
  FEDGE_CHECK(num_parameters >= 0, "num_parameters ", num_parameters);
  sums_.resize(static_cast<size_t>(num_parameters));
}

absl::Status UpdateAggregator::Check(absl::Span<const float> values, uint64_t weight) const {
  if (weight < 1 || weight > kMaxUpdateWeight) {
    return absl::InvalidArgumentError(
        absl::StrCat("the update's weight ", weight, " is outside 1 to ", kMaxUpdateWeight));
  }
  RETURN_IF_ERROR(CheckTotal(total_weight_, weight));
  for (size_t i = 0; i < values.size(); ++i) {
    // Written so that NaN fails too.
    if (!(std::abs(values[i]) <= kMaxUpdateMagnitude)) {
      return absl::InvalidArgumentError(absl::StrCat("value ", i, " of the update is ", values[i],
                                                     "; the limit is +-", kMaxUpdateMagnitude,
                                                     " (did the training diverge?)"));
    }
  }
  return absl::OkStatus();
}

absl::Status UpdateAggregator::Accumulate(absl::Span<const float> values, uint64_t weight) {
  if (values.size() != sums_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the update has ", values.size(), " values, the adapter has ", sums_.size()));
  }
  RETURN_IF_ERROR(Check(values, weight));
  const int64_t factor = static_cast<int64_t>(weight);
  for (size_t i = 0; i < values.size(); ++i) sums_[i] += factor * ToUnits(values[i]);
  total_weight_ += weight;
  ++num_updates_;
  return absl::OkStatus();
}

absl::Status UpdateAggregator::Accumulate(const DecodedUpdate& update, const SliceLayout& layout,
                                          uint64_t weight) {
  if (layout.adapter_size() != static_cast<int64_t>(sums_.size())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the update is of an adapter of ", layout.adapter_size(), " values, not ", sums_.size()));
  }
  RETURN_IF_ERROR(Check(update.values, weight));
  const int64_t factor = static_cast<int64_t>(weight);
  const float* value = update.values.data();
  if (!update.coordinates.empty() || update.values.empty()) {
    for (const uint32_t i : update.coordinates) sums_[i] += factor * ToUnits(*value++);
  } else {
    for (const SliceRun& run : layout.runs()) {
      int64_t* const to = sums_.data() + run.offset;
      for (int64_t i = 0; i < run.size; ++i) to[i] += factor * ToUnits(*value++);
    }
  }
  total_weight_ += weight;
  ++num_updates_;
  return absl::OkStatus();
}

absl::Status UpdateAggregator::Merge(const UpdateAggregator& other) {
  if (other.sums_.size() != sums_.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the shard sums ", other.sums_.size(),
                                                   " parameters, this one ", sums_.size()));
  }
  RETURN_IF_ERROR(CheckTotal(total_weight_, other.total_weight_));
  for (size_t i = 0; i < sums_.size(); ++i) sums_[i] += other.sums_[i];
  total_weight_ += other.total_weight_;
  num_updates_ += other.num_updates_;
  return absl::OkStatus();
}

absl::Status UpdateAggregator::Mean(absl::Span<float> mean) const {
  if (mean.size() != sums_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("room for ", mean.size(), " values, but the mean has ", sums_.size()));
  }
  if (total_weight_ == 0) {
    return absl::FailedPreconditionError("no update was accumulated: there is no mean");
  }
  // Exact: below 2^31, and a power of two.
  const double divisor = static_cast<double>(total_weight_) * kUnitsPerOne;
  for (size_t i = 0; i < sums_.size(); ++i) {
    mean[i] = static_cast<float>(static_cast<double>(sums_[i]) / divisor);
  }
  return absl::OkStatus();
}

}  // namespace fedge
