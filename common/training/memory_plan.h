// How a fine-tuning fits a device's memory: how many rows pass at once, how many layers keep their
// activations, how many positions have logits at once and, where that is allowed, a smaller
// optimizer, shorter rows and a lower rank. Decided before the first large allocation, from the
// shape of the model alone: the same request gives the same plan everywhere.
#ifndef FEDGE_COMMON_TRAINING_MEMORY_PLAN_H_
#define FEDGE_COMMON_TRAINING_MEMORY_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/adapter/lora_adapter.h"
#include "common/model/base_model.h"
#include "common/model/transformer.h"
#include "common/tensor/matmul.h"

namespace fedge {

// "600MB" (10^6), "1.5GB", "512MiB" (2^20), "2GiB", or bytes. InvalidArgument for anything else.
absl::StatusOr<int64_t> ParseByteSize(absl::string_view text);

// "612 MB", of 10^6 bytes as file managers and `--memory-limit` count.
std::string FormatMegabytes(int64_t bytes);

// Bytes at the peak, part by part.
struct MemoryEstimate {
  int64_t model_file = 0;   // mapped; every page of it is read
  int64_t adapter = 0;      // values and gradient
  int64_t optimizer = 0;    // moments
  int64_t activations = 0;  // of kept layers, inputs of the others
  int64_t scratch = 0;      // of the head, then of one layer at a time
  int64_t kernels = 0;      // packed operands
  int64_t data = 0;         // token sequences
  int64_t process = 0;      // program, libraries, tokenizer

  int64_t total() const {
    return model_file + adapter + optimizer + activations + scratch + kernels + data + process;
  }
};

struct MemoryRequest {
  const BaseModel* model = nullptr;
  const LoraSpec* adapter = nullptr;  // as asked for
  int64_t batch_size = 4;
  int64_t length = 256;
  int moment_bits = 32;
  int threads = 1;
  bool dropout = false;
  Precision precision = Precision::kBFloat16;  // of the products, as TrainOptions
  int64_t data_bytes = 0;
  int64_t limit_bytes = 0;  // 0: none
  // What may be less than asked for, where the limit demands it.
  bool may_reduce_optimizer = false;  // 8 bits
  bool may_reduce_length = false;     // halved, down to kMinPlannedLength
  bool may_reduce_rank = false;       // halved, down to kMinPlannedRank
};
inline constexpr int64_t kMinPlannedLength = 32;
inline constexpr int64_t kMinPlannedRank = 4;

struct MemoryPlan {
  int64_t batch_size = 0;
  int64_t micro_batch = 0;  // rows in one pass, at most batch_size
  int64_t length = 0;
  int64_t rank = 0;  // the largest of the adapter's modules
  int moment_bits = 32;
  int64_t kept_layers = 0;
  TransformerOptions transformer;
  int64_t limit_bytes = 0;  // of the request
  MemoryEstimate estimate;

  // One line: total, parts and choices.
  std::string Describe(const ModelConfig& config) const;
};

// Without a limit the defaults of the transformer; with one the plan of the least arithmetic that
// fits. ResourceExhausted when none does: names the smallest that is allowed, and what it takes.
absl::StatusOr<MemoryPlan> PlanMemory(const MemoryRequest& request);

}  // namespace fedge

#endif  // FEDGE_COMMON_TRAINING_MEMORY_PLAN_H_
