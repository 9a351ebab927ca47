// LoRA adapters on disk: llama.cpp adapter GGUF and PEFT directories (adapter_config.json +
// adapter_model.safetensors), both read and written.
//
// Inside Fedge (LoraAdapter) tensors carry GGUF names and GGUF row order. PEFT stores q/k rows of
// the `llama` architecture for half-split RoPE, GGUF for interleaved RoPE: B rows of attn_q and
// attn_k are permuted on the way in and out (head counts are needed for that).
#ifndef FEDGE_COMMON_FORMATS_ADAPTER_FILES_H_
#define FEDGE_COMMON_FORMATS_ADAPTER_FILES_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/env.h"

namespace fedge {

// What the files carry beside the tensors.
struct AdapterInfo {
  std::string base_model;         // name or path of the base, informative
  std::string base_model_sha256;  // hex; Fedge's own key "fedge.base_model.sha256"; may be empty
  int64_t num_heads = 0;          // needed to read or write PEFT for architecture "llama"
  int64_t num_kv_heads = 0;
};

struct LoadedAdapter {
  LoraAdapter adapter;
  AdapterInfo info;  // num_heads only where the file carries them
};

// `path`: an adapter GGUF. Fedge writes head counts in metadata of its own (fedge.num_heads,
// fedge.num_kv_heads), which llama.cpp ignores.
absl::StatusOr<LoadedAdapter> ReadAdapterGguf(absl::string_view path, Env& env);
absl::Status WriteAdapterGguf(const LoraAdapter& adapter, const AdapterInfo& info,
                              absl::string_view path, Env& env);

// `dir`: a PEFT directory. `info` gives the head counts (FailedPrecondition when they are needed,
// neither given nor in the config's own "fedge" entry). Honours use_rslora (alpha * sqrt(r)
// inside), rank_pattern and alpha_pattern where they are equivalent; Unimplemented for use_dora,
// modules_to_save, bias != none.
absl::StatusOr<LoadedAdapter> ReadAdapterPeft(absl::string_view dir, const AdapterInfo& info,
                                              Env& env);
absl::Status WriteAdapterPeft(const LoraAdapter& adapter, const AdapterInfo& info,
                              absl::string_view dir, Env& env);

// Either of the two, by what `path` is: a folder or a file.
absl::StatusOr<LoadedAdapter> ReadAdapter(absl::string_view path, const AdapterInfo& info,
                                          Env& env);

}  // namespace fedge

#endif  // FEDGE_COMMON_FORMATS_ADAPTER_FILES_H_
