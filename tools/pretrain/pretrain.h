// Full-parameter pre-training of a small Llama from plain text: how the bundled base model is made.
// Not for large models: weights, gradients and optimizer state are dense fp32 in memory.
#ifndef FEDGE_TOOLS_PRETRAIN_PRETRAIN_H_
#define FEDGE_TOOLS_PRETRAIN_PRETRAIN_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "common/tensor/dtype.h"
#include "common/training/optimizer.h"
#include "tools/pretrain/llama_weights.h"

namespace fedge {

struct PretrainOptions {
  std::vector<std::string> corpus_files;  // documents are separated by a line of one form feed
  std::string vocabulary_file;            // a SentencePiece model, BPE with byte fallback
  LlamaShape shape;
  ModelLabels labels;

  int64_t steps = 1000;
  int64_t batch_size = 32;
  int64_t length = 256;  // tokens a row
  float peak_rate = 2e-3f;
  int64_t warmup_steps = 100;
  float final_fraction = 0.05f;  // of the peak, reached at the last step along a cosine
  float weight_decay = 0.1f;     // of matrices; norms have none
  float beta2 = 0.95f;
  double clip_norm = 1.0;
  uint64_t seed = 0;
  int threads = 1;

  double holdout_fraction = 0.01;
  int64_t eval_every = 250;  // steps between held-out losses; 0: only at the end
  int64_t max_holdout_windows = 64;

  std::string output_file;
  DType output_type = DType::kQ8_0;
  std::string checkpoint_file;     // empty: none
  int64_t checkpoint_every = 250;  // steps; one is also written when a run is stopped
};

struct PretrainProgress {
  int64_t step = 0;  // done
  int64_t steps = 0;
  double loss = 0;         // nats a token of this step's batch
  double smooth_loss = 0;  // mean with weights falling by 0.95 a step
  double grad_norm = 0;
  float learning_rate = 0;
  bool evaluated = false;  // holdout_loss was measured after this step
  double holdout_loss = 0;
  double tokens_per_second = 0;  // of this process
  absl::Duration left;
};

// What is known before the first step.
struct PretrainStart {
  int64_t parameters = 0;
  int64_t documents = 0;
  int64_t corpus_bytes = 0;
  int64_t corpus_tokens = 0;
  int64_t training_tokens = 0;
  int64_t resumed_step = 0;  // 0: from scratch
};

struct PretrainResult {
  PretrainStart start;
  double first_loss = 0;           // of the first step of this process
  double last_loss = 0;            // smoothed
  double holdout_loss = 0;         // of the fp32 weights; 0 without a held-out part
  double output_holdout_loss = 0;  // of the file as written
  uint64_t output_bytes = 0;
};

struct PretrainEvents {
  std::function<void(const PretrainStart&)> on_start;
  // After each step; false stops the run.
  std::function<bool(const PretrainProgress&)> on_step;
};

// Trains and writes options.output_file (atomic). Deterministic: same files and options, same
// bytes, for any number of threads and however often the run is stopped and resumed. Cancelled:
// on_step said stop; the checkpoint is written. FailedPrecondition: the checkpoint is of another
// run (other corpus or options); too little text. Internal: the loss is not finite. After success
// the checkpoint is removed.
absl::StatusOr<PretrainResult> Pretrain(const PretrainOptions& options,
                                        const PretrainEvents& events, Env& env, Clock& clock);

}  // namespace fedge

#endif  // FEDGE_TOOLS_PRETRAIN_PRETRAIN_H_
