#include "common/codec/magnitude_selection.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include "absl/strings/str_cat.h"

namespace fedge {
namespace {

// The bits of |value|: ordered as the magnitudes are, NaN above all.
uint32_t MagnitudeBits(float value) { return std::bit_cast<uint32_t>(value) & 0x7FFFFFFFu; }

constexpr float kLargestSent = 65504;  // the largest half
constexpr uint32_t kMinSentBits = std::bit_cast<uint32_t>(kMinSentMagnitude);
constexpr uint32_t kMaxSentBits = std::bit_cast<uint32_t>(kLargestSent);
constexpr int64_t kScanned = 16;  // values looked at together: most have none to keep
constexpr uint64_t kMinSample = 4096;
constexpr int kBinShift = 16;  // a bin = sign-less exponent and 7 bits of mantissa
constexpr size_t kBins = size_t{1} << (31 - kBinShift);

absl::Status CannotHold(int64_t coordinate, float value) {
  return absl::InvalidArgumentError(absl::StrCat("value ", coordinate, " of the update is ", value,
                                                 "; the format's limit is +-", kLargestSent,
                                                 " (did the training diverge?)"));
}

// Appends what of the run reaches `threshold`. `position`: of the run's first value in the slice.
void Gather(absl::Span<const float> flat, const SliceRun& run, uint32_t position,
            uint32_t threshold, SelectedValues* out) {
  const float* const values = flat.data() + run.offset;
  const auto keep = [&](int64_t i) {
    if (MagnitudeBits(values[i]) < threshold) return;
    out->positions.push_back(position + static_cast<uint32_t>(i));
    out->values.push_back(values[i]);
  };
  int64_t i = 0;
  const auto limit = static_cast<int32_t>(threshold);  // signed compares are what SSE2 has
  for (; i + kScanned <= run.size; i += kScanned) {
    int32_t any = 0;
    for (int64_t j = 0; j < kScanned; ++j) {
      any |= static_cast<int32_t>(MagnitudeBits(values[i + j])) >= limit ? -1 : 0;
    }
    if (any == 0) continue;
    for (int64_t j = 0; j < kScanned; ++j) keep(i + j);
  }
  for (; i < run.size; ++i) keep(i);
}

SelectedValues GatherSlice(absl::Span<const float> flat, const SliceLayout& layout,
                           uint32_t threshold, size_t expected) {
  SelectedValues found;
  found.positions.reserve(expected);
  found.values.reserve(expected);
  int64_t position = 0;
  for (const SliceRun& run : layout.runs()) {
    Gather(flat, run, static_cast<uint32_t>(position), threshold, &found);
    position += run.size;
  }
  return found;
}

// A threshold that somewhat more than `count` values reach, from every n-th value.
uint32_t SampledThreshold(absl::Span<const float> flat, const SliceLayout& layout, uint64_t count) {
  const auto size = static_cast<uint64_t>(layout.size());
  const uint64_t wanted = std::max(kMinSample, size / 64);
  const auto stride = static_cast<int64_t>((size / wanted) | 1);  // odd: rows have even lengths
  std::vector<uint32_t> sample;
  sample.reserve(size / static_cast<uint64_t>(stride) + 1);
  int64_t next = 0;  // relative to the run
  for (const SliceRun& run : layout.runs()) {
    for (; next < run.size; next += stride) {
      sample.push_back(MagnitudeBits(flat[static_cast<size_t>(run.offset + next)]));
    }
    next -= run.size;
  }
  const double expected =
      static_cast<double>(sample.size()) * static_cast<double>(count) / static_cast<double>(size);
  const double rank = expected + 3 * std::sqrt(expected) + 8;
  if (rank >= static_cast<double>(sample.size())) return kMinSentBits;
  const auto nth = sample.begin() + static_cast<ptrdiff_t>(rank);
  std::nth_element(sample.begin(), nth, sample.end(), std::greater<>());
  // What does not fit must be found too.
  return std::clamp(*nth, kMinSentBits, kMaxSentBits);
}

// The same from all values, for a sample that was not like them.
uint32_t HistogramThreshold(absl::Span<const float> flat, const SliceLayout& layout,
                            uint64_t count) {
  std::vector<uint32_t> histogram(kBins);
  for (const SliceRun& run : layout.runs()) {
    for (int64_t i = run.offset; i < run.offset + run.size; ++i) {
      ++histogram[MagnitudeBits(flat[static_cast<size_t>(i)]) >> kBinShift];
    }
  }
  uint64_t above = 0;
  size_t bin = kBins;
  while (bin > 0 && above < count) above += histogram[--bin];
  return std::clamp(static_cast<uint32_t>(bin) << kBinShift, kMinSentBits, kMaxSentBits);
}

// Leaves the `count` largest from `begin` on.
void Cut(size_t begin, uint64_t count, SelectedValues* found) {
  if (found->values.size() - begin <= count) return;
  if (count == 0) {
    found->positions.resize(begin);
    found->values.resize(begin);
    return;
  }
  std::vector<uint32_t> bits;
  bits.reserve(found->values.size() - begin);
  for (size_t i = begin; i < found->values.size(); ++i) {
    bits.push_back(MagnitudeBits(found->values[i]));
  }
  const auto nth = bits.begin() + static_cast<ptrdiff_t>(count - 1);
  std::nth_element(bits.begin(), nth, bits.end(), std::greater<>());
  const uint32_t threshold = *nth;
  auto ties = count - static_cast<uint64_t>(std::count_if(
                          bits.begin(), nth, [=](uint32_t b) { return b > threshold; }));
  size_t kept = begin;
  for (size_t i = begin; i < found->values.size(); ++i) {
    const uint32_t magnitude = MagnitudeBits(found->values[i]);
    if (magnitude < threshold) continue;
    if (magnitude == threshold && ties-- == 0) {
      ties = 0;
      continue;
    }
    found->positions[kept] = found->positions[i];
    found->values[kept++] = found->values[i];
  }
  found->positions.resize(kept);
  found->values.resize(kept);
}

bool AllFit(const SelectedValues& found) {
  return std::all_of(found.values.begin(), found.values.end(),
                     [](float value) { return MagnitudeBits(value) <= kMaxSentBits; });
}

}  // namespace

absl::Status CheckMagnitudes(absl::Span<const float> flat, const SliceLayout& layout) {
  for (const SliceRun& run : layout.runs()) {
    int32_t any = 0;
    for (int64_t i = run.offset; i < run.offset + run.size; ++i) {
      const auto bits = static_cast<int32_t>(MagnitudeBits(flat[static_cast<size_t>(i)]));
      any |= bits > static_cast<int32_t>(kMaxSentBits) ? -1 : 0;
    }
    if (any == 0) continue;
    for (int64_t i = run.offset; i < run.offset + run.size; ++i) {
      const float value = flat[static_cast<size_t>(i)];
      if (MagnitudeBits(value) > kMaxSentBits) return CannotHold(i, value);
    }
  }
  return absl::OkStatus();
}

absl::Status SelectLargest(absl::Span<const float> flat, const SliceLayout& layout, uint64_t count,
                           SelectedValues* selected) {
  const auto size = static_cast<uint64_t>(layout.size());
  count = std::min(count, size);
  uint32_t threshold = kMinSentBits;
  if (size > 2 * kMinSample) threshold = SampledThreshold(flat, layout, count);
  SelectedValues found = GatherSlice(flat, layout, threshold, count + count / 4 + 64);
  if (found.values.size() < count && threshold > kMinSentBits) {
    threshold = HistogramThreshold(flat, layout, count);
    found = GatherSlice(flat, layout, threshold, count + count / 4 + 64);
  }
  if (!AllFit(found)) return CheckMagnitudes(flat, layout);
  Cut(0, count, &found);
  *selected = std::move(found);
  return absl::OkStatus();
}

absl::Status SelectLargestPerRun(absl::Span<const float> flat, const SliceLayout& layout,
                                 double density, SelectedValues* selected) {
  SelectedValues found;
  int64_t position = 0;
  for (const SliceRun& run : layout.runs()) {
    const size_t begin = found.values.size();
    Gather(flat, run, static_cast<uint32_t>(position), kMinSentBits, &found);
    position += run.size;
    for (size_t i = begin; i < found.values.size(); ++i) {
      if (MagnitudeBits(found.values[i]) > kMaxSentBits) return CheckMagnitudes(flat, layout);
    }
    Cut(begin, static_cast<uint64_t>(std::llround(density * static_cast<double>(run.size))),
        &found);
  }
  if (found.values.empty()) return SelectLargest(flat, layout, 1, selected);
  *selected = std::move(found);
  return absl::OkStatus();
}

}  // namespace fedge
