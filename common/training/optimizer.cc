#include "common/training/optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <utility>

#include "common/base/status.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/training/optimizer.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target, as Highway requires.
#include "hwy/highway.h"

#ifndef FEDGE_COMMON_TRAINING_OPTIMIZER_STEP_
#define FEDGE_COMMON_TRAINING_OPTIMIZER_STEP_
namespace fedge {
namespace {

struct AdamWStep : AdamWScalars {
  const float* gradient;
  float* m;
  float* v;
  float* values;
};

}  // namespace
}  // namespace fedge
#endif  // FEDGE_COMMON_TRAINING_OPTIMIZER_STEP_

HWY_BEFORE_NAMESPACE();
namespace fedge {
namespace {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D>
HWY_INLINE void StepLanes(D d, const AdamWStep& s, size_t i) {
  const auto g = hn::LoadU(d, s.gradient + i);
  const auto m = hn::Add(hn::Mul(hn::Set(d, s.beta1), hn::LoadU(d, s.m + i)),
                         hn::Mul(hn::Set(d, s.one_minus_beta1), g));
  const auto v = hn::Add(hn::Mul(hn::Set(d, s.beta2), hn::LoadU(d, s.v + i)),
                         hn::Mul(hn::Set(d, s.one_minus_beta2), hn::Mul(g, g)));
  const auto root = hn::Mul(hn::Sqrt(v), hn::Set(d, s.root_correction));
  const auto step =
      hn::Div(hn::Mul(hn::Set(d, s.step_size), m), hn::Add(root, hn::Set(d, s.epsilon)));
  const auto old = hn::Mul(hn::Set(d, s.decay), hn::LoadU(d, s.values + i));
  hn::StoreU(m, d, s.m + i);
  hn::StoreU(v, d, s.v + i);
  hn::StoreU(hn::Sub(old, step), d, s.values + i);
}

void RunStep(const AdamWStep& step, size_t count) {
  const AdamWStep s = step;  // a local copy: the stores below cannot change it
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> one;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) StepLanes(d, s, i);
  for (; i < count; ++i) StepLanes(one, s, i);
}

}  // namespace HWY_NAMESPACE
}  // namespace
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedge {
namespace {
HWY_EXPORT(RunStep);
}  // namespace

AdamW::AdamW(int64_t size, const AdamWOptions& options)
    : AdamW(std::vector<ParameterGroup>{{size, 1.0f}}, options) {}

AdamW::AdamW(std::vector<ParameterGroup> groups, const AdamWOptions& options)
    : groups_(std::move(groups)), options_(options) {
  FEDGE_CHECK(options.moment_bits == 32 || options.moment_bits == 8, "AdamW with moments of ",
              options.moment_bits, " bits");
  for (const ParameterGroup& group : groups_) {
    if (options.moment_bits == 8) blocks_.emplace_back(group.size, size_);
    size_ += group.size;
  }
  if (options.moment_bits == 8) return;
  m_.resize(static_cast<size_t>(size_));
  v_.resize(static_cast<size_t>(size_));
}

void AdamW::Step(absl::Span<const float> gradient, float learning_rate, absl::Span<float> values) {
  FEDGE_CHECK(gradient.size() == static_cast<size_t>(size_) && values.size() == gradient.size(),
              "AdamW of ", size_, " parameters: gradient ", gradient.size(), ", values ",
              values.size());
  ++steps_;
  const double t = static_cast<double>(steps_);
  AdamWStep step;
  step.beta1 = options_.beta1;
  step.one_minus_beta1 = static_cast<float>(1.0 - static_cast<double>(options_.beta1));
  step.beta2 = options_.beta2;
  step.one_minus_beta2 = static_cast<float>(1.0 - static_cast<double>(options_.beta2));
  step.root_correction =
      static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(static_cast<double>(options_.beta2), t)));
  step.epsilon = options_.epsilon;
  int64_t begin = 0;
  for (size_t i = 0; i < groups_.size(); ++i) {
    const double rate =
        static_cast<double>(learning_rate) * static_cast<double>(groups_[i].rate_factor);
    step.step_size =
        static_cast<float>(rate / (1.0 - std::pow(static_cast<double>(options_.beta1), t)));
    step.decay = static_cast<float>(1.0 - rate * static_cast<double>(options_.weight_decay));
    step.gradient = gradient.data() + begin;
    step.values = values.data() + begin;
    if (options_.moment_bits == 8) {
      blocks_[i].Step(step, steps_, step.gradient, step.values);
    } else {
      step.m = m_.data() + begin;
      step.v = v_.data() + begin;
      HWY_DYNAMIC_DISPATCH(RunStep)(step, static_cast<size_t>(groups_[i].size));
    }
    begin += groups_[i].size;
  }
}

