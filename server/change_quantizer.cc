#include "server/change_quantizer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>

namespace fedge {
namespace {

constexpr int kBinShift = 15;  // leaves exponent and 8 bits of mantissa
constexpr int64_t kCountedLevels = 64;

double XLog2X(double x) { return x > 0 ? x * std::log2(x) : 0; }

// The size of a coded change as magnitudes are added to it: positions, signs, and levels as
// independent values. Levels of 64 and more share a bin of the histogram, within which all are
// equally likely.
class SizeEstimate {
 public:
  explicit SizeEstimate(double size) : size_(size) {}

  void Add(double count, double magnitude, double step) {
    const auto level = std::max<int64_t>(1, std::llround(magnitude / step));
    double& of_level =
        level < kCountedLevels ? counts_[level] : counts_[kCountedLevels + coarse_++];
    sum_ -= XLog2X(of_level);
    of_level += count;
    sum_ += XLog2X(of_level);
    sent_ += count;
    if (level >= kCountedLevels) within_ += count * std::log2(std::max(1.0, magnitude / step / 64));
  }

  double bits() const {
    const double positions = XLog2X(size_) - XLog2X(sent_) - XLog2X(size_ - sent_);
    return positions + sent_ + XLog2X(sent_) - sum_ + within_;
  }

 private:
  const double size_;
  double sent_ = 0;
  double sum_ = 0;  // of count log2(count) over the levels
  double within_ = 0;
  int64_t coarse_ = 0;
  std::map<int64_t, double> counts_;
};

}  // namespace

ChangeHistogram::ChangeHistogram(absl::Span<const float> change)
    : size_(static_cast<double>(change.size())) {
  std::vector<Bin> bins(size_t{1} << (31 - kBinShift));
  for (const float value : change) {
    const double magnitude = std::abs(value);
    energy_ += magnitude * magnitude;
    Bin& bin = bins[(std::bit_cast<uint32_t>(value) & 0x7FFFFFFFu) >> kBinShift];
    bin.magnitude += magnitude;
    bin.count += 1;
  }
  for (auto bin = bins.rbegin(); bin != bins.rend(); ++bin) {
    if (bin->count == 0 || bin->magnitude == 0) continue;
    bins_.push_back({bin->magnitude / bin->count, bin->count});
  }
}

// Lower and lower thresholds while they fit and help: sending less than half a step makes it worse.
ChangeStep ChangeHistogram::BestThreshold(int exponent, double bits) const {
  const double step = std::ldexp(1.0, exponent);
  SizeEstimate size(size_);
  ChangeStep best{exponent, std::ldexp(1.0f, 40), 0, energy_};  // nothing
  double error = energy_;
  for (const Bin& bin : bins_) {
    if (bin.magnitude <= step / 2) break;
    size.Add(bin.count, bin.magnitude, step);
    if (size.bits() > bits) break;
    const double level = std::max(1.0, std::round(bin.magnitude / step));
    const double left = bin.magnitude - level * step;
    error += bin.count * (left * left - bin.magnitude * bin.magnitude);
    best.threshold = static_cast<float>(bin.magnitude);
    best.estimated_bits = size.bits();
    best.squared_error = error;
  }
  return best;
}

ChangeStep ChangeHistogram::ForBudget(double bits) const {
  ChangeStep best = BestThreshold(kMaxStepExponent, bits);
  for (int exponent = kMaxStepExponent - 1; exponent >= 0; --exponent) {
    const ChangeStep step = BestThreshold(exponent, bits);
    if (step.squared_error < best.squared_error) best = step;
  }
  return best;
}

ChangeStep ChangeHistogram::ForDensity(double density, int levels) const {
  ChangeStep step;
  const double wanted = std::max(1.0, std::round(density * size_));
  double sent = 0;
  step.threshold = std::ldexp(1.0f, 40);
  for (const Bin& bin : bins_) {
    if (sent + bin.count / 2 > wanted && sent > 0) break;
    sent += bin.count;
    step.threshold = std::max(0.5f, static_cast<float>(bin.magnitude));
    if (sent >= wanted) break;
  }
  step.exponent = std::clamp(
      static_cast<int>(std::floor(std::log2(static_cast<double>(step.threshold) / levels))), 0,
      kMaxStepExponent);
  return step;
}

std::vector<int32_t> QuantizeChange(absl::Span<const float> change, const ChangeStep& step) {
  std::vector<int32_t> units(change.size());
  const float scale = std::ldexp(1.0f, -step.exponent);
  // A bin's mean stands for the bin: take all of it.
  const uint32_t lowest = std::bit_cast<uint32_t>(step.threshold) >> kBinShift;
  for (size_t i = 0; i < change.size(); ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(change[i]) & 0x7FFFFFFFu;
    if (bits >> kBinShift < lowest || bits == 0) continue;
    const auto level = std::max<int64_t>(1, std::llround(std::bit_cast<float>(bits) * scale));
    const auto magnitude = static_cast<int32_t>(level << step.exponent);
    units[i] = std::signbit(change[i]) ? -magnitude : magnitude;
  }
  return units;
}

}  // namespace fedge
