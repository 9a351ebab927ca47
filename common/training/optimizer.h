// AdamW over a flat fp32 buffer, gradient clipping and learning-rate schedules.
#ifndef FEDGE_COMMON_TRAINING_OPTIMIZER_H_
#define FEDGE_COMMON_TRAINING_OPTIMIZER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace fedge {

struct AdamWOptions {
  float beta1 = 0.9f;
  float beta2 = 0.999f;
  float epsilon = 1e-8f;
  float weight_decay = 0;  // decoupled (Loshchilov, Hutter 2019)
};

// State for `size` parameters. Step k uses bias correction for k. Copyable (checkpoints).
class AdamW {
 public:
  AdamW(int64_t size, const AdamWOptions& options);
  // values -= learning_rate * (m_hat / (sqrt(v_hat) + eps) + weight_decay * values)
  void Step(absl::Span<const float> gradient, float learning_rate, absl::Span<float> values);
  int64_t steps() const { return steps_; }

 private:
  AdamWOptions options_;
  int64_t steps_ = 0;
  std::vector<float> m_, v_;
};

// Scales `gradient` so that its L2 norm is at most `max_norm` (0: no limit); returns the norm
// before.
double ClipByGlobalNorm(double max_norm, absl::Span<float> gradient);

enum class Schedule { kConstant, kLinear, kCosine };

struct LearningRate {
  float peak = 1e-3f;
  Schedule schedule = Schedule::kCosine;
  int64_t warmup_steps = 0;
  int64_t total_steps = 0;      // where the decay ends
  float final_fraction = 0.1f;  // of peak

  float At(int64_t step) const;  // step counts from 0
};

}  // namespace fedge

#endif  // FEDGE_COMMON_TRAINING_OPTIMIZER_H_
