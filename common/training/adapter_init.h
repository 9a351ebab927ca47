// What an adapter is before its first step.
//
// "zero-b": A is Kaiming-uniform, B zero (LoraAdapter::InitializeForTraining): the model starts as
// the base. "loftq": B A is the best approximation of that rank of what quantization took from the
// base's weights (LoftQ: Li et al. 2024, with the base frozen, so one step of its alternation): the
// model starts nearer to the unquantized one.
//
// Not offered: PiSSA (Meng et al. 2024), which trains the principal part of W and freezes the rest.
// Here W is a file that cannot change, so that part would have to be taken away again by a second
// adapter of the same rank, at twice the size on the wire and in every runtime.
#ifndef FEDGE_COMMON_TRAINING_ADAPTER_INIT_H_
#define FEDGE_COMMON_TRAINING_ADAPTER_INIT_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/env.h"
#include "common/base/thread_pool.h"
#include "common/formats/gguf.h"
#include "common/model/base_model.h"

namespace fedge {

struct AdapterInit {
  std::string kind = "zero-b";  // or "loftq"
  std::string unquantized;      // loftq: path of the base's F32, F16 or BF16 GGUF
};

// InvalidArgument for an unknown kind, or a file given where none is used or the reverse.
absl::Status CheckAdapterInit(const AdapterInit& init);

// Fills `adapter`, whose spec fits `base`; the same values for the same seed and any number of
// threads. Beside CheckAdapterInit's, errors are those of reading the file and of
// StartFromQuantizationError.
absl::Status InitializeAdapter(const AdapterInit& init, const BaseModel& base, uint64_t seed,
                               ThreadPool& pool, Env& env, LoraAdapter& adapter);

// scale B A = the rank's best approximation of W_full - W in the Frobenius norm, by a randomized
// SVD (Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1) with the singular values split evenly
// between the factors. A component without an error to carry (a matrix that is not quantized) is
// left as InitializeForTraining makes it. Takes the memory of one dense fp32 matrix.
// InvalidArgument: `full` lacks a matrix or has another shape of it (names the tensor).
absl::Status StartFromQuantizationError(const BaseModel& base, const GgufFile& full, uint64_t seed,
                                        ThreadPool& pool, LoraAdapter& adapter);

}  // namespace fedge

#endif  // FEDGE_COMMON_TRAINING_ADAPTER_INIT_H_
