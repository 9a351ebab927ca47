// A small adapter with every kind of module, several ranks and distinct values.
#ifndef FEDGE_TESTS_COMMON_FORMATS_EXAMPLE_ADAPTER_H_
#define FEDGE_TESTS_COMMON_FORMATS_EXAMPLE_ADAPTER_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/adapter/lora_adapter.h"
#include "common/formats/adapter_files.h"

namespace fedge::testing {

// Two layers of width 16 with 4 heads and 2 kv heads, and an output head of rank 3.
inline LoraAdapter ExampleAdapter(const std::string& architecture) {
  const std::pair<const char*, int64_t> kinds[] = {
      {"attn_q", 16},   {"attn_k", 8},  {"attn_v", 8},   {"attn_output", 16},
      {"ffn_gate", 24}, {"ffn_up", 24}, {"ffn_down", 16}};
  std::vector<LoraModule> modules;
  const auto add = [&](std::string tensor, int64_t in, int64_t out, int64_t rank) {
    LoraModule module;
    module.tensor = std::move(tensor);
    module.in_features = in;
    module.out_features = out;
    module.rank = rank;
    modules.push_back(std::move(module));
  };
  for (int layer = 0; layer < 2; ++layer) {
    for (const auto& [kind, out] : kinds) {
      const bool is_down = std::string(kind) == "ffn_down";
      add(absl::StrCat("blk.", layer, ".", kind, ".weight"), is_down ? 24 : 16, out, 2);
    }
  }
  add("output.weight", 16, 40, 3);
  LoraAdapter adapter(*LoraSpec::Create(architecture, 8, std::move(modules)));
  float value = 0.5f;
  for (float& x : adapter.values()) x = (value += 0.25f);
  return adapter;
}

// phi3 of the same sizes: q (rank 2) and v (rank 4) of attn_qkv, up of ffn_up, all of ffn_down.
inline LoraAdapter PartsAdapter() {
  std::vector<LoraModule> modules;
  const auto add = [&](const char* tensor, int64_t in, int64_t first, int64_t rows, int64_t of,
                       int64_t rank) {
    LoraModule module;
    module.tensor = tensor;
    module.in_features = in;
    module.out_features = rows;
    module.rank = rank;
    module.first_row = first;
    module.tensor_rows = of;
    modules.push_back(std::move(module));
  };
  add("blk.0.attn_qkv.weight", 16, 0, 16, 32, 2);
  add("blk.0.attn_qkv.weight", 16, 24, 8, 32, 4);
  add("blk.0.ffn_up.weight", 16, 24, 24, 48, 2);
  add("blk.0.ffn_down.weight", 24, 0, 16, 0, 2);
  LoraAdapter adapter(*LoraSpec::Create("phi3", 8, std::move(modules)));
  float value = 0.5f;
  for (float& x : adapter.values()) x = (value += 0.25f);
  return adapter;
}

inline AdapterInfo ExampleInfo() {
  AdapterInfo info;
  info.base_model = "base.gguf";
  info.base_model_sha256 = std::string(64, 'a');
  info.num_heads = 4;
  info.num_kv_heads = 2;
  return info;
}

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_COMMON_FORMATS_EXAMPLE_ADAPTER_H_
