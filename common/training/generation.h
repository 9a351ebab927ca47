// Sampling text from a model, to look at what an adapter has learnt. Not a serving path.
#ifndef FEDGE_COMMON_TRAINING_GENERATION_H_
#define FEDGE_COMMON_TRAINING_GENERATION_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/rng.h"
#include "common/model/transformer.h"

namespace fedge {

struct SamplingOptions {
  double temperature = 0.8;  // 0: always the most likely token
  int64_t top_k = 40;        // keep the k most likely; 0: all
  double top_p = 0.95;       // then the fewest whose probabilities sum to p (Holtzman et al. 2020)
};

// Draws from softmax(logits / temperature) restricted by top-k, then top-p. Ties go to the lower
// id. Logits [V]; FEDGE_CHECKs that there is one.
TokenId SampleToken(absl::Span<const float> logits, const SamplingOptions& options, Rng& rng);

struct GenerateOptions {
  SamplingOptions sampling;
  uint64_t seed = 0;
  int64_t max_tokens = 128;
  KvType kv_type = KvType::kF16;
  // Of the products over the prompt; single tokens are fp32.
  Precision prompt_precision = Precision::kBFloat16;
  bool stop_at_end = true;  // at a token that ends the text or the turn
};

struct GenerateResult {
  enum class Stop { kLength, kEnd, kContext, kCallback };
  std::vector<TokenId> tokens;  // the new ones, without the token that ended the text
  Stop stop = Stop::kLength;
};

// Continues `prompt` (with BOS where the model wants one). `on_token` (may be empty) gets each new
// token and its bytes, which may be a part of a character; false stops. InvalidArgument: an empty
// prompt, one that leaves no room in the model's context, an id outside the vocabulary, or sampling
// options out of range. The same seed gives the same text.
absl::StatusOr<GenerateResult> Generate(
    Transformer& transformer, const LoraAdapter* adapter, absl::Span<const TokenId> prompt,
    const GenerateOptions& options,
    const std::function<bool(TokenId, absl::string_view)>& on_token);

}  // namespace fedge

#endif  // FEDGE_COMMON_TRAINING_GENERATION_H_
