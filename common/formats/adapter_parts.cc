#include "common/formats/adapter_parts.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "common/base/status.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

struct KindNames {
  LoraKind kind;
  absl::string_view gguf;
  absl::string_view peft;
  bool only_phi3;  // the PEFT name is phi3's alone
  bool not_phi3;   // or everybody's but phi3's
};

constexpr KindNames kKinds[] = {
    {LoraKind::kQ, "attn_q", "self_attn.q_proj", false, true},
    {LoraKind::kK, "attn_k", "self_attn.k_proj", false, true},
    {LoraKind::kV, "attn_v", "self_attn.v_proj", false, true},
    {LoraKind::kQkv, "attn_qkv", "self_attn.qkv_proj", true, false},
    {LoraKind::kO, "attn_output", "self_attn.o_proj", false, false},
    {LoraKind::kGate, "ffn_gate", "mlp.gate_proj", false, true},
    {LoraKind::kUp, "ffn_up", "mlp.up_proj", false, true},
    {LoraKind::kUp, "ffn_up", "mlp.gate_up_proj", true, false},
    {LoraKind::kDown, "ffn_down", "mlp.down_proj", false, false},
};

bool InPeft(const KindNames& names, absl::string_view architecture) {
  return architecture == "phi3" ? !names.not_phi3 : !names.only_phi3;
}

// Takes "12." off the front of `rest`. Leading zeros would give a layer two names.
bool ConsumeLayer(absl::string_view* rest, int64_t* layer) {
  constexpr size_t kMaxDigits = 5;
  const size_t dot = rest->find('.');
  if (dot == absl::string_view::npos || dot == 0 || dot > kMaxDigits) return false;
  const absl::string_view digits = rest->substr(0, dot);
  if (digits[0] == '0' && dot > 1) return false;
  if (!std::all_of(digits.begin(), digits.end(), absl::ascii_isdigit)) return false;
  if (!absl::SimpleAtoi(digits, layer)) return false;
  rest->remove_prefix(dot + 1);
  return true;
}

absl::Status NoSuchSite(absl::string_view name) {
  return absl::UnimplementedError(
      absl::StrCat("no adapter is supported on ", name,
                   "; supported are the linear layers of attention and MLP and the output head"));
}

absl::Status DecodeFinite(const LoraFactor& factor, absl::Span<float> out) {
  Dequantize(factor.type, reinterpret_cast<const uint8_t*>(factor.data.data()),
             static_cast<int64_t>(out.size()), out.data());
  if (std::all_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); })) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("tensor ", factor.name, " has a value that is not finite"));
}

}  // namespace

absl::StatusOr<LoraSite> SiteFromGguf(absl::string_view name) {
  if (name == "output.weight") return LoraSite{LoraSite::kHead, LoraKind::kOutput};
  absl::string_view rest = name;
  LoraSite site;
  if (absl::ConsumePrefix(&rest, "blk.") && ConsumeLayer(&rest, &site.layer) &&
      absl::ConsumeSuffix(&rest, ".weight")) {
    for (const KindNames& names : kKinds) {
      if (names.gguf != rest) continue;
      site.kind = names.kind;
      return site;
    }
  }
  return NoSuchSite(name);
}

absl::StatusOr<LoraSite> SiteFromPeft(absl::string_view name, absl::string_view architecture) {
  if (name == "lm_head") return LoraSite{LoraSite::kHead, LoraKind::kOutput};
  absl::string_view rest = name;
  LoraSite site;
  if (absl::ConsumePrefix(&rest, "model.layers.") && ConsumeLayer(&rest, &site.layer)) {
    for (const KindNames& names : kKinds) {
      if (names.peft != rest || !InPeft(names, architecture)) continue;
      site.kind = names.kind;
      return site;
    }
  }
  return Annotate(NoSuchSite(name), absl::StrCat("architecture ", architecture));
}

