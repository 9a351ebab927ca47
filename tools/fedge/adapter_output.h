// Writing an adapter where a command puts its results: in both formats, whole or not at all.
#ifndef FEDGE_TOOLS_FEDGE_ADAPTER_OUTPUT_H_
#define FEDGE_TOOLS_FEDGE_ADAPTER_OUTPUT_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/env.h"
#include "common/formats/adapter_files.h"

namespace fedge {

// Makes `dir` a PEFT folder. It is written beside `dir` first and then takes its place; an existing
// `dir` is replaced only if it is empty or a PEFT folder (AlreadyExists otherwise).
absl::Status ReplacePeftDir(const LoraAdapter& adapter, const AdapterInfo& info,
                            absl::string_view dir, Env& env);

// <dir>/adapter.gguf and <dir>/peft.
absl::Status WriteAdapterBothFormats(const LoraAdapter& adapter, const AdapterInfo& info,
                                     absl::string_view dir, Env& env);

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_ADAPTER_OUTPUT_H_
