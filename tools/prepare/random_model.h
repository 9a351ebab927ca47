// A model of any size with random weights and a generated vocabulary, to measure memory and speed
// where no trained model is at hand. It computes like a real one and says nothing.
#ifndef FEDGE_TOOLS_PREPARE_RANDOM_MODEL_H_
#define FEDGE_TOOLS_PREPARE_RANDOM_MODEL_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/env.h"
#include "common/tensor/dtype.h"
#include "tools/prepare/model_outline.h"

namespace fedge {

// The outlines with a name: "tiny" (2 M parameters), "0.5b" (Qwen2.5-0.5B), "1b" (Llama-3.2-1B).
// Families other than the named models' own take their sizes. InvalidArgument names what there is.
struct NamedOutline {
  std::string family;  // empty: the shape's own
  std::string shape = "tiny";
};
absl::StatusOr<ModelOutline> MakeNamedOutline(const NamedOutline& named);

struct RandomModelOptions {
  ModelOutline outline;
  DType type = DType::kQ4_0;         // of matrices; where rows are not whole blocks its fallback
  std::optional<DType> output_type;  // of the output or tied embedding; else llama.cpp's
  uint64_t seed = 0;
  // Without a family in it: llama.cpp takes a name with "phi3" for a promise about the vocabulary.
  std::string name = "random model";
  std::string output_file;
};

struct RandomModelResult {
  int64_t parameters = 0;
  uint64_t bytes = 0;
};

// Matrices are made of encoded stretches of a normal distribution drawn in random order: the cost
// is that of writing the file, the memory some tens of megabytes. Norms are 1, biases small. The
// embedding and the output have the type llama.cpp gives them. A pure function of the options.
absl::StatusOr<RandomModelResult> MakeRandomModel(const RandomModelOptions& options, Env& env);

}  // namespace fedge

#endif  // FEDGE_TOOLS_PREPARE_RANDOM_MODEL_H_
