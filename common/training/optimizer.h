// AdamW over a flat fp32 buffer, with its moments in fp32 or in 8 bits, gradient clipping and
// learning-rate schedules.
#ifndef FEDGE_COMMON_TRAINING_OPTIMIZER_H_
#define FEDGE_COMMON_TRAINING_OPTIMIZER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/base/byte_io.h"
#include "common/training/block_moments.h"

namespace fedge {

struct AdamWOptions {
  float beta1 = 0.9f;
  float beta2 = 0.999f;
  float epsilon = 1e-8f;
  float weight_decay = 0;  // decoupled (Loshchilov, Hutter 2019)
  int moment_bits = 32;    // 32: fp32; 8: blocks of bytes (block_moments.h), a quarter the memory
};

// Parameters that follow each other in the flat buffer and learn at the same rate.
struct ParameterGroup {
  int64_t size = 0;
  float rate_factor = 1;  // of the learning rate, also where it weighs the decay
};

// State for `size` parameters. Step k uses bias correction for k. Copyable (checkpoints).
class AdamW {
 public:
  AdamW(int64_t size, const AdamWOptions& options);
  AdamW(std::vector<ParameterGroup> groups, const AdamWOptions& options);
  // values -= learning_rate * (m_hat / (sqrt(v_hat) + eps) + weight_decay * values)
  // Kingma, Ba 2015, algorithm 1, with decoupled decay; corrections in double precision. Only exact
  // operations (no fused multiply-add): the same bits on every SIMD target.
  void Step(absl::Span<const float> gradient, float learning_rate, absl::Span<float> values);
  int64_t steps() const { return steps_; }

  // The state in fp32, to write to a checkpoint and to read back (sizes must be this object's:
  // CHECK). Empty when the moments are in 8 bits.
  absl::Span<const float> first_moment() const { return m_; }
  absl::Span<const float> second_moment() const { return v_; }
  void Restore(int64_t steps, absl::Span<const float> first_moment,
               absl::Span<const float> second_moment);

  // The whole state, whatever the moments' bits. Read: false when the bytes are not those of an
  // object with the same groups and bits; the state is then unspecified.
  void Write(ByteWriter& writer) const;
  bool Read(ByteReader& reader);

  // What the moments of `size` parameters take (a group's last block of bytes may be short).
  static int64_t StateBytes(int64_t size, int moment_bits);

 private:
  int64_t size_ = 0;
  std::vector<ParameterGroup> groups_;
  AdamWOptions options_;
  int64_t steps_ = 0;
  std::vector<float> m_, v_;          // moment_bits 32
  std::vector<BlockMoments> blocks_;  // moment_bits 8: of each group
};

// Scales `gradient` so that its L2 norm is at most `max_norm` (0: no limit); returns the norm
// before (not finite when the gradient is not: nothing is scaled then).
double ClipByGlobalNorm(double max_norm, absl::Span<float> gradient);

// Adds the gradient of mu / 2 ||values - start||^2: FedProx's pull towards the global version. All
// of one size.
void AddProximalGradient(float mu, absl::Span<const float> values, absl::Span<const float> start,
                         absl::Span<float> gradient);

enum class Schedule { kConstant, kLinear, kCosine };

struct LearningRate {
  float peak = 1e-3f;
  Schedule schedule = Schedule::kCosine;
  int64_t warmup_steps = 0;
  int64_t total_steps = 0;      // where the decay ends
  float final_fraction = 0.1f;  // of peak

  // step counts from 0. Rises linearly to the peak at step warmup_steps - 1, then decays to
  // peak * final_fraction at total_steps and stays there; without a decay span it stays at the
  // peak.
  float At(int64_t step) const;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_TRAINING_OPTIMIZER_H_
