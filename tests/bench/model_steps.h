// Whole training steps and prompts of models with the sizes of real ones, random weights. Each
// model is measured in a process of its own, so that its peak memory is its own.
#ifndef FEDGE_TESTS_BENCH_MODEL_STEPS_H_
#define FEDGE_TESTS_BENCH_MODEL_STEPS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "common/tensor/dtype.h"

namespace fedge {

inline constexpr int64_t kStepTokens = 512;

struct ModelSteps {
  double seconds_to_first_step = 0;  // from the start of loading to the start of its arithmetic
  double tokens_per_s = 0;           // trained: loss, gradient, AdamW
  double of_peak = 0;                // of the peak of the training's precision
  double prompt_tokens_per_s = 0;    // read into a cache, logits of the last
  double prompt_of_peak = 0;         // of the peak of the prompt's precision
  double peak_rss_mb = 0;            // of the training, mapped file included; MB of 10^6
  double estimated_mb = 0;           // the memory plan's
  double file_mb = 0;                // the mapped file
};

// Makes the model ("0.5b", "1b") in a temporary folder and starts this program again with
// `--measure-model FILE` on it. Nothing when that fails, with the reason on stderr.
std::optional<ModelSteps> MeasureModel(const std::string& shape, DType type, int threads,
                                       int repeat);

// What that process does: prints a ModelSteps as one line that MeasureModel reads. Rank 16 on all
// linears, one step of kStepTokens as two rows, arithmetic as 6 P_layers + 4 P_head FLOP a token
// (layers are computed twice, checkpointing). Returns the process's exit code.
int MeasureModelHere(const std::string& path, int threads, int repeat);

}  // namespace fedge

#endif  // FEDGE_TESTS_BENCH_MODEL_STEPS_H_
