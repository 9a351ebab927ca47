// The value of --lora: a path with an optional scale, "A.gguf" or "A.gguf:0.5".
#ifndef FEDGE_TOOLS_FEDGE_LORA_OPTION_H_
#define FEDGE_TOOLS_FEDGE_LORA_OPTION_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/env.h"
#include "common/formats/adapter_files.h"
#include "common/model/base_model.h"

namespace fedge {

struct LoraOption {
  std::string path;
  double scale = 1;
};

// A file whose name is the whole text wins; else what follows the last ':' is the scale if it is a
// finite number. NotFound when neither names a file or folder.
absl::StatusOr<LoraOption> ParseLoraOption(absl::string_view text, Env& env);

// The adapter that acts `scale` times as strongly: alpha is multiplied. A scale below zero turns
// the sign of B, zero makes B zero (alpha is positive by definition).
absl::StatusOr<LoraAdapter> ScaleAdapter(const LoraAdapter& adapter, double scale);

// What a file needs to know of `model`: head counts, name and, when `with_hash`, its SHA-256.
AdapterInfo AdapterInfoOf(const BaseModel& model, bool with_hash);

// The adapter that `text` names, scaled and checked against `model`; nothing for an empty text.
absl::StatusOr<std::optional<LoraAdapter>> LoadLoraOption(absl::string_view text,
                                                          const BaseModel& model, Env& env);

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_LORA_OPTION_H_
