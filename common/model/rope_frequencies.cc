#include "common/model/rope_frequencies.h"

#include <algorithm>
#include <cmath>

#include "common/base/status.h"

namespace fedge {
namespace {

// The index (as a real number) of the pair that turns `turns` times over the original context.
double YarnDimension(const RopeScaling& scaling, int64_t rope_dim, double turns) {
  constexpr double kTwoPi = 6.283185307179586;
  const double context = static_cast<double>(scaling.original_context);
  return static_cast<double>(rope_dim) * std::log(context / (turns * kTwoPi)) /
         (2 * std::log(static_cast<double>(scaling.freq_base)));
}

}  // namespace

RopeFrequencies MakeRopeFrequencies(const RopeScaling& scaling, int64_t rope_dim,
                                    absl::Span<const float> factors) {
  const int64_t pairs = rope_dim / 2;
  FEDGE_CHECK(factors.empty() || static_cast<int64_t>(factors.size()) == pairs, factors.size());
  const double freq_scale = static_cast<double>(scaling.freq_scale);
  const double mix = static_cast<double>(scaling.yarn_mix);
  double low = 0, high = 0;
  RopeFrequencies result;
  result.magnitude = scaling.magnitude;
  if (mix != 0) {
    low = std::max(0.0, std::floor(YarnDimension(scaling, rope_dim,
                                                 static_cast<double>(scaling.yarn_beta_fast))));
    high = std::min(
        static_cast<double>(rope_dim - 1),
        std::ceil(YarnDimension(scaling, rope_dim, static_cast<double>(scaling.yarn_beta_slow))));
    result.magnitude *= static_cast<float>(1 - 0.1 * std::log(std::min(1.0, freq_scale)));
  }
  for (int64_t i = 0; i < pairs; ++i) {
    const double index = static_cast<double>(i);
    const double factor =
        factors.empty() ? 1.0 : static_cast<double>(factors[static_cast<size_t>(i)]);
    const double theta = std::pow(static_cast<double>(scaling.freq_base),
                                  -2 * index / static_cast<double>(rope_dim)) /
                         factor;
    const double ramp = std::clamp((index - low) / std::max(0.001, high - low), 0.0, 1.0);
    const double unscaled = mix * (1 - ramp);
    result.theta.push_back(static_cast<float>(theta * (freq_scale * (1 - unscaled) + unscaled)));
  }
  return result;
}

}  // namespace fedge
