#include "server/aggregator.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "hwy/cache_control.h"

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

// Exact divisor: below 2^31 times a power of two.
float Quotient(int64_t sum, uint64_t weight) {
  if (weight == 0) return 0;
  return static_cast<float>(static_cast<double>(sum) /
                            (static_cast<double>(weight) * kUnitsPerOne));
}

// Calls f(component, flat coordinate) for all of a run that covers a module's components from 0.
template <typename F>
void ForEachCoordinate(const SliceRun& run, const F& f) {
  for (int64_t start = 0, component = 0; start < run.size; start += run.row, ++component) {
    for (int64_t i = 0; i < run.row; ++i) {
      f(static_cast<size_t>(component), static_cast<size_t>(run.offset + start + i));
    }
  }
}

}  // namespace

UpdateAggregator::UpdateAggregator(const LoraSpec& spec, AggregatorOptions options)
    : whole_(SliceLayout::Whole(spec)) {
  sums_.resize(static_cast<size_t>(spec.num_parameters()));
  if (options.coordinate_weights) coordinate_weights_.resize(sums_.size());
  int64_t rank = 0;
  for (const LoraModule& module : spec.modules()) rank = std::max(rank, module.rank);
  a_weights_.resize(static_cast<size_t>(rank));
  b_weights_.resize(static_cast<size_t>(rank));
  if (options.sketch) sketch_.emplace(spec, *std::move(options.sketch));
}

absl::Status UpdateAggregator::Accumulate(const UpdateView& update, uint64_t weight) {
  if (update.layout->adapter_size() != whole_.adapter_size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the update is for an adapter of ", update.layout->adapter_size(),
                     " parameters, this one has ", whole_.adapter_size()));
  }
  if (weight < 1 || weight > kMaxUpdateWeight) {
    return absl::InvalidArgumentError(
        absl::StrCat("the update's weight ", weight, " is outside 1 to ", kMaxUpdateWeight));
  }
  RETURN_IF_ERROR(CheckTotal(total_weight_, weight));
  ASSIGN_OR_RETURN(const std::vector<RunValues> runs,
                   SplitIntoRuns(*update.layout, update.coordinates, update.values));
  if (sketch_) RETURN_IF_ERROR(sketch_->Accumulate(runs, weight));
  const int64_t factor = static_cast<int64_t>(weight);
  for (const RunValues& values : runs) {
    const SliceRun& run = values.run();
    const auto place = [&](int64_t component, int64_t column) {
      return static_cast<size_t>((component - values.first_component()) * run.row + column +
                                 run.offset);
    };
    values.ForEach(
        [&](int64_t component, int64_t column, float value) {
          const size_t at = place(component, column);
          sums_[at] += factor * ToUnits(value);
          if (!coordinate_weights_.empty()) {
            coordinate_weights_[at] += static_cast<uint32_t>(weight);
          }
        },
        [&](int64_t component, int64_t column) {
          hwy::Prefetch(&sums_[place(component, column)]);
        });
  }
  const AdapterSlice& slice = update.layout->slice();
  const auto first = static_cast<size_t>(slice.first_component);
  const auto end = std::min(static_cast<size_t>(slice.end_component), a_weights_.size());
  for (size_t component = first; component < end; ++component) {
    if (slice.factors != SliceFactors::kB) a_weights_[component] += weight;
    if (slice.factors != SliceFactors::kA) b_weights_[component] += weight;
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
  if (other.coordinate_weights_.size() != coordinate_weights_.size() ||
      other.sketch_.has_value() != sketch_.has_value() ||
      other.a_weights_.size() != a_weights_.size()) {
    return absl::InvalidArgumentError("the shard sums other quantities than this one");
  }
  RETURN_IF_ERROR(CheckTotal(total_weight_, other.total_weight_));
  if (sketch_) sketch_->Merge(*other.sketch_);
  const auto add = [](const auto& from, auto& to) {
    for (size_t i = 0; i < to.size(); ++i) to[i] += from[i];
  };
  add(other.sums_, sums_);
  add(other.coordinate_weights_, coordinate_weights_);
  add(other.a_weights_, a_weights_);
  add(other.b_weights_, b_weights_);
  total_weight_ += other.total_weight_;
  num_updates_ += other.num_updates_;
  return absl::OkStatus();
}

absl::Status UpdateAggregator::CheckMean(absl::Span<float> mean) const {
  if (mean.size() != sums_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("room for ", mean.size(), " values, but the mean has ", sums_.size()));
  }
  if (total_weight_ == 0) {
    return absl::FailedPreconditionError("no update was accumulated: there is no mean");
  }
  return absl::OkStatus();
}

absl::Status UpdateAggregator::Mean(absl::Span<float> mean) const {
  RETURN_IF_ERROR(CheckMean(mean));
  for (const SliceRun& run : whole_.runs()) {
    const std::vector<uint64_t>& of_component = weights(run.is_b);
    ForEachCoordinate(run, [&](size_t component, size_t at) {
      mean[at] = Quotient(sums_[at], of_component[component]);
    });
  }
  return absl::OkStatus();
}

absl::Status UpdateAggregator::CoordinateMean(absl::Span<float> mean) const {
  RETURN_IF_ERROR(CheckMean(mean));
  FEDGE_CHECK(!coordinate_weights_.empty(), "the aggregator was made without coordinate_weights");
  for (size_t i = 0; i < sums_.size(); ++i) mean[i] = Quotient(sums_[i], coordinate_weights_[i]);
  return absl::OkStatus();
}

std::vector<SliceRun> UpdateAggregator::TrainedRuns() const {
  std::vector<SliceRun> trained;
  for (const SliceRun& run : whole_.runs()) {
    const std::vector<uint64_t>& of_component = weights(run.is_b);
    for (int64_t start = 0, component = 0; start < run.size; start += run.row, ++component) {
      if (of_component[static_cast<size_t>(component)] == 0) continue;
      if (!trained.empty() && trained.back().module == run.module &&
          trained.back().is_b == run.is_b &&
          trained.back().offset + trained.back().size == run.offset + start) {
        trained.back().size += run.row;
      } else {
        trained.push_back({run.offset + start, run.row, run.row, run.module, run.is_b});
      }
    }
  }
  return trained;
}

std::vector<uint64_t> UpdateAggregator::GroupWeights() const {
  std::vector<uint64_t> result;
  if (!sketch_) return result;
  int64_t first = 0;
  for (const int64_t end : sketch_->options().group_ends) {
    // Slices end where groups do: a component has the group's weight or, where components take
    // turns, none. A product has both factors.
    uint64_t weight = 0;
    for (int64_t i = first; i < end && i < static_cast<int64_t>(a_weights_.size()); ++i) {
      const auto component = static_cast<size_t>(i);
      weight = std::max(weight, std::min(a_weights_[component], b_weights_[component]));
    }
    result.push_back(weight);
    first = end;
  }
  return result;
}

}  // namespace fedge
