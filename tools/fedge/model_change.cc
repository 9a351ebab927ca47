#include "tools/fedge/model_change.h"

#include <algorithm>
#include <cmath>

#include "absl/types/span.h"
#include "common/base/status.h"

namespace fedge {
namespace {

double Distance(absl::Span<const float> a, absl::Span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double change = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += change * change;
  }
  return std::sqrt(sum);
}

// <B1 A1, B2 A2> = sum_ij (B1^T B2)_ij (A1 A2^T)_ij. a: [rank, in], b: [rank, out], as LoraAdapter
// has it.
double InnerProduct(const LoraModule& module, absl::Span<const float> a1,
                    absl::Span<const float> b1, absl::Span<const float> a2,
                    absl::Span<const float> b2) {
  const auto rank = static_cast<size_t>(module.rank);
  const auto in = static_cast<size_t>(module.in_features);
  const auto out = static_cast<size_t>(module.out_features);
  double sum = 0;
  for (size_t i = 0; i < rank; ++i) {
    for (size_t j = 0; j < rank; ++j) {
      double of_a = 0, of_b = 0;
      for (size_t k = 0; k < in; ++k) {
        of_a += static_cast<double>(a1[i * in + k]) * static_cast<double>(a2[j * in + k]);
      }
      for (size_t k = 0; k < out; ++k) {
        of_b += static_cast<double>(b1[i * out + k]) * static_cast<double>(b2[j * out + k]);
      }
      sum += of_a * of_b;
    }
  }
  return sum;
}

}  // namespace

std::vector<ModuleChange> CompareAdapters(const LoraAdapter& before, const LoraAdapter& after) {
  FEDGE_CHECK(before.spec().layout_hash() == after.spec().layout_hash());
  std::vector<ModuleChange> changes;
  const std::vector<LoraModule>& modules = before.spec().modules();
  for (size_t m = 0; m < modules.size(); ++m) {
    const auto index = static_cast<int64_t>(m);
    const double scale = before.spec().scale(modules[m]);
    const auto inner = [&](const LoraAdapter& x, const LoraAdapter& y) {
      return InnerProduct(modules[m], x.a(index), x.b(index), y.a(index), y.b(index));
    };
    const double of_before = inner(before, before);
    const double squared = inner(after, after) - 2 * inner(before, after) + of_before;
    changes.push_back({modules[m].tensor, Distance(after.a(index), before.a(index)),
                       Distance(after.b(index), before.b(index)),
                       scale * std::sqrt(std::max(squared, 0.0)),
                       scale * std::sqrt(std::max(of_before, 0.0))});
  }
  return changes;
}

}  // namespace fedge
