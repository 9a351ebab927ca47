// LoRA adapters on disk: llama.cpp adapter GGUF and PEFT directories (adapter_config.json +
// adapter_model.safetensors), both read and written.
//
// Inside Fedge (LoraAdapter) tensors carry GGUF names and GGUF row order. PEFT stores q/k rows of
// the `llama` architecture for half-split RoPE, GGUF for interleaved RoPE: B rows of attn_q and
// attn_k are permuted on the way in and out (head counts are needed for that).
//
// Neither format knows modules on parts of a fused tensor (phi3's attn_qkv and ffn_up, PEFT's
// qkv_proj and gate_up_proj): they are written as one module on the whole of it, of the parts'
// ranks together and with zeros in B where no part is (WithoutParts), and read back as such. What
// the adapter does is the same, its layout is not.
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

inline constexpr int64_t kMaxAdapterHeads = 65536;

// What the files carry beside the tensors.
struct AdapterInfo {
  std::string base_model;         // name or path of the base, informative
  std::string base_model_sha256;  // hex; Fedge's own key "fedge.base_model.sha256"; may be empty
  int64_t num_heads = 0;          // needed to read or write PEFT for architecture "llama"
  int64_t num_kv_heads = 0;
  // Of the base. Set by reading; before reading PEFT, which does not carry it, what the caller
  // knows. Ignored by writing: there it is the adapter's own.
  std::string architecture;
  // PEFT only: written as lora_alpha / sqrt(r), what the adapter was trained as; a spelling, the
  // factors' strength is the same. Ignored where modules differ in rank.
  bool use_rslora = false;
};

struct LoadedAdapter {
  LoraAdapter adapter;
  AdapterInfo info;  // num_heads only where the file carries them
};

// `path`: an adapter GGUF. Fedge writes head counts in metadata of its own (fedge.num_heads,
// fedge.num_kv_heads), which llama.cpp ignores. F32, F16 and BF16 are read, F32 is written; modules
// come in the canonical order whatever the file's. InvalidArgument for a malformed file, a lone
// factor, ranks that differ, a foreign tensor or a value that is not finite; Unimplemented for
// other types and for layers Fedge does not adapt (token_embd, experts, norms).
absl::StatusOr<LoadedAdapter> ReadAdapterGguf(absl::string_view path, Env& env);
absl::Status WriteAdapterGguf(const LoraAdapter& adapter, const AdapterInfo& info,
                              absl::string_view path, Env& env);

// `dir`: a PEFT directory. Architecture and head counts come from `info` or from Fedge's own
// entries in the safetensors metadata; FailedPrecondition when head counts are needed and known
// from neither, or when the two contradict each other. Without either, the architecture is taken to
// be phi3 for fused projections and llama else. Honours use_rslora (alpha * sqrt(r) inside),
// rank_pattern and alpha_pattern where they come to one alpha; Unimplemented where they do not and
// for use_dora, modules_to_save, bias != none and other options that change the adapter's meaning.
absl::StatusOr<LoadedAdapter> ReadAdapterPeft(absl::string_view dir, const AdapterInfo& info,
                                              Env& env);
// Makes `dir` if needed and writes the tensors, then the configuration (each file atomically).
absl::Status WriteAdapterPeft(const LoraAdapter& adapter, const AdapterInfo& info,
                              absl::string_view dir, Env& env);

// Either of the two, by what `path` is: a folder or a file.
absl::StatusOr<LoadedAdapter> ReadAdapter(absl::string_view path, const AdapterInfo& info,
                                          Env& env);

}  // namespace fedge

#endif  // FEDGE_COMMON_FORMATS_ADAPTER_FILES_H_
