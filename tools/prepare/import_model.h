// A Hugging Face folder (config.json, safetensors, tokenizer) as one GGUF file.
#ifndef FEDGE_TOOLS_PREPARE_IMPORT_MODEL_H_
#define FEDGE_TOOLS_PREPARE_IMPORT_MODEL_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/env.h"
#include "tools/prepare/quantize_model.h"
#include "tools/prepare/tensor_types.h"

namespace fedge {

struct ImportModelOptions {
  std::string folder;
  std::string output_file;
  std::optional<QuantizationMix> mix;  // absent: the type the embedding has in the folder
  std::string name;                    // general.name; empty: from config.json or the folder's
  int threads = 1;
};

struct ImportModelResult {
  std::string architecture;
  int64_t parameters = 0;
  int64_t tokens = 0;
  uint64_t bytes = 0;
  std::map<DType, TypeTotals> types;
};

// Tensors get llama.cpp's names and layout; vectors are F32. Everything is checked before the first
// byte is written: sizes, the shape of every tensor, the vocabulary. Errors are those of
// OutlineOfConfig, HfWeights and ReadHfTokenizer; InvalidArgument also for a tensor that is
// missing, has another shape or belongs to nothing the family has, and for a value that a type
// cannot hold. Memory: a stretch of one tensor, and tokenizer.json.
absl::StatusOr<ImportModelResult> ImportModel(const ImportModelOptions& options,
                                              const PrepareEvents& events, Env& env);

}  // namespace fedge

#endif  // FEDGE_TOOLS_PREPARE_IMPORT_MODEL_H_
