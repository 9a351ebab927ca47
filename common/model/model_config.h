// The hyper-parameters of a model file, read and checked.
#ifndef FEDGE_COMMON_MODEL_MODEL_CONFIG_H_
#define FEDGE_COMMON_MODEL_MODEL_CONFIG_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/formats/gguf.h"
#include "common/model/family.h"
#include "common/model/rope_frequencies.h"

namespace fedge {

struct ModelConfig {
  std::string architecture;  // "llama"
  const ModelFamily* family = nullptr;
  int64_t vocab_size = 0;  // set with the tokenizer
  int64_t context_length = 0;
  int64_t embedding_length = 0;     // C
  int64_t block_count = 0;          // layers
  int64_t feed_forward_length = 0;  // F
  int64_t head_count = 0;           // H
  int64_t head_count_kv = 0;        // KV heads; H is a multiple
  int64_t head_dim = 0;
  int64_t rope_dim = 0;  // rotated values a head, even, <= head_dim
  float rms_epsilon = 0;
  float attention_scale = 0;  // of the scores
  float embedding_scale = 1;  // of the embedding's rows
  float logit_soft_cap = 0;   // logits become cap * tanh(logits / cap); 0: none
  RopeScaling rope;
  RopeScaling local_rope;  // of layers with a window
  // Keys a query of each layer sees, itself included; 0: all. [block_count]
  std::vector<int64_t> windows;
};

// A linear that some files have as rows of another one.
struct FusedPart {
  LinearIndex fused, part;
  int64_t first_row, rows;
};
// q, k and v of attn_qkv, gate and up of a fused ffn_up, in the order of their rows.
std::array<FusedPart, 5> FusedParts(const ModelConfig& config);

// All but vocab_size. Errors name file and key: InvalidArgument (missing or out of bounds,
// inconsistent), Unimplemented (the family, or a variant of it).
absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file);

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_MODEL_CONFIG_H_
