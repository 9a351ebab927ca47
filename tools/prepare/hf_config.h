// config.json of a Hugging Face folder as the outline of a model.
#ifndef FEDGE_TOOLS_PREPARE_HF_CONFIG_H_
#define FEDGE_TOOLS_PREPARE_HF_CONFIG_H_

#include "absl/status/statusor.h"
#include "tools/prepare/json_object.h"
#include "tools/prepare/model_outline.h"

namespace fedge {

// InvalidArgument: a size that is missing, of another type or does not fit the others.
// Unimplemented, with what there is: another class of models, RoPE scaling, activation, a sliding
// window where GGUF has none, weights that are quantized already.
absl::StatusOr<ModelOutline> OutlineOfConfig(const JsonObject& config);

}  // namespace fedge

#endif  // FEDGE_TOOLS_PREPARE_HF_CONFIG_H_