std::string GgufName(const LoraSite& site) {
  for (const KindNames& names : kKinds) {
    if (names.kind == site.kind)
      return absl::StrCat("blk.", site.layer, ".", names.gguf, ".weight");
  }
  return "output.weight";
}

absl::StatusOr<std::string> PeftName(const LoraSite& site, absl::string_view architecture) {
  if (site.kind == LoraKind::kOutput) return "lm_head";
  for (const KindNames& names : kKinds) {
    if (names.kind != site.kind || !InPeft(names, architecture)) continue;
    return absl::StrCat("model.layers.", site.layer, ".", names.peft);
  }
  return absl::UnimplementedError(absl::StrCat("tensor ", GgufName(site), " of architecture ",
                                               architecture, " has no counterpart in PEFT"));
}

absl::Status AddFactor(const LoraSite& site, bool is_b, LoraFactor factor, LoraFactorMap* factors) {
  if (BlockElements(factor.type) != 1) {
    return absl::UnimplementedError(absl::StrCat("tensor ", factor.name, " is ",
                                                 DTypeName(factor.type),
                                                 "; adapters are read as F32, F16 or BF16"));
  }
  LoraFactors& pair = (*factors)[site];
  std::optional<LoraFactor>& place = is_b ? pair.b : pair.a;
  if (place) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensors ", place->name, " and ", factor.name, " are the same factor"));
  }
  place = std::move(factor);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LoraModule>> ModulesOf(const LoraFactorMap& factors) {
  std::vector<LoraModule> modules;
  for (const auto& [site, pair] : factors) {
    if (!pair.a || !pair.b) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", (pair.a ? pair.a : pair.b)->name,
                                                     " has no ", pair.a ? "B" : "A", " beside it"));
    }
    if (pair.a->rows != pair.b->cols) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", pair.a->name, " has rank ",
                                                     pair.a->rows, ", but ", pair.b->name,
                                                     " has rank ", pair.b->cols));
    }
    LoraModule module;
    module.tensor = GgufName(site);
    module.in_features = pair.a->cols;
    module.out_features = pair.b->rows;
    module.rank = pair.a->rows;
    modules.push_back(std::move(module));
  }
  return modules;
}

absl::StatusOr<LoraAdapter> AssembleAdapter(const LoraFactorMap& factors,
                                            absl::string_view architecture, float alpha) {
  ASSIGN_OR_RETURN(std::vector<LoraModule> modules, ModulesOf(factors));
  ASSIGN_OR_RETURN(LoraSpec spec,
                   LoraSpec::Create(std::string(architecture), alpha, std::move(modules)));
  LoraAdapter adapter(std::move(spec));
  int64_t i = 0;
  std::vector<float> b_values;
  for (const auto& [site, pair] : factors) {
    const LoraModule& module = adapter.spec().modules()[static_cast<size_t>(i)];
    RETURN_IF_ERROR(DecodeFinite(*pair.a, adapter.a(i)));
    b_values.resize(static_cast<size_t>(module.b_size()));
    RETURN_IF_ERROR(DecodeFinite(*pair.b, absl::MakeSpan(b_values)));
    const absl::Span<float> b = adapter.b(i);
    const auto rank = static_cast<size_t>(module.rank);
    const auto out = static_cast<size_t>(module.out_features);
    for (size_t row = 0; row < out; ++row) {
      for (size_t k = 0; k < rank; ++k) b[k * out + row] = b_values[row * rank + k];
    }
    ++i;
  }
  return adapter;
}

std::vector<float> BOutByRank(const LoraAdapter& adapter, int64_t module) {
  const LoraModule& shape = adapter.spec().modules()[static_cast<size_t>(module)];
  const absl::Span<const float> b = adapter.b(module);
  const auto rank = static_cast<size_t>(shape.rank);
  const auto out = static_cast<size_t>(shape.out_features);
  std::vector<float> values(b.size());
  for (size_t row = 0; row < out; ++row) {
    for (size_t k = 0; k < rank; ++k) values[row * rank + k] = b[k * out + row];
  }
  return values;
}

}  // namespace fedge
