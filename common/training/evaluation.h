// How good is an adapter: perplexity of a text, loss over held-out examples, label accuracy.
#ifndef FEDGE_COMMON_TRAINING_EVALUATION_H_
#define FEDGE_COMMON_TRAINING_EVALUATION_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/adapter/lora_adapter.h"
#include "common/model/transformer.h"
#include "common/training/dataset.h"

namespace fedge {

struct PerplexityOptions {
  int64_t context = 512;                      // C: tokens a window
  int64_t max_windows = 0;                    // 0: all
  Precision precision = Precision::kFloat32;  // of the products with the frozen weights
};

struct PerplexityResult {
  double perplexity = 0;  // exp(mean nats)
  double mean_nats = 0;
  int64_t windows = 0;
  int64_t scored_tokens = 0;
};

// As llama.cpp's perplexity tool: the text is tokenized once (BOS in front where the model adds
// one), cut into windows of C tokens; where the model adds BOS the first token of each window is
// replaced by BOS; the C - 1 - C/2 tokens C/2+1 .. C-1 of each window are scored. InvalidArgument:
// context < 4; fewer tokens than two windows.
absl::StatusOr<PerplexityResult> Perplexity(
    Transformer& transformer, const LoraAdapter* adapter, absl::string_view text,
    const PerplexityOptions& options,
    const std::function<void(const PerplexityResult&)>& on_window);

// Loss over examples, each once, at most `rows` of them in a pass.
inline constexpr int64_t kEvaluationRows = 8;
LossSum EvaluateLoss(Transformer& transformer, const LoraAdapter* adapter,
                     absl::Span<const Example> examples, int64_t rows = kEvaluationRows);

// A multiple-choice question: which of the labels follows the prompt.
struct LabelQuestion {
  std::vector<TokenId> prompt;  // with BOS where the model adds one
  int64_t answer = 0;           // index into the labels
};

// Questions from prompt/completion records: the distinct completions (sorted) are the labels.
// FailedPrecondition when there are fewer than 2 or more than `max_labels` distinct completions.
struct LabelTask {
  std::vector<std::string> labels;
  std::vector<std::vector<TokenId>> label_tokens;
  std::vector<LabelQuestion> questions;
};
absl::StatusOr<LabelTask> MakeLabelTask(absl::Span<const Record> records,
                                        const Tokenizer& tokenizer, int64_t max_labels,
                                        int64_t max_length);

struct AccuracyResult {
  int64_t correct = 0;
  int64_t total = 0;
  double accuracy() const {
    return total == 0 ? 0 : static_cast<double>(correct) / static_cast<double>(total);
  }
};

// The label with the highest log-likelihood of all its tokens after the prompt. The prompt is
// evaluated once per question (KV cache), labels share it.
absl::StatusOr<AccuracyResult> LabelAccuracy(Transformer& transformer, const LoraAdapter* adapter,
                                             const LabelTask& task,
                                             absl::Span<const LabelQuestion> questions);

}  // namespace fedge

#endif  // FEDGE_COMMON_TRAINING_EVALUATION_H_
