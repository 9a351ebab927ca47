// What the two adapter formats have in common: the names of adapted layers and the assembly of a
// LoraAdapter from pairs of factors. Internal to common/formats.
#ifndef FEDGE_COMMON_FORMATS_ADAPTER_PARTS_H_
#define FEDGE_COMMON_FORMATS_ADAPTER_PARTS_H_

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/adapter/lora_adapter.h"
#include "common/tensor/dtype.h"

namespace fedge {

// In the canonical order of modules within a layer.
enum class LoraKind { kQ, kK, kV, kQkv, kO, kGate, kUp, kDown, kOutput };

// An adapted layer. Sorts in the canonical order; the output head, which has no layer, is last.
struct LoraSite {
  static constexpr int64_t kHead = int64_t{1} << 32;  // the layer of kOutput

  int64_t layer = 0;
  LoraKind kind = LoraKind::kQ;

  friend auto operator<=>(const LoraSite&, const LoraSite&) = default;
};

// "blk.0.attn_q.weight" or "output.weight". Unimplemented for any other name.
absl::StatusOr<LoraSite> SiteFromGguf(absl::string_view name);
// "model.layers.0.self_attn.q_proj" or "lm_head". Unimplemented for any other name; ffn_up is
// mlp.gate_up_proj in phi3 and mlp.up_proj elsewhere.
absl::StatusOr<LoraSite> SiteFromPeft(absl::string_view name, absl::string_view architecture);
std::string GgufName(const LoraSite& site);
// Unimplemented for a layer that the architecture does not have in PEFT.
absl::StatusOr<std::string> PeftName(const LoraSite& site, absl::string_view architecture);

// A or B as it lies in a file, row-major.
struct LoraFactor {
  std::string name;  // of the file's tensor, for messages
  DType type = DType::kF32;
  absl::string_view data;
  int64_t rows = 0;
  int64_t cols = 0;
};

// A [r, in] and B [out, r] of each site, in canonical order.
struct LoraFactors {
  std::optional<LoraFactor> a;
  std::optional<LoraFactor> b;
};
using LoraFactorMap = std::map<LoraSite, LoraFactors>;

// Puts `factor` where it belongs. InvalidArgument when there is one already, Unimplemented for a
// type other than F32, F16 and BF16.
absl::Status AddFactor(const LoraSite& site, bool is_b, LoraFactor factor, LoraFactorMap* factors);

// The modules; InvalidArgument for a lone factor or ranks that differ.
absl::StatusOr<std::vector<LoraModule>> ModulesOf(const LoraFactorMap& factors);

// The adapter with the factors' values. InvalidArgument for a value that is not finite, and as
// LoraSpec::Create.
absl::StatusOr<LoraAdapter> AssembleAdapter(const LoraFactorMap& factors,
                                            absl::string_view architecture, float alpha);

// B of a module as files have it, [out, r] (the buffer has [r, out]).
std::vector<float> BOutByRank(const LoraAdapter& adapter, int64_t module);

}  // namespace fedge

#endif  // FEDGE_COMMON_FORMATS_ADAPTER_PARTS_H_
