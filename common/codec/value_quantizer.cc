#include "common/codec/value_quantizer.h"

#include <algorithm>
#include <cmath>

#include "common/tensor/quantize.h"

namespace fedge {
namespace {

constexpr int kBins = 256;

// The group's magnitudes in equal bins from `low` to `high`.
struct Histogram {
  float low = 0;
  float high = 0;
  std::array<double, kBins> count{};
  std::array<double, kBins> sum{};

  double width() const { return (static_cast<double>(high) - low) / kBins; }
};

Histogram MakeHistogram(absl::Span<const float> values) {
  Histogram histogram;
  histogram.low = std::abs(values[0]);
  for (const float value : values) {
    histogram.low = std::min(histogram.low, std::abs(value));
    histogram.high = std::max(histogram.high, std::abs(value));
  }
  const float range = histogram.high - histogram.low;
  const float per_bin = range > 0x1p-60f ? kBins / range : 0;
  for (const float value : values) {
    const float magnitude = std::abs(value);
    const auto bin = static_cast<size_t>(
        std::min((magnitude - histogram.low) * per_bin, static_cast<float>(kBins - 1)));
    histogram.count[bin] += 1;
    histogram.sum[bin] += magnitude;
  }
  return histogram;
}

uint16_t NearestHalf(double magnitude) {
  return FloatToHalf(static_cast<float>(std::min<double>(magnitude, kLargestHalf)));
}

// The two centroids that leave the least squared error: every split between bins is tried.
ValueScale FitCentroids(const Histogram& histogram) {
  double count = 0;
  double sum = 0;
  for (size_t i = 0; i < kBins; ++i) {
    count += histogram.count[i];
    sum += histogram.sum[i];
  }
  double best = -1;
  double low = sum / count;
  double high = low;
  double below = 0;
  double sum_below = 0;
  for (size_t i = 0; i + 1 < kBins; ++i) {
    below += histogram.count[i];
    sum_below += histogram.sum[i];
    if (below == 0 || below == count) continue;
    const double above = count - below;
    const double sum_above = sum - sum_below;
    const double explained = sum_below * sum_below / below + sum_above * sum_above / above;
    if (explained <= best) continue;
    best = explained;
    low = sum_below / below;
    high = sum_above / above;
  }
  return {NearestHalf(low), NearestHalf(high)};
}

// Squared error of cells of `width` from `base` on, from the bins' means.
double CellError(const Histogram& histogram, double base, double width, int cells) {
  double error = 0;
  for (size_t i = 0; i < kBins; ++i) {
    if (histogram.count[i] == 0) continue;
    const double mean = histogram.sum[i] / histogram.count[i];
    const double cell = std::clamp(std::floor((mean - base) / width), 0.0, cells - 1.0);
    const double miss = mean - (base + width * (cell + 0.5));
    error += histogram.count[i] * miss * miss;
  }
  return error;
}

// Cells up to a limit below the largest magnitude are finer for all others.
ValueScale FitCells(const Histogram& histogram, int cells, bool from_zero) {
  const uint16_t base_half = from_zero ? uint16_t{0} : HalfAtMost(histogram.low);
  const double base = HalfToFloat(base_half);
  const double range = histogram.high - base;
  double best_width = 0;
  double best_error = 0;
  for (double share = 1; share > 0.2; share *= 0.875) {
    const double width = range * share / cells;
    if (width <= 0) break;
    const double error = CellError(histogram, base, width, cells);
    if (share == 1 || error < best_error) {
      best_error = error;
      best_width = width;
    }
    if (cells > 16) break;  // the bins are too coarse to tell
  }
  uint16_t step = HalfAtLeast(best_width / 2);
  // Rounding the step up may not lift the last cell beyond what a half holds.
  while (step > 0 && base + HalfToFloat(step) * (2.0 * cells - 1) > kLargestHalf) --step;
  return {base_half, step};
}

ValueScale FitStochastic(double largest, int value_bits, int cells) {
  if (value_bits == 1) return {HalfAtLeast(largest), 0};
  if (value_bits == 2) return {NearestHalf(largest / 3), HalfAtLeast(largest)};
  uint16_t step = HalfAtLeast(largest / (2.0 * cells - 1));
  while (step > 0 && HalfToFloat(step) * (2.0 * cells - 1) > kLargestHalf) --step;
  return {0, step};
}

}  // namespace

uint16_t HalfAtMost(double magnitude) {
  uint16_t half = FloatToHalf(static_cast<float>(magnitude));
  while (half > 0 && static_cast<double>(HalfToFloat(half)) > magnitude) --half;
  return half;
}

uint16_t HalfAtLeast(double magnitude) {
  uint16_t half = FloatToHalf(static_cast<float>(magnitude));
  while (static_cast<double>(HalfToFloat(half)) < magnitude) ++half;
  return half;
}

bool LevelTable::Assign(ValueScale scale, int value_bits) {
  bits_ = value_bits;
  size_ = 1 << (value_bits - 1);
  const float first = HalfToFloat(scale.first);
  const float second = HalfToFloat(scale.second);
  if (((scale.first | scale.second) & 0x8000u) != 0) return false;
  if (!std::isfinite(first) || !std::isfinite(second)) return false;
  uniform_ = value_bits > 2;
  base_ = first;
  width_ = 2 * second;
  if (uniform_) {
    for (int c = 0; c < size_; ++c) {
      magnitudes_[static_cast<size_t>(c)] = first + second * static_cast<float>(2 * c + 1);
    }
  } else {
    if (value_bits == 2 && first > second) return false;
    magnitudes_[0] = first;
    magnitudes_[1] = second;
  }
  if (magnitudes_[static_cast<size_t>(size_ - 1)] > kLargestHalf) return false;
  for (size_t c = 0; c < static_cast<size_t>(size_); ++c) {
    values_[c] = magnitudes_[c];
    values_[c + static_cast<size_t>(size_)] = -magnitudes_[c];
  }
  return true;
}

uint32_t LevelTable::Nearest(float value) const {
  const uint32_t sign = std::signbit(value) ? static_cast<uint32_t>(size_) : 0;
  const float magnitude = std::abs(value);
  if (uniform_) {
    if (width_ == 0) return sign;
    const float cell = (magnitude - base_) / width_;
    return sign | static_cast<uint32_t>(std::clamp(cell, 0.0f, static_cast<float>(size_ - 1)));
  }
  if (size_ == 1) return sign;
  return sign | (magnitude * 2 > magnitudes_[0] + magnitudes_[1] ? 1u : 0u);
}

uint32_t LevelTable::Stochastic(float value, double uniform) const {
  const double magnitude =
      std::min<double>(std::abs(value), magnitudes_[static_cast<size_t>(size_ - 1)]);
  const auto sign = std::signbit(value) ? static_cast<uint32_t>(size_) : 0u;
  const float* const begin = magnitudes_.data();
  const auto above = static_cast<uint32_t>(std::lower_bound(begin, begin + size_, magnitude) -
                                           begin);  // the first >= magnitude
  const double high = magnitudes_[above];
  if (above == 0) {
    // Between -magnitudes_[0] and +magnitudes_[0].
    const bool same = high == 0 || uniform * 2 * high < high + magnitude;
    return same ? sign : sign ^ static_cast<uint32_t>(size_);
  }
  const double low = magnitudes_[above - 1];
  return sign | (uniform * (high - low) < magnitude - low ? above : above - 1);
}

ValueScale FitScale(absl::Span<const float> values, int value_bits, bool from_zero,
                    bool stochastic) {
  const int cells = 1 << (value_bits - 1);
  if (stochastic) {
    double largest = 0;
    for (const float value : values) largest = std::max<double>(largest, std::abs(value));
    return FitStochastic(largest, value_bits, cells);
  }
  if (value_bits == 1) {
    double sum = 0;
    for (const float value : values) sum += std::abs(value);
    return {NearestHalf(sum / static_cast<double>(values.size())), 0};
  }
  const Histogram histogram = MakeHistogram(values);
  return value_bits == 2 ? FitCentroids(histogram) : FitCells(histogram, cells, from_zero);
}

}  // namespace fedge