void AdamW::Restore(int64_t steps, absl::Span<const float> first_moment,
                    absl::Span<const float> second_moment) {
  FEDGE_CHECK(options_.moment_bits == 32, "only fp32 moments can be restored");
  FEDGE_CHECK(steps >= 0 && first_moment.size() == m_.size() && second_moment.size() == v_.size());
  steps_ = steps;
  std::copy(first_moment.begin(), first_moment.end(), m_.begin());
  std::copy(second_moment.begin(), second_moment.end(), v_.begin());
}

void AdamW::Write(ByteWriter& writer) const {
  writer.Write<int32_t>(options_.moment_bits);
  writer.Write(size_);
  writer.Write(steps_);
  for (const BlockMoments& block : blocks_) block.Write(writer);
  for (const std::vector<float>* moment : {&m_, &v_}) {
    writer.WriteBytes(
        {reinterpret_cast<const char*>(moment->data()), moment->size() * sizeof(float)});
  }
}

bool AdamW::Read(ByteReader& reader) {
  const auto bits = reader.Read<int32_t>();
  const auto size = reader.Read<int64_t>();
  steps_ = reader.Read<int64_t>();
  if (!reader.ok() || bits != options_.moment_bits || size != size_ || steps_ < 0) return false;
  for (BlockMoments& block : blocks_) {
    if (!block.Read(reader)) return false;
  }
  for (std::vector<float>* moment : {&m_, &v_}) {
    const absl::string_view bytes = reader.ReadBytes(moment->size() * sizeof(float));
    if (!bytes.empty()) std::memcpy(moment->data(), bytes.data(), bytes.size());
  }
  return reader.ok();
}

int64_t AdamW::StateBytes(int64_t size, int moment_bits) {
  if (moment_bits == 8) return BlockMoments::Bytes(size);
  return 2 * size * static_cast<int64_t>(sizeof(float));
}

void AddProximalGradient(float mu, absl::Span<const float> values, absl::Span<const float> start,
                         absl::Span<float> gradient) {
  for (size_t i = 0; i < gradient.size(); ++i) gradient[i] += mu * (values[i] - start[i]);
}

double ClipByGlobalNorm(double max_norm, absl::Span<float> gradient) {
  // Eight independent sums in a fixed order: no chain of dependent additions, same bits everywhere.
  double sums[8] = {};
  const size_t whole = gradient.size() / 8 * 8;
  for (size_t i = 0; i < whole; i += 8) {
    for (size_t j = 0; j < 8; ++j) {
      const double g = gradient[i + j];
      sums[j] += g * g;
    }
  }
  for (size_t i = whole; i < gradient.size(); ++i) {
    const double g = gradient[i];
    sums[i - whole] += g * g;
  }
  double total = 0;
  for (const double sum : sums) total += sum;
  const double norm = std::sqrt(total);
  if (max_norm > 0 && norm > max_norm && std::isfinite(norm)) {
    const float factor = static_cast<float>(max_norm / norm);
    for (float& g : gradient) g *= factor;
  }
  return norm;
}

float LearningRate::At(int64_t step) const {
  const double top = peak;
  if (step < warmup_steps) {
    return static_cast<float>(top * static_cast<double>(step + 1) /
                              static_cast<double>(warmup_steps));
  }
  if (schedule == Schedule::kConstant || total_steps <= warmup_steps) return peak;
  const double progress = std::min(1.0, static_cast<double>(step - warmup_steps) /
                                            static_cast<double>(total_steps - warmup_steps));
  const double left = schedule == Schedule::kLinear
                          ? 1.0 - progress
                          : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  const double floor = final_fraction;
  return static_cast<float>(top * (floor + (1.0 - floor) * left));
}

}  // namespace fedge
#endif  // HWY_ONCE
