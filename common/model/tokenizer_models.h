// The tokenizer models behind Tokenizer::FromGguf. Not for others: use tokenizer.h.
#ifndef FEDGE_COMMON_MODEL_TOKENIZER_MODELS_H_
#define FEDGE_COMMON_MODEL_TOKENIZER_MODELS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "common/formats/gguf.h"
#include "common/model/tokenizer.h"

namespace fedge {

// tokenizer.ggml.model "llama"
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeSpmTokenizer(const GgufFile& file);
// tokenizer.ggml.model "gpt2"
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeBpeTokenizer(const GgufFile& file);

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_TOKENIZER_MODELS_H_
