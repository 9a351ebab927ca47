// The frequencies of RoPE (Su et al. 2021) under the scalings that model files ask for.
#ifndef FEDGE_COMMON_MODEL_ROPE_FREQUENCIES_H_
#define FEDGE_COMMON_MODEL_ROPE_FREQUENCIES_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace fedge {

struct RopeScaling {
  float freq_base = 10000;
  float freq_scale = 1;          // of positions: 1 / factor
  float magnitude = 1;           // of cosine and sine (rope.scaling.attn_factor)
  int64_t original_context = 0;  // tokens before the context was stretched
  // YaRN (Peng et al. 2023): frequencies that turn often over the original context are not scaled.
  float yarn_mix = 0;  // 0: all are scaled; 1: YaRN
  float yarn_beta_fast = 32;
  float yarn_beta_slow = 1;
};

struct RopeFrequencies {
  std::vector<float> theta;  // radians a position of pair i, [rope_dim / 2]
  float magnitude = 1;       // of cosine and sine
};

// theta_i = scale_i * base^(-2i / rope_dim) / factors[i]; `factors` [rope_dim / 2], or empty for
// ones. llama.cpp's formulas, in double.
RopeFrequencies MakeRopeFrequencies(const RopeScaling& scaling, int64_t rope_dim,
                                    absl::Span<const float> factors);

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_ROPE_FREQUENCIES_H_
